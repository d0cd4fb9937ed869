"""Trains the small detector on synthetic scenes, or scores one.

    python scripts/train_detector.py CONFIG.yaml [--set training.max_steps=100 ...]       (or with torchrun, see the config)
    python scripts/train_detector.py CONFIG.yaml --publish                                best weights → calibrated asset with its card
    python scripts/train_detector.py --evaluate [FOLDER] --data cache/synthetic --split test
"""

from __future__ import annotations

import argparse
import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from data.synthetic.detection import DetectionScenes
from data.synthetic.detection_scores import answers, calibrate, scores
from data.synthetic.factors import COLOURS, NAMES
from pose_tools import small_detector_losses
from pose_tools.files import write_text
from pose_tools.small_detector import DEFAULT_FOLDER, SmallDetector, SmallDetectorConfig, load_small_detector
from pose_tools.training import TrainingError, TrainingSettings
from vlm import settings as typed
from vlm.commands.console import run
from vlm.commands.pose_training import fit_or_check, training_command


@dataclass(frozen=True)
class NetworkSettings:
    image_size: int = 192
    embedding_size: int = 32
    hidden_sizes: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (2, 2, 3)


@dataclass(frozen=True)
class DetectorSettings:
    """`data`: folder with train/, val/ and test/; `asset`: where `--publish` writes. `limit`: train on the first so many scenes."""

    data: str
    training: TrainingSettings
    asset: str = str(DEFAULT_FOLDER)
    network: NetworkSettings = field(default_factory=NetworkSettings)
    limit: int | None = None
    val_limit: int = 2000


class DetectorTask:
    """The small detector's task for `pose_tools.training.train`."""

    weights = small_detector_losses.WEIGHTS

    def __init__(self, scenes: DetectionScenes, held_out: DetectionScenes):
        self.scenes, self.held_out = scenes, held_out
        self.sample, self.collate = scenes.sample, scenes.collate

    def __len__(self) -> int:
        return len(self.scenes)

    def counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return small_detector_losses.counts(batch)

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        return small_detector_losses.losses(model, batch)

    def evaluate(self, model: SmallDetector) -> dict[str, float]:
        return scores(*answers(model, self.held_out))


def publish(settings: DetectorSettings, note: str) -> None:
    """Best weights of the run → asset folder: calibrated on val, scored on test, with a card."""
    output = Path(settings.training.output)
    if not (output / "best.safetensors").is_file():
        raise TrainingError(f"{output} holds no best.safetensors: train first, at least to the first evaluation")
    model = build(settings)
    # both splits are read before anything is written
    val, test = (DetectionScenes(Path(settings.data) / split, image_size=model.config.image_size) for split in ("val", "test"))
    model.load_state_dict(load_file(output / "best.safetensors"))
    found, truth = answers(model.eval(), val)
    model.config = replace(model.config, calibration=calibrate(found["logit"], truth["present"]))
    model.save(settings.asset)
    result = scores(*answers(load_small_detector(settings.asset), test))
    write_text(Path(settings.asset) / "README.md", card(settings, result, json.loads((output / "best.json").read_text())["step"], note))
    print(f"wrote {settings.asset}")


def evaluate(folder: str | Path | None, data: str, split: str) -> dict[str, float]:
    """Prints the scores of the detector in a folder on a split of `data`."""
    model = load_small_detector(folder)
    result = scores(*answers(model, DetectionScenes(Path(data) / split, image_size=model.config.image_size)))
    print(json.dumps({"split": split} | {k: round(v, 4) for k, v in result.items()}, indent=1))
    return result


def card(settings: DetectorSettings, result: dict[str, float], step: int, note: str) -> str:
    """The model card: what it is, the command, the data's hash, and the scores on test."""
    t = settings.training
    manifests = {s: hashlib.sha256((Path(settings.data) / s / "manifest.json").read_bytes()).hexdigest() for s in ("train", "val", "test")}
    rows = "\n".join(f"| {name} | {value:.3f} |" for name, value in result.items())
    size = sum(p.numel() for p in build(settings).parameters())
    return f"""# Small hand detector

Finds the left and the right hand, what each holds, and named objects, in pictures of this project's synthetic world, on which
alone it was trained; for photographs of real hands use the MediaPipe backend of `detect_hands`. {size / 1e6:.2f} M parameters,
192-pixel input, matrices as float16. It is also the vision tower of the small model.

- Command: `OMP_NUM_THREADS=1 torchrun --nproc-per-node 2 scripts/train_detector.py scripts/configs/detector_small.yaml`, then `--publish`
- Seed {t.seed}, best of {t.max_steps} steps of {t.batch_size} pictures by `{t.best_metric}` on val: step {step}
- Data: `scripts/make_synthetic.py stills`; sha256 of the manifests: {", ".join(f"{s} `{h[:16]}`" for s, h in manifests.items())}
- Licence: Apache-2.0, as the project
{note}

Scores on the test split (`scripts/train_detector.py --evaluate --data {settings.data} --split test`): box accuracy at IoU 0.5
counts a thing that is there but not reported as missed; `named` asks for every object whose name and colour occur once.

| metric | value |
|---|---|
{rows}
"""


def build(settings: DetectorSettings) -> SmallDetector:
    return SmallDetector(SmallDetectorConfig(names=NAMES, colours=COLOURS, **vars(settings.network)))


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", nargs="?", help="YAML file of DetectorSettings")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as training.max_steps=100")
    parser.add_argument("--publish", action="store_true", help="write the best weights of the run to the asset folder")
    parser.add_argument("--evaluate", nargs="?", const=str(DEFAULT_FOLDER), metavar="FOLDER", help="score the detector in FOLDER")
    parser.add_argument("--note", help="a line for the card of --publish: what the settings do not tell")
    parser.add_argument("--data", default="cache/synthetic")
    parser.add_argument("--split", default="test", choices=("train", "val", "test"))
    options = parser.parse_args(arguments)
    if not options.config and not options.evaluate:
        parser.error("a config is needed, such as scripts/configs/detector_small.yaml")
    with training_command():
        if options.evaluate:
            evaluate(options.evaluate, options.data, options.split)
            return 0
        settings = typed.load(DetectorSettings, options.config, options.set)
        if options.publish:
            publish(settings, f"- {options.note}" if options.note else "")
        else:
            fit(settings)
    return 0


def fit(settings: DetectorSettings) -> None:
    """Trains on the train split, looking at val; the run is in the settings' output folder."""
    torch.manual_seed(settings.training.seed)
    size = settings.network.image_size
    folder, seed = Path(settings.data), settings.training.seed
    train_scenes = DetectionScenes(folder / "train", image_size=size, augment=True, seed=seed, limit=settings.limit)
    held_out = DetectionScenes(folder / "val", image_size=size, limit=settings.val_limit)
    task = DetectorTask(train_scenes, held_out)
    fit_or_check(build(settings), task, settings.training)


if __name__ == "__main__":
    sys.exit(run(main))
