"""Trains EgoHMR's stages on EgoBody, or on the synthetic rooms: stage 1 first, then stage 2.

    python scripts/train_egohmr.py CONFIG.yaml [--set training.max_steps=100 ...]      (or with torchrun, see the configs)
    python scripts/train_egohmr.py CONFIG.yaml --check                                 contact sheet of the labels, one batch; no training
    python scripts/train_egohmr.py CONFIG.yaml --publish                               best weights of the run → the config's `asset` folder

egohmr_stage1.yaml and egohmr_stage2.yaml have the published losses, schedule and sizes; egohmr_stage1_small.yaml and
egohmr_stage2_small.yaml train on two cores. The scenes' points come from scripts/preprocess_scenes.py.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from safetensors.torch import load_file

from data.ego_body import EgoBody, EgoBodyError, read_mocap
from pose_tools.body_models import Smpl, load_smpl
from pose_tools.egohmr.body import true_pose
from pose_tools.egohmr.checkpoint import load_backbone
from pose_tools.egohmr.folder import STATISTICS, InputSizes, read_statistics, save_stage, write_statistics
from pose_tools.egohmr.stage1 import Stage1, Stage1Config
from pose_tools.egohmr.stage2 import Stage2, Stage2Config, pose_statistics
from pose_tools.egohmr.training_task import StageTask, TrainedStage1, TrainedStage2, label_sheet
from pose_tools.image_io import write_image
from pose_tools.simhand.encoder import CheckpointError, Encoder, EncoderSettings
from pose_tools.training import TrainingError, TrainingSettings, train
from vlm import settings as typed
from vlm.commands.console import CommandError, run

GENDERS: tuple[Literal["neutral", "male", "female"], ...] = ("neutral", "male", "female")


@dataclass(frozen=True)
class RoomSettings:
    """EgoBody's `folder` and the `scenes` that preprocess_scenes.py cut out of it for this stage.

    `points` of a scene are kept, drawn anew each epoch (None: all). `validate_every`: every so many of split val are judged.
    """

    folder: str
    scenes: str
    side: int = 224
    points: int | None = None
    augment: bool = True
    limit: int | None = None
    validate_every: int = 20


@dataclass(frozen=True)
class EgoHMRSettings:
    """`stage` 1 or 2; `smpl`: a folder of SMPL files (None: the licence-free stand-in body); `weights` of loss terms that shall differ.

    `encoder.start` may also be the other stage's weights. Stage 1: `mocap`: cmu_mocap.npz for the adversary (None: the training set's own
    poses), `samples` poses a picture. Stage 2: `statistics`: preprocess_stats.npz (None: those of the training poses), `collision_from`:
    epoch from which the scene's penetration counts (None: never), `transl_noise` metres and `step_power`: see `TrainedStage2`.
    """

    stage: Literal[1, 2]
    data: RoomSettings
    training: TrainingSettings
    encoder: EncoderSettings = field(default_factory=EncoderSettings)
    stage1: Stage1Config = field(default_factory=Stage1Config)
    stage2: Stage2Config = field(default_factory=Stage2Config)
    weights: dict[str, float] = field(default_factory=dict)
    smpl: str | None = None
    mocap: str | None = None
    samples: int = 2
    statistics: str | None = None
    collision_from: int | None = 3
    transl_noise: float = 0.0
    step_power: float = 1.0
    asset: str | None = None


def bodies_of(settings: EgoHMRSettings) -> Smpl | dict[str, Smpl]:
    return load_smpl() if settings.smpl is None else {gender: load_smpl(settings.smpl, gender) for gender in GENDERS}


def open_rooms(settings: EgoHMRSettings, bodies: Smpl | Mapping[str, Smpl], split: Literal["train", "val"]) -> EgoBody:
    """A split with its scenes; only training pictures are augmented and their points thinned at random."""
    data, learn = settings.data, split == "train"
    return EgoBody(
        data.folder, split, smpl=bodies, scenes=data.scenes, stage=settings.stage, side=data.side, augment=data.augment and learn,
        points=data.points, seed=settings.training.seed,
    )  # fmt: skip


def build(settings: EgoHMRSettings, bodies: Smpl | Mapping[str, Smpl], statistics: tuple[np.ndarray, np.ndarray] | None) -> Stage1 | Stage2:
    """A fresh stage; the same for the same seed."""
    torch.manual_seed(settings.training.seed)
    encoder: Encoder = settings.encoder.build() if settings.encoder.start is None else load_backbone(settings.encoder.start)
    if settings.stage == 1:
        return Stage1(bodies, settings.stage1, encoder)
    assert statistics is not None
    return Stage2(bodies, *statistics, settings.stage2, encoder)


def wrapped(settings: EgoHMRSettings, stage: Stage1 | Stage2) -> TrainedStage1 | TrainedStage2:
    if isinstance(stage, Stage1):
        return TrainedStage1(stage, settings.samples)
    return TrainedStage2(stage, settings.collision_from, settings.transl_noise, settings.step_power)


def statistics_of(settings: EgoHMRSettings, people: EgoBody) -> tuple[np.ndarray, np.ndarray]:
    """The 6D statistics: those of a file, or of the training poses as they are annotated."""
    if settings.statistics is not None:
        return read_statistics(settings.statistics)
    mean, std = pose_statistics(true_pose({name: torch.from_numpy(value) for name, value in people.poses().items()}))
    return mean.numpy(), std.numpy()


def fit(settings: EgoHMRSettings, check_only: bool = False) -> None:
    bodies = bodies_of(settings)
    people, held_out = (open_rooms(settings, bodies, split) for split in ("train", "val"))
    real = None
    if settings.stage == 1:
        real = read_mocap(settings.mocap) if settings.mocap else {name: people.poses()[name] for name in ("body_pose", "betas")}
    statistics = statistics_of(settings, people) if settings.stage == 2 else None
    stage = build(settings, bodies, statistics)
    task = StageTask(people, held_out, settings.stage, real=real, spacing=settings.data.validate_every, limit=settings.data.limit,
                     weights=settings.weights, seed=settings.training.seed)  # fmt: skip
    output, model = Path(settings.training.output), wrapped(settings, stage)
    if int(os.environ.get("RANK", 0)) == 0:
        output.mkdir(parents=True, exist_ok=True)
        write_image(output / "labels.jpg", label_sheet(people))
        if isinstance(stage, Stage2):
            write_statistics(output / STATISTICS, stage.mean, stage.std)
        millions = sum(p.numel() for p in model.parameters()) / 1e6
        count = f"{len(task)} pictures to learn from, {len(task.judged)} to judge by"
        print(f"{count}; {millions:.2f} M parameters; look at {output / 'labels.jpg'}")
    if check_only:
        batch = task.collate([task.sample(index, 0) for index in range(min(8, len(task)))])
        print({name: round(value.item(), 4) for name, value in task.losses(model, batch).items()})
        return
    result = train(model, task, settings.training)
    print(f"step {result.step}, best: {result.best}")
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()  # else gloo's threads may still run when the process ends, and abort it


def publish(settings: EgoHMRSettings) -> None:
    """The run's best weights into the asset folder, which `pose_tools.egohmr.folder.load_folder` opens."""
    output = Path(settings.training.output)
    if not settings.asset:
        raise TrainingError("--publish needs `asset` in the config: the folder to write")
    if not (output / "best.safetensors").is_file():
        raise TrainingError(f"{output / 'best.safetensors'} is missing: train first, at least to the first evaluation")
    stage = build(settings, bodies_of(settings), read_statistics(output / STATISTICS) if settings.stage == 2 else None)
    wrapped(settings, stage).load_state_dict(load_file(output / "best.safetensors"))
    sizes = InputSizes(settings.data.side, settings.data.points or InputSizes.points)
    path = save_stage(settings.asset, stage, sizes)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB): {json.loads((output / 'best.json').read_text())}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="YAML file of EgoHMRSettings, such as scripts/configs/egohmr_stage1_small.yaml")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="such as training.max_steps=100")
    parser.add_argument("--check", action="store_true", help="write the labels' contact sheet, run one batch")
    parser.add_argument("--publish", action="store_true", help="write the best weights of the run to the config's asset folder")
    options = parser.parse_args(arguments)
    logging.getLogger("pose_tools").setLevel(logging.INFO)
    try:
        settings = typed.load(EgoHMRSettings, options.config, options.set)
        publish(settings) if options.publish else fit(settings, options.check)
    except (EgoBodyError, CheckpointError, TrainingError, FileNotFoundError, ValueError) as error:
        raise CommandError(str(error)) from error
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
