"""Pre-trains a hand encoder by contrast: SimCLR, PeCLR or SiMHand, by name.

    python scripts/pretrain_simhand.py CONFIG.yaml [--set experiment=peclr --set training.max_steps=100 ...]     (or with torchrun)
    python scripts/pretrain_simhand.py CONFIG.yaml --publish        best encoder of the run → the config's `asset`
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from safetensors.torch import save_file

from data.hand_samples import in_share, open_hands
from data.hand_shards import HandShards
from data.shard_samples import ShardSamples
from pose_tools.files import atomic_path
from pose_tools.mano.sample_cache import SampleCache
from pose_tools.sampling import evenly
from pose_tools.simhand.encoder import ContrastiveModel, EncoderSettings, published_state_dict
from pose_tools.simhand.experiments import LossSettings, experiment
from pose_tools.simhand.hand_embedding import write_config
from pose_tools.simhand.hand_pool import HandPool
from pose_tools.simhand.pose_space import Normalise
from pose_tools.simhand.pretraining import PretrainingTask
from pose_tools.simhand.sync_batch_norm import synchronise_batch_norm
from pose_tools.training import TrainingError, TrainingSettings
from pose_tools.types import HandSample
from vlm import settings as typed
from vlm.commands.console import run
from vlm.commands.pose_training import best_of_run, command_line, fit_or_check, in_words, is_main_process, training_command
from vlm.commands.processes import rank_and_world


@dataclass(frozen=True)
class HandsSettings:
    """`kind`: "shards" (of make_synthetic.py hand-images or extract_hands.py), "cache" (squares that train_mano.py wrote) or a reader of
    data/hand_samples.py with its `options`.

    `validation`: share of the annotations or recordings that the encoder never sees, to judge it by.
    """

    folder: str
    kind: str = "cache"
    options: dict[str, Any] = field(default_factory=dict)
    limit: int | None = None
    validation: float = 0.05
    judge: int = 1000
    """So many held-out hands are scored; the linear probe is fitted on twice as many others."""


@dataclass(frozen=True)
class MiningSettings:
    dims: int = 14
    normalise: Normalise = "none"
    rank: int = 0
    """0: the nearest hand is the partner."""
    pairs: str | None = None
    """What scripts/mine_hands.py wrote (.npz) of the folder of shards; None mines when the training starts, by the exact search."""


@dataclass(frozen=True)
class PretrainingSettings:
    data: HandsSettings
    training: TrainingSettings
    experiment: str = "simhand_w"
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    loss: LossSettings = field(default_factory=LossSettings)
    mining: MiningSettings = field(default_factory=MiningSettings)
    image_size: int = 128
    head_hidden: int = 512
    head_output: int = 128
    synchronise_batch_norm: bool = True
    asset: str | None = None


def read_pools(data: HandsSettings, seed: int) -> tuple[HandPool, HandPool, HandPool]:
    """Hands to learn from, those of them that the probe is fitted on, and those held out."""
    samples: Sequence[HandSample]
    points = None
    if data.kind == "shards":
        shards = HandShards(data.folder)
        samples = ShardSamples(shards)
        clusters, usable, points = shards.video_ids.tolist(), samples.whole, shards.keypoints
    elif data.kind == "cache":
        samples = SampleCache(data.folder)
        clusters = [str(number) for number in samples.labels["annotation"]]
        usable = np.isfinite(samples.labels["joints_2d"]).all((1, 2)) & samples.labels["valid"].all(1)
    else:
        opened = open_hands(data.kind, data.folder, "train", val_share=0.0, **data.options)
        samples, clusters = opened, [str(opened.cluster(i)) for i in range(len(opened))]
        usable = np.array([whole(opened.label(i)) for i in range(len(opened))])
    videos = np.unique(clusters, return_inverse=True)[1]
    names, where = np.unique(clusters, return_index=True)
    kept = np.zeros(len(names), bool)
    kept[videos[where]] = [in_share(str(name), data.validation, seed) for name in names]
    learn, judge = np.flatnonzero(~kept[videos] & usable)[: data.limit], np.flatnonzero(kept[videos] & usable)
    if len(learn) == 0 or len(judge) == 0:
        raise TrainingError(f"{data.folder}: {len(learn)} hands to learn from and {len(judge)} to judge by: change data.validation"
                            f" ({int((~usable).sum())} hands lack key points and are left out)")  # fmt: skip
    few = lambda numbers, most: numbers[evenly(len(numbers), most)]  # noqa: E731
    pools = [HandPool(samples, videos, chosen, points) for chosen in (learn, few(learn, 2 * data.judge), few(judge, data.judge))]
    return pools[0], pools[1], pools[2]


def whole(label: HandSample) -> bool:
    """Whether all 21 key points are known."""
    known = label.joints_2d is not None and bool(np.isfinite(label.joints_2d).all())
    return known and (label.joints_valid is None or bool(np.all(label.joints_valid)))


def build(settings: PretrainingSettings) -> ContrastiveModel:
    """A fresh network; the same for the same seed."""
    torch.manual_seed(settings.training.seed)
    return ContrastiveModel(settings.encoder.build(), settings.head_hidden, settings.head_output).train()


def find_partners(pool: HandPool, mining: MiningSettings) -> np.ndarray:
    """(N,) each hand's partner in the pool, −1 without."""
    if mining.pairs is None:
        return pool.partners(dims=mining.dims, normalise=mining.normalise, rank=mining.rank)
    try:
        with np.load(mining.pairs, allow_pickle=False) as file:
            indices = file["indices"]
    except Exception as error:  # a cut-off archive can raise nearly anything
        raise TrainingError(f"mining.pairs: {mining.pairs}: not an .npz of scripts/mine_hands.py ({error})") from error
    try:
        return pool.mined_partners(indices, mining.rank)
    except ValueError as error:
        raise TrainingError(f"mining.pairs: {mining.pairs}: {error}") from error


def fit(settings: PretrainingSettings) -> None:
    kind, training = experiment(settings.experiment), settings.training
    _, world = rank_and_world()
    pool, probe, held_out = read_pools(settings.data, training.seed)
    mining = settings.mining
    partners = find_partners(pool, mining) if kind.mined else None
    if partners is not None and not (partners >= 0).any():
        raise TrainingError(f"{settings.data.folder}: none of {len(pool)} hands of {len(np.unique(pool.videos))} video(s) has a partner in "
                            f"another video: {kind.name} needs hands of several videos (simclr and peclr do not)")  # fmt: skip
    task = PretrainingTask(pool, kind, probe, held_out, partners=partners, loss=settings.loss, size=settings.image_size, seed=training.seed)
    model = build(settings)
    if settings.synchronise_batch_norm:
        synchronise_batch_norm(model)
    if is_main_process():
        millions = sum(p.numel() for p in model.encoder.parameters()) / 1e6
        if (chunks := training.batch_size // (training.micro_batch_size * world)) > 1:
            print(f"gradients are cached: a batch goes through the network in {chunks} parts, each twice, with batch norm of its own")
        print(f"{kind.name}: {len(task)} of {len(pool)} hands have a pair, {len(held_out)} to judge by; {millions:.2f} M parameters")
    fit_or_check(model, task, training)


def publish(settings: PretrainingSettings) -> None:
    """The best encoder of the run by torchvision's names, float32, for `load_encoder`, and beside it the size of its crops."""
    asset, weights, scores = best_of_run(settings.training, settings.asset)
    model = build(settings)
    model.load_state_dict(weights)
    Path(asset).parent.mkdir(parents=True, exist_ok=True)
    with atomic_path(asset) as temporary:
        save_file({name: value.contiguous() for name, value in published_state_dict(model.encoder).items()}, temporary)
    write_config(Path(asset).parent, settings.image_size)
    print(f"wrote {asset} ({Path(asset).stat().st_size / 1e6:.2f} MB): {in_words(scores)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    options = command_line(__doc__, PretrainingSettings, "simhand_small", "experiment=peclr", check=False).parse_args(arguments)
    with training_command(ValueError):
        settings = typed.load(PretrainingSettings, options.config, options.set)
        publish(settings) if options.publish else fit(settings)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
