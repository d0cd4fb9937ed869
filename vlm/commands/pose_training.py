"""What the scripts that train the specialists of hands and bodies share: command line, how a run begins and ends, what is published."""

from __future__ import annotations

import argparse
import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from safetensors.torch import load_file
from torch import Tensor, nn

from pose_tools.image_io import write_image
from pose_tools.training import Task, TrainingError, TrainingSettings, train
from vlm.commands.console import CommandError
from vlm.commands.processes import rank_and_world


def command_line(
    doc: str | None, settings: type, example: str, change: str = "training.max_steps=100", *, check: bool = True
) -> argparse.ArgumentParser:
    """CONFIG (such as `example` of scripts/configs), --set (such as `change`), --check, --publish; `doc` is the script's own text."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help=f"YAML file of {settings.__name__}, such as scripts/configs/{example}.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help=f"such as {change}")
    if check:
        parser.add_argument("--check", action="store_true", help="check the labels, write the contact sheet, run one batch")
    parser.add_argument("--publish", action="store_true", help="write the best weights of the run to the config's `asset`")
    return parser


@contextmanager
def training_command(*errors: type[Exception]) -> Iterator[None]:
    """Around all that a script does: progress is logged, and `errors` that are no UserErrors become CommandError."""
    logging.getLogger("pose_tools").setLevel(logging.INFO)
    try:
        yield
    except errors as error:
        raise CommandError(str(error)) from error


def is_main_process() -> bool:
    return rank_and_world()[0] == 0


def announce(training: TrainingSettings, sheet: np.ndarray, model: nn.Module, counts: str) -> None:
    """Makes the run's folder with the labels' contact sheet (RGB uint8) in it, and prints what is about to be trained."""
    labels = Path(training.output) / "labels.jpg"
    labels.parent.mkdir(parents=True, exist_ok=True)
    write_image(labels, sheet)
    print(f"{counts}; {sum(p.numel() for p in model.parameters()) / 1e6:.2f} M parameters; look at {labels}")


def fit_or_check(model: nn.Module, task: Task, training: TrainingSettings, check_only: bool = False) -> None:
    """Trains, or only prints the mean losses of one batch and their weighted sum."""
    if not check_only:
        result = train(model, task, training)
        if is_main_process():
            print(f"step {result.step}, best: {in_words(result.best) if result.best else 'none yet'}")
        return
    batch = task.collate([task.sample(i, 0) for i in range(min(8, len(task)))])
    counts = task.counts(batch)
    means = {name: float(value.detach() / counts[name].clamp(min=1)) for name, value in task.losses(model, batch).items()}
    means["total"] = sum(task.weights[name] * value for name, value in means.items())
    print({name: round(value, 4) for name, value in means.items()})


def in_words(scores: Mapping[str, float]) -> str:
    """Scores for people, as the training's log has them: "step 500, pa_mpjpe 11.600"."""
    return ", ".join(f"{name} {value:.3f}" if isinstance(value, float) else f"{name} {value}" for name, value in scores.items())


def best_of_run(training: TrainingSettings, asset: str | None, *beside: str) -> tuple[str, dict[str, Tensor], dict[str, float]]:
    """What --publish begins with: where to write, the run's best weights, and their scores.

    TrainingError without `asset`, and where the run lacks the weights or one of the files `beside` them.
    """
    if not asset:
        raise TrainingError("--publish needs `asset` in the config: where to write")
    output = Path(training.output)
    for name in ("best.safetensors", *beside):
        if not (output / name).is_file():
            raise TrainingError(f"{output / name} is missing: train first, at least to the first evaluation")
    return asset, load_file(output / "best.safetensors"), json.loads((output / "best.json").read_text())
