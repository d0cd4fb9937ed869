"""The noise of a path head's training loss, a function of the row it belongs to: then a step is the same however many processes take it,
and whether or not the run was taken up again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

SEED = "noise_seed"
"""The key of a row's seed, a sequence of whole numbers."""


@dataclass(frozen=True)
class PathNoise:
    """`shape` of one path's noise; `token`, `steps`: id and number of the tokens of a path; `empty`: a row without a path has a block,
    too, as HandsOnVLM's loss counts it."""

    shape: tuple[int, ...]
    token: int
    steps: int
    empty: bool

    @classmethod
    def of(cls, model: Any) -> PathNoise | None:
        """What a HandVLM's head needs; None for one that draws nothing."""
        settings: Any = getattr(model.config, "trajectory", None)
        head = getattr(model, "trajectory_head", None)
        if hasattr(head, "encode"):
            shape: tuple[int, ...] = (2, settings["steps"], head.latent)
        elif getattr(head, "shared_latent", 0):
            shape = (head.shared_latent,)
        else:
            return None
        return cls(shape, model.config.trajectory_token_id, settings["steps"], bool(settings.get("compat")))

    def draw(self, seeds: Sequence[Sequence[int]], input_ids: Tensor) -> Tensor | None:
        """(blocks, *shape) float32 for the rows of `input_ids` (B, L); None where there is no path."""
        paths = ((input_ids == self.token).sum(1) // self.steps).tolist()
        if not any(paths):
            return None
        blocks = [max(count, int(self.empty)) for count in paths]
        drawn = [np.random.default_rng(seed).standard_normal((n, *self.shape), np.float32) for seed, n in zip(seeds, blocks, strict=True)]
        return torch.from_numpy(np.concatenate(drawn))
