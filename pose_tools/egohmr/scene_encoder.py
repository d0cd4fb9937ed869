"""The scene's point encoder: a residual PointNet (Peng et al., Convolutional Occupancy Networks, 2020), of flat memory.

A point's features meet the whole cloud's maximum three times, joined channel by channel. The part of a layer that acts on the maximum is
the same for every point, so it is computed once per cloud; the points themselves go through in slices.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_SLICE = 4096
"""Points at a time when no gradient is asked for."""


class ResidualBlock(nn.Module):
    """y = shortcut(x) + fc_1(relu(fc_0(relu(x)))) on (…, width_in) → (…, width)."""

    def __init__(self, width_in: int, width: int):
        super().__init__()
        self.fc_0, self.fc_1 = nn.Linear(width_in, width), nn.Linear(width, width)
        self.shortcut = nn.Linear(width_in, width, bias=False)
        nn.init.zeros_(self.fc_1.weight)

    def forward(self, points: Tensor, whole: Tensor | None = None) -> Tensor:
        """`points` (B, N, own), and what all points share, `whole` (B, width_in − own), → (B, N, width)."""
        own = points.shape[-1]
        hidden = functional.linear(functional.relu(points), self.fc_0.weight[:, :own])
        straight = functional.linear(points, self.shortcut.weight[:, :own])
        if whole is not None:
            hidden = hidden + functional.linear(functional.relu(whole), self.fc_0.weight[:, own:])[:, None]
            straight = straight + functional.linear(whole, self.shortcut.weight[:, own:])[:, None]
        return straight + self.fc_1(functional.relu(hidden + self.fc_0.bias))


class SceneEncoder(nn.Module):
    """Points (B, N, 3) in metres → features (B, width). Any N ≥ 1; clouds of a batch have the same number of points."""

    def __init__(self, width: int = 512, hidden: int = 256):
        super().__init__()
        self.fc_pos_0 = nn.Linear(3, 2 * hidden)
        for number in range(4):
            self.add_module(f"block_{number}", ResidualBlock(2 * hidden, hidden))
        self.fc_c = nn.Linear(hidden, width)

    def forward(self, points: Tensor) -> Tensor:
        if points.ndim != 3 or points.shape[-1] != 3 or not points.shape[1]:
            raise ValueError(f"a scene is a cloud of points (B, N, 3) with N ≥ 1, got {tuple(points.shape)}")
        if torch.is_grad_enabled() and any(parameter.requires_grad for parameter in self.parameters()):
            return self._encode(points, points.shape[1])
        # one cloud at a time: what is alive at once does not grow with the batch
        return (
            torch.cat([self._encode(cloud[None], _SLICE) for cloud in points])
            if len(points)
            else points.new_empty(0, self.fc_c.out_features)
        )

    def _encode(self, points: Tensor, step: int) -> Tensor:
        slices = points.split(step, 1)
        blocks = [getattr(self, f"block_{number}") for number in range(4)]
        parts = [blocks[0](self.fc_pos_0(part)) for part in slices]
        for block in blocks[1:]:
            whole = _highest(parts)
            for number, part in enumerate(parts):
                parts[number] = block(part, whole)
        return self.fc_c(functional.relu(_highest(parts)))


def _highest(parts: list[Tensor]) -> Tensor:
    return torch.stack([part.amax(1) for part in parts]).amax(0)
