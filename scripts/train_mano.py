"""Trains a hand regressor (image → MANO) on FreiHAND and other data sets.

    python scripts/train_mano.py CONFIG.yaml [--set training.max_steps=100 ...]      (or with torchrun, see the config)
    python scripts/train_mano.py CONFIG.yaml --check                                 labels, contact sheet, one batch; no training
    python scripts/train_mano.py CONFIG.yaml --publish                               best weights of the run → the config's `asset`
    python scripts/train_mano.py CONFIG.yaml --calibrate [HANDS]                     the asset's doubt about itself, fitted afterwards
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from safetensors.torch import load_file
from tqdm import tqdm

from data.hand_samples import KINDS, HandModels, hand_models, in_share, open_hands
from data.synthetic.parallel import worker_map
from pose_tools.body_models import Mano, load_mano
from pose_tools.mano import load_regressor, sample_cache
from pose_tools.mano.calibration import fit_doubt
from pose_tools.mano.crops import Augmentation, HandCrops
from pose_tools.mano.label_checks import check_labels
from pose_tools.mano.losses import RECIPE, HandLoss, MANOLoss, SimpleMANOLoss
from pose_tools.mano.networks import HandRegressor, RegressorConfig
from pose_tools.mano.sample_cache import SampleCache
from pose_tools.mano.training_task import RegressionTask, label_sheet
from pose_tools.training import TrainingError, TrainingSettings
from pose_tools.types import HandSample
from vlm import settings as typed
from vlm.commands.console import run
from vlm.commands.pose_training import announce, best_of_run, command_line, fit_or_check, in_words, is_main_process, training_command


@dataclass(frozen=True)
class CacheSettings:
    """Pictures kept as small squares in one memory-mapped file: `size` pixels showing `margin` hand boxes."""

    folder: str
    size: int = 128
    margin: float = 1.9


@dataclass(frozen=True)
class DataSettings:
    """One data set: its `kind` and `folder` (see data/hand_samples.py), with `options` for its reader.

    `share`: how often its samples come up beside those of the others. `validation`: share of its annotations or recordings to judge by,
    where the data set has no part for that; 0 judges by none. `inside_mask`: least share of joints in the hand's mask.
    """

    folder: str
    kind: str = "freihand"
    share: float = 1.0
    validation: float = 0.1
    limit: int | None = None
    inside_mask: float = 0.95
    options: dict[str, Any] = field(default_factory=dict)
    cache: CacheSettings | None = None


@dataclass(frozen=True)
class ManoSettings:
    """`loss`: "recipe", "simple" or "mano", or weights by term. `start`: a folder or weights to go on from."""

    data: tuple[DataSettings, ...]
    network: RegressorConfig
    training: TrainingSettings
    hand_model: str | None = None
    loss: str | dict[str, float] = "recipe"
    augmentation: Augmentation = field(default_factory=Augmentation)
    start: str | None = None
    asset: str | None = None


class Chosen(Sequence[HandSample]):
    """Some of the samples of one or several sequences: `numbers` count through all of them."""

    def __init__(self, samples: Sequence[HandSample], numbers: np.ndarray) -> None:
        self.samples, self.numbers = samples, numbers

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: Any) -> Any:
        return self.samples[int(self.numbers[index])]


class Mixed(Sequence[HandSample]):
    """Several sequences as one; each is repeated so that the shares hold and none is cut."""

    def __init__(self, parts: Sequence[Sequence[HandSample]], shares: Sequence[float]) -> None:
        most = max(len(part) / share for part, share in zip(parts, shares, strict=True))
        self.parts, counts = parts, [round(most * share) for share in shares]
        self.ends = np.cumsum(counts)

    def __len__(self) -> int:
        return int(self.ends[-1])

    def __getitem__(self, index: Any) -> Any:
        part = int(np.searchsorted(self.ends, index, side="right"))
        return self.parts[part][(index - (self.ends[part - 1] if part else 0)) % len(self.parts[part])]


def make_task(settings: ManoSettings, mano: Mano) -> RegressionTask:
    learn, judge = read_all(settings.data, hand_models(settings.hand_model) | {"right": mano}, settings.training.seed)
    size, scale, seed = settings.network.image_size, settings.network.crop_scale, settings.training.seed
    augmented = HandCrops(learn, size, scale=scale, augmentation=settings.augmentation, seed=seed)
    return RegressionTask(augmented, HandCrops(judge, size, scale=scale), loss_of(settings))


def read_all(data: Sequence[DataSettings], models: HandModels, seed: int) -> tuple[Mixed, Mixed]:
    """The samples to learn from, mixed by share, and all those to judge by; TrainingError where there are none of these."""
    pairs = [read_data(one, models, seed) for one in data]
    judged = [pair[1] for pair in pairs if len(pair[1])]
    if not judged:
        raise TrainingError("no sample is held out to judge by: set `validation` above 0 for a data set")
    return Mixed([pair[0] for pair in pairs], [one.share for one in data]), Mixed(judged, [float(len(part)) for part in judged])


def read_data(data: DataSettings, models: HandModels, seed: int) -> tuple[Chosen, Chosen]:
    """The samples to learn from and those to judge by, of one data set; the labels have been checked."""
    whole = open_hands(data.kind, data.folder, "train", models=models, val_share=0.0, **data.options)
    report = check_labels(whole, models["right"], inside=data.inside_mask)
    print(f"{data.folder}: {len(whole)} samples of {data.kind}; labels: {report}")
    kept = np.array([in_share(whole.cluster(i), data.validation, seed) for i in range(len(whole))])
    samples: Sequence[HandSample] = whole
    if data.cache is not None:
        samples = cached(whole, data.cache, f"{Path(data.folder).name}: {len(whole)} samples of {data.kind}")
    judge = Chosen(samples, np.flatnonzero(kept))
    if KINDS[data.kind].has_val and data.validation:
        val = open_hands(data.kind, data.folder, "val", models=models, **data.options)
        judge, kept = Chosen(val, np.arange(len(val))), np.zeros(len(whole), bool)
    return Chosen(samples, np.flatnonzero(~kept)[: data.limit]), judge


def cached(samples: Sequence[HandSample], cache: CacheSettings, key: str) -> SampleCache:
    """The cache's samples; the main process builds it where it is missing, the others wait."""
    rank = int(os.environ.get("LOCAL_RANK", 0))
    if rank == 0 and not (Path(cache.folder) / "cache.json").is_file():
        work = partial(sample_cache.row, samples, cache.size, cache.margin)
        with worker_map(work, range(len(samples)), os.cpu_count() or 1) as rows:
            bar = tqdm(rows, desc=f"building {cache.folder}", total=len(samples), unit="sample", mininterval=5)
            sample_cache.build(bar, cache.folder, count=len(samples), size=cache.size, margin=cache.margin, key=key)
    if torch.distributed.is_available() and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        from accelerate import PartialState

        PartialState(cpu=not torch.cuda.is_available()).wait_for_everyone()
    return SampleCache(cache.folder, key)


def build(settings: ManoSettings, mano: Mano) -> HandRegressor:
    """A fresh regressor, with the weights of `start` if there is one."""
    model = HandRegressor(settings.network, mano)
    if settings.start:
        path = Path(settings.start)
        path = path / "model.safetensors" if path.is_dir() else path
        if not path.is_file():
            raise TrainingError(f"start: {path} is missing; train the phase before this one first, or leave `start` out")
        model.load_state_dict(load_file(path))
    return model


def loss_of(settings: ManoSettings) -> HandLoss:
    named = {"recipe": lambda: HandLoss(RECIPE), "simple": SimpleMANOLoss, "mano": MANOLoss}
    if isinstance(settings.loss, dict):
        return HandLoss(settings.loss)
    if settings.loss not in named:
        raise TrainingError(f"loss is {settings.loss!r}: expected {', '.join(named)}, or weights by term")
    return named[settings.loss]()


def fit(settings: ManoSettings, check_only: bool) -> None:
    torch.manual_seed(settings.training.seed)
    mano = load_mano(settings.hand_model)
    task = make_task(settings, mano)
    model = build(settings, mano)
    if is_main_process():
        announce(settings.training, label_sheet(task.crops), model, f"{len(task)} samples to learn, {len(task.held_out)} to judge")
    fit_or_check(model, task, settings.training, check_only)


def publish(settings: ManoSettings) -> None:
    """The run's best weights as a folder that `load_regressor` opens."""
    asset, weights, scores = best_of_run(settings.training, settings.asset)
    model = HandRegressor(settings.network, load_mano(settings.hand_model), pretrained=False)
    model.load_state_dict(weights)
    model.save(asset)
    print(f"wrote {asset}: {in_words(scores)}")


def calibrate(settings: ManoSettings, hands: int) -> None:
    """Fits the doubt of the asset's regressor (see pose_tools/mano/calibration.py) and writes it back."""
    if not settings.asset:
        raise TrainingError("--calibrate needs `asset` in the config: the folder that --publish wrote")
    mano = load_mano(settings.hand_model)
    saved = load_regressor(settings.asset, mano)
    model = HandRegressor(replace(saved.config, doubt=settings.network.doubt), mano, pretrained=False)
    model.load_state_dict(saved.state_dict() | {name: value for name, value in model.state_dict().items() if name.startswith("doubt.")})
    task = make_task(settings, mano)
    report = fit_doubt(model, task.crops, task.held_out, most=hands, seed=settings.training.seed)
    model.save(settings.asset)
    print(f"wrote {settings.asset}: {report}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    parser = command_line(__doc__, ManoSettings, "mano_small")
    parser.add_argument("--calibrate", nargs="?", type=int, const=16000, metavar="HANDS", help="fit the asset's doubt (default 16,000)")
    options = parser.parse_args(arguments)
    with training_command():
        settings = typed.load(ManoSettings, options.config, options.set)
        if options.calibrate is not None:
            calibrate(settings, options.calibrate)
        else:
            publish(settings) if options.publish else fit(settings, options.check)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
