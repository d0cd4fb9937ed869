"""Trains EgoHMR's stages on EgoBody, or on the synthetic rooms: stage 1 first, then stage 2.

    python scripts/train_egohmr.py CONFIG.yaml [--set training.max_steps=100 ...]      (or with torchrun, see the configs)
    python scripts/train_egohmr.py CONFIG.yaml --check                                 contact sheet of the labels, one batch; no training
    python scripts/train_egohmr.py CONFIG.yaml --publish                               best weights of the run → the config's `asset` folder

egohmr_stage1.yaml and egohmr_stage2.yaml have the published losses, schedule and sizes; egohmr_stage1_small.yaml and
egohmr_stage2_small.yaml train on two cores. The scenes' points come from scripts/preprocess_scenes.py.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch

from data.ego_body import EgoBody, read_mocap
from pose_tools.body_models import Smpl, load_smpl
from pose_tools.egohmr.body import true_pose
from pose_tools.egohmr.checkpoint import load_backbone
from pose_tools.egohmr.folder import STATISTICS, InputSizes, read_statistics, save_stage, write_statistics
from pose_tools.egohmr.stage1 import Stage1, Stage1Config
from pose_tools.egohmr.stage2 import Stage2, Stage2Config, pose_statistics
from pose_tools.egohmr.training_task import StageTask, TrainedStage1, TrainedStage2, label_sheet
from pose_tools.simhand.encoder import Encoder, EncoderSettings
from pose_tools.training import TrainingSettings
from vlm import settings as typed
from vlm.commands.console import run
from vlm.commands.pose_training import announce, best_of_run, command_line, fit_or_check, in_words, is_main_process, training_command

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
    model = wrapped(settings, stage)
    if is_main_process():
        counts = f"{len(task)} pictures to learn from, {len(task.judged)} to judge by"
        announce(settings.training, label_sheet(people), model, counts)
        if isinstance(stage, Stage2):
            write_statistics(Path(settings.training.output) / STATISTICS, stage.mean, stage.std)
    fit_or_check(model, task, settings.training, check_only)


def publish(settings: EgoHMRSettings) -> None:
    """The run's best weights into the asset folder, which `pose_tools.egohmr.folder.load_folder` opens."""
    asset, weights, scores = best_of_run(settings.training, settings.asset)
    statistics = read_statistics(Path(settings.training.output) / STATISTICS) if settings.stage == 2 else None
    stage = build(settings, bodies_of(settings), statistics)
    wrapped(settings, stage).load_state_dict(weights)
    sizes = InputSizes(settings.data.side, settings.data.points or InputSizes.points)
    path = save_stage(asset, stage, sizes)
    print(f"wrote {path} ({path.stat().st_size / 1e6:.2f} MB): {in_words(scores)}")


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    options = command_line(__doc__, EgoHMRSettings, "egohmr_stage1_small").parse_args(arguments)
    with training_command(ValueError, FileNotFoundError):
        settings = typed.load(EgoHMRSettings, options.config, options.set)
        publish(settings) if options.publish else fit(settings, options.check)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
