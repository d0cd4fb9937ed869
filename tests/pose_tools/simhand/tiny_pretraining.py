"""A tiny pre-training for test_pretraining.py; also run under torchrun: `tiny_pretraining.py OUTPUT KIND key=value ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import torch

from pose_tools.process_group import end_process_group
from pose_tools.simhand.encoder import ContrastiveModel, Encoder
from pose_tools.simhand.experiments import experiment
from pose_tools.simhand.hand_pool import HandPool
from pose_tools.simhand.pretraining import PretrainingTask
from pose_tools.simhand.sync_batch_norm import synchronise_batch_norm
from pose_tools.training import TrainingSettings, train
from pose_tools.types import HandSample


def samples(count: int = 24, seed: int = 0) -> list[HandSample]:
    """Noise pictures of 48 px with key points inside, every other hand a left one."""
    rng, found = np.random.default_rng(seed), []
    for number in range(count):
        labels = {"joints_2d": rng.uniform(12, 36, (21, 2)), "joints_3d": rng.normal(size=(21, 3)) * 0.05}
        image, box = rng.integers(0, 255, (48, 48, 3), dtype=np.uint8), np.array([12.0, 12, 36, 36])
        found.append(HandSample(image=image, side="left" if number % 2 else "right", bbox_xyxy=box, **labels))
    return found


def pool(count: int = 24, seed: int = 0) -> HandPool:
    return HandPool(samples(count, seed), np.arange(count) // 3)


def task(kind: str = "simhand_w") -> PretrainingTask:
    hands = pool()
    return PretrainingTask(hands, experiment(kind), hands, pool(6, 1), partners=hands.partners(), size=32)


def network() -> ContrastiveModel:
    torch.manual_seed(0)
    return synchronise_batch_norm(ContrastiveModel(Encoder((1, 1), (8, 16), 8, "basic"), 16, 8)).train()


def settings(output: Path | str, **changes) -> TrainingSettings:
    base = {"max_steps": 6, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-3, "warmup_steps": 2, "schedule": "cosine",
            "log_every": 1, "evaluate_every": 3, "save_every": 3, "best_metric": "goodness"}  # fmt: skip
    return TrainingSettings(output=str(output), **(base | changes))


if __name__ == "__main__":
    changes = {key: json.loads(value) for key, value in (word.split("=") for word in sys.argv[3:])}
    train(network(), task(sys.argv[2]), settings(sys.argv[1], **changes))
    end_process_group()
