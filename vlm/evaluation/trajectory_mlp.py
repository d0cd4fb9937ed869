"""Small networks that see no picture: how much of the future do the past places alone tell, and how much the place of the goal besides.

A network is a function of its training questions and its settings; it is kept in a file named after both.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.files import atomic_path
from vlm.evaluation.referral import drawn_order
from vlm.evaluation.trajectory import ClipQuestion
from vlm.evaluation.trajectory_baselines import last_position

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class MLPSettings:
    """`goal`: whether the true goal point and the asked hand are inputs. A tenth of the starts is held out to pick the best step."""

    goal: bool = False
    width: int = 256
    layers: int = 3
    steps: int = 4000
    batch_size: int = 256
    lr: float = 2e-3
    weight_decay: float = 1e-2
    check_every: int = 200
    seed: int = 0


class PathMLP(nn.Module):
    """Features (N, F) → displacements (N, 2, T, 2) of both hands from where they were last seen, in widths of the frame."""

    def __init__(self, inputs: int, steps: int, settings: MLPSettings) -> None:
        super().__init__()
        sizes = [inputs] + [settings.width] * settings.layers
        layers: list[nn.Module] = []
        for before, after in zip(sizes, sizes[1:]):
            layers += [nn.Linear(before, after), nn.GELU()]
        self.network = nn.Sequential(*layers, nn.Linear(settings.width, 4 * steps))
        self.steps = steps
        self.register_buffer("mean", torch.zeros(inputs))
        self.register_buffer("std", torch.ones(inputs))

    def forward(self, features: Tensor) -> Tensor:
        return self.network((features - self.mean) / self.std).view(-1, 2, self.steps, 2)

    def answer(self, question: ClipQuestion, goal: bool) -> np.ndarray:
        """(2, T, 2) pixels."""
        with torch.inference_mode():
            moves = self(torch.from_numpy(features([question], goal)))[0]
        return last_position(question) + moves.double().numpy() * question.size[0]


def features(questions: Sequence[ClipQuestion], goal: bool) -> np.ndarray:
    """(N, F) float32: per hand the last place in the frame, the past relative to it in widths, and what was seen; with `goal` the goal
    point relative to each hand, whether there is one, and which hand is asked about."""
    rows = []
    for question in questions:
        width, height = question.size
        last = last_position(question)[:, 0]
        past = (question.past - last[:, None]) / width
        row = [last / [width, height], np.nan_to_num(past), np.isfinite(past).all(-1)]
        if goal:
            point = goal_point(question)
            known = np.isfinite(point).all()
            toward = (point - last) / width if known else np.zeros((2, 2))
            row += [toward, [known, question.side == "left", question.side == "right"]]
        rows.append(np.concatenate([np.ravel(part).astype(np.float32) for part in row]))
    return np.stack(rows)


def goal_point(question: ClipQuestion) -> np.ndarray:
    """(2,) the middle of the goal in pixels of the last frame; NaN where the question has none, or the data set does not say."""
    point = question.sample.targets.get("goal_point")
    return np.full(2, np.nan) if point is None else np.asarray(point, dtype=float)


def train_mlp(questions: Sequence[ClipQuestion], settings: MLPSettings, folder: Path) -> PathMLP:
    """The network of these questions and settings: read from `folder` if it is there, else trained (a minute on one core) and kept."""
    from safetensors.torch import load_file, save_file

    inputs = torch.from_numpy(features(questions, settings.goal))
    target = np.stack([(q.future - last_position(q)) / q.size[0] for q in questions]).astype(np.float32)
    valid = np.stack([q.valid for q in questions])
    model = _fresh(inputs.shape[1], target.shape[2], settings)
    digest = hashlib.sha256(repr(sorted(asdict(settings).items())).encode())
    for array in (inputs.numpy(), target, valid):
        digest.update(np.ascontiguousarray(array).tobytes())
    digest.update("\n".join(q.start for q in questions).encode())
    path = folder / f"{'past_and_goal' if settings.goal else 'past_only'}-{digest.hexdigest()[:12]}.safetensors"
    if path.is_file():
        model.load_state_dict(load_file(path))
        return model.eval()
    held_out = torch.tensor(_held_out(questions, settings.seed))
    model.load_state_dict(_fit(model, inputs, torch.from_numpy(np.nan_to_num(target)), torch.from_numpy(valid), held_out, settings))
    with atomic_path(path) as temporary:
        save_file(model.state_dict(), temporary)
    return model.eval()


def _fresh(inputs: int, steps: int, settings: MLPSettings) -> PathMLP:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(settings.seed)
        return PathMLP(inputs, steps, settings)


def _held_out(questions: Sequence[ClipQuestion], seed: int) -> list[bool]:
    """Which questions belong to the tenth of the clusters that chooses the best step; none where there are fewer than ten."""
    clusters = drawn_order({q.cluster for q in questions}, seed, key=str)
    chosen = set(clusters[: len(clusters) // 10])
    return [q.cluster in chosen for q in questions]


def _fit(model: PathMLP, inputs: Tensor, target: Tensor, valid: Tensor, held_out: Tensor, settings: MLPSettings) -> dict[str, Tensor]:
    """Minimises the mean distance over valid hand-steps (what ADE counts); returns the weights that did best on what is held out."""
    rows = torch.nonzero(~held_out).flatten()
    model.mean.copy_(inputs[rows].mean(0))
    model.std.copy_(inputs[rows].std(0, unbiased=False).clamp(min=1e-3))
    optimizer = torch.optim.AdamW(model.parameters(), lr=settings.lr, weight_decay=settings.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, settings.steps)
    generator = torch.Generator().manual_seed(settings.seed)
    best, state = float("inf"), {name: value.clone() for name, value in model.state_dict().items()}
    for step in range(1, settings.steps + 1):
        batch = rows[torch.randint(len(rows), (settings.batch_size,), generator=generator)]
        loss = _mean_distance(model(inputs[batch]), target[batch], valid[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        if step % settings.check_every == 0 or step == settings.steps:
            judged = held_out if bool(held_out.any()) else ~held_out
            with torch.no_grad():
                error = float(_mean_distance(model(inputs[judged]), target[judged], valid[judged]))
            if error < best:
                best, state = error, {name: value.clone() for name, value in model.state_dict().items()}
    logger.info("a network on %d features of %d questions: %.4f widths on what was held out", inputs.shape[1], len(rows), best)
    return state


def _mean_distance(moves: Tensor, target: Tensor, valid: Tensor) -> Tensor:
    return ((moves - target).square().sum(-1) + 1e-12).sqrt()[valid].mean() if bool(valid.any()) else moves.sum() * 0
