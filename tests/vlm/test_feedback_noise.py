"""Points that are given back in training are moved by noise of their own row; the head learns the true ones."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.sample import assistant, user
from tests.tiny import tiny
from vlm.path_noise import SEED, PathNoise
from vlm.trainer import Collator

TRAJECTORY = {"head": "path", "steps": 4, "rate": 4.0, "position_code": "fourier", "feedback_noise": 0.1, "options": {"hidden": 16}}
CLIP = {"slow_frames": 1, "slow": "last", "pool": 2}


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(0)
    model, processor = tiny("llava", clip=CLIP, trajectory=TRAJECTORY)
    return model.train(), processor


def row(processor, number: int, path: bool = True) -> dict:
    rng = np.random.default_rng(number)
    frames = list(rng.integers(0, 255, (3, 48, 64, 3), np.uint8))
    answer = {"type": "trajectory", "points": rng.uniform(5, 40, (2, 4, 2))}
    asked = user({"type": "video", "video": frames, "times": [-0.5, -0.25, 0.0]}, "Where do my hands go?")
    return processor.pack([[asked, assistant(answer if path else "Nowhere.")]]) | {SEED: (0, number)}


def test_the_noise_belongs_to_the_row(parts) -> None:
    model, processor = parts
    collate = Collator(processor, PathNoise.of(model))
    rows = [row(processor, 0), row(processor, 1, path=False), row(processor, 2)]
    batch, singles = collate(rows), [collate([one]) for one in rows]
    assert "fed_back" not in singles[1] and "noise" not in batch
    torch.testing.assert_close(batch["fed_back"], torch.cat([singles[0]["fed_back"], singles[2]["fed_back"]]), rtol=0, atol=0)
    moved = batch["fed_back"] - batch["trajectories"]
    assert 0.05 < moved.std() < 0.2 and not torch.equal(moved[0], moved[1])


def test_it_reaches_the_language_model_alone(parts) -> None:
    model, processor = parts
    batch = Collator(processor, PathNoise.of(model))([row(processor, 0)])
    noisy = model(**batch)
    plain = model(**{name: value for name, value in batch.items() if name != "fed_back"})
    told = model(**(batch | {"fed_back": batch["trajectories"]}))
    torch.testing.assert_close(told.loss, plain.loss, rtol=0, atol=0)
    first, rest = (noisy.trajectories - plain.trajectories).abs().split([1, 3], dim=2)
    assert first.max() == 0 < rest.min(), "a path's first point is said before any is given back"
    assert noisy.losses["path_traj"] != plain.losses["path_traj"]


def test_without_feedback_there_is_no_noise() -> None:
    model, _ = tiny("llava", clip=CLIP, trajectory=TRAJECTORY | {"position_code": None})
    assert PathNoise.of(model) is None


def test_a_hand_that_is_not_there_is_given_back_where_published_labels_put_it() -> None:
    """Noise on its zeros would make a point of them, and the placeholder would not stand there."""
    model, processor = tiny("llava", clip=CLIP, trajectory=TRAJECTORY | {"position_code": "handsonvlm", "compat": "handsonvlm_fp32"})
    conversation = row(processor, 0)
    points, valid = conversation["encoded"].paths[0]
    points[0], valid[0] = 0, False
    batch = Collator(processor, PathNoise.of(model))([conversation])
    given = []
    model.model.trajectory_code.register_forward_hook(lambda module, inputs, output: given.append(inputs[0]))
    model.train()(**batch)
    assert given[0][0, 0].tolist() == [[0.25, 1.5]] * 4
    torch.testing.assert_close(given[0][0, 1], batch["fed_back"][0, 1])
    assert not torch.equal(batch["fed_back"][0, 1], batch["trajectories"][0, 1])
