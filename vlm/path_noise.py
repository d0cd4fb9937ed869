"""Noise for training on paths. It is drawn from the seed of the row that it belongs to, so that a step is the same with any number of
processes and in a resumed run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED = "noise_seed"
"""The key of a row's seed, a sequence of whole numbers."""


@dataclass(frozen=True)
class PathNoise:
    """What is drawn for the paths of one model.

    shape: of the noise that the head's loss needs for one path; None where it needs none.
    token, steps: id of the path token, and how many of them make a path.
    empty: a row without a path gets a block of noise too, because HandsOnVLM's loss counts it as an empty path.
    feedback: standard deviation, in units of the grid, of what is added to the points that are given back to the language model.
    """

    shape: tuple[int, ...] | None
    token: int
    steps: int
    empty: bool
    feedback: float = 0.0

    @classmethod
    def of(cls, model: Any) -> PathNoise | None:
        """What a HandVLM needs; None for one that draws nothing."""
        settings, head = getattr(model.config, "trajectory_settings", None), getattr(model, "trajectory_head", None)
        if settings is None:
            return None
        shape: tuple[int, ...] | None = None
        if getattr(head, "latent_per_step", False):
            shape = (2, settings.steps, head.latent)
        elif getattr(head, "shared_latent", 0):
            shape = (head.shared_latent,)
        feedback = settings.feedback_noise if settings.position_code else 0.0
        if shape is None and not feedback:
            return None
        return cls(shape, model.config.trajectory_token_id, settings.steps, bool(settings.compat), feedback)

    def draw(self, seeds: Sequence[Sequence[int]], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """For a batch of rows with these `seeds`: `noise` (blocks, *shape) for the head's loss and `fed_back` (M, 2, T, 2), the points of
        its M paths with noise on them, both float32; nothing where no row has a path."""
        paths = ((batch["input_ids"] == self.token).sum(1) // self.steps).tolist()
        if not any(paths):
            return {}
        drawn = {}
        if self.shape is not None:
            blocks = [max(count, int(self.empty)) for count in paths]
            drawn["noise"] = _normal(seeds, blocks, self.shape)
        if self.feedback:
            points, valid = batch["trajectories"], batch["trajectory_valid"].unsqueeze(-1)  # no noise where nothing is known
            drawn["fed_back"] = points + valid * self.feedback * _normal([[*seed, 1] for seed in seeds], paths, tuple(points.shape[1:]))
        return drawn


def _normal(seeds: Sequence[Sequence[int]], counts: Sequence[int], shape: tuple[int, ...]) -> Tensor:
    """Standard normal blocks (sum of counts, *shape): `counts` of each row, drawn from its own seed."""
    drawn = [np.random.default_rng(seed).standard_normal((n, *shape), np.float32) for seed, n in zip(seeds, counts, strict=True)]
    return torch.from_numpy(np.concatenate(drawn))
