"""What a known point of a path adds to the embedding of its token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from vlm.compat import handsonvlm_position_code
from vlm.vision import fourier_code

CODES = ("fourier", "handsonvlm")
MISSING = ((0.25, 1.5), (0.75, 1.5))
"""Where HandsOnVLM's labels put a hand that is not there, left, right, in fractions of the frame (`data.epic_kitchens.MISSING`)."""


class TrajectoryCode(nn.Module):
    """Points of both hands → (…, D): "fourier", a learned layer over a 2-D Fourier code, or "handsonvlm", the published one, fixed."""

    def __init__(self, width: int, kind: str) -> None:
        super().__init__()
        if kind not in CODES:
            raise ValueError(f"position_code is {kind!r}, expected one of {', '.join(CODES)}, or null to give nothing back")
        self.width, self.kind = width, kind
        self.linear = nn.Linear(2 * (64 + 1), width) if kind == "fourier" else None

    def forward(self, points: Tensor, valid: Tensor | None) -> Tensor:
        """points (B, 2, T, 2) in units of the grid, hands left, right; valid (B, 2, T), None for all → (B, T, D)."""
        if self.linear is None:
            return handsonvlm_position_code(points, self.width)
        known = torch.ones_like(points[..., :1]) if valid is None else valid.unsqueeze(-1).to(points)
        code = torch.cat([fourier_code(points.nan_to_num()) * known, known], -1)  # (B, 2, T, 65)
        return self.linear(code.permute(0, 2, 1, 3).flatten(2).to(self.linear.weight.dtype))


def handsonvlm_points(points: Tensor, valid: Tensor) -> Tensor:
    """Paths (M, 2, T, 2) with hands that are valid at no step, and have no points (zeros, not numbers), at the published placeholder."""
    missing = torch.tensor(MISSING, dtype=points.dtype, device=points.device).view(1, 2, 1, 2)
    known = valid.any(-1) | (points.nan_to_num() != 0).any(-1).any(-1)
    return torch.where(known[..., None, None], points, missing)
