"""The noise of a path's training, a function of the row it belongs to: then a step is the same however many processes take it, and
whether or not the run was taken up again."""

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
    """`shape` of the noise that the head's loss needs for one path, None for none; `token`, `steps`: id and number of the tokens of a
    path; `empty`: a row without a path has a block, too, as HandsOnVLM's loss counts it; `feedback`: deviation, in units of the grid, of
    what is added to the points that the language model is given back."""

    shape: tuple[int, ...] | None
    token: int
    steps: int
    empty: bool
    feedback: float = 0.0

    @classmethod
    def of(cls, model: Any) -> PathNoise | None:
        """What a HandVLM needs; None for one that draws nothing."""
        settings: Any = getattr(model.config, "trajectory", None) or {}
        head = getattr(model, "trajectory_head", None)
        shape: tuple[int, ...] | None = None
        if hasattr(head, "encode"):
            shape = (2, settings["steps"], head.latent)
        elif getattr(head, "shared_latent", 0):
            shape = (head.shared_latent,)
        feedback = settings.get("feedback_noise", 0.0) if settings.get("position_code") else 0.0
        if shape is None and not feedback:
            return None
        return cls(shape, model.config.trajectory_token_id, settings["steps"], bool(settings.get("compat")), feedback)

    def draw(self, seeds: Sequence[Sequence[int]], batch: Mapping[str, Any]) -> dict[str, Tensor]:
        """What is drawn for the rows of a batch: `noise` (blocks, *shape) and `fed_back` (M, 2, T, 2), float32; nothing without a path."""
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
    """`counts` blocks of each row, from its own seed."""
    drawn = [np.random.default_rng(seed).standard_normal((n, *shape), np.float32) for seed, n in zip(seeds, counts, strict=True)]
    return torch.from_numpy(np.concatenate(drawn))
