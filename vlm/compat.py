"""HandsOnVLM's quirks: the position code that its weights depend on, and how its evaluation reads an answer's points."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vlm.trajectory import RIGHT_LEFT_INTERLEAVED, joined_hands


def handsonvlm_position_code(points: Tensor, width: int) -> Tensor:
    """What HandsOnVLM adds to the embedding of a path token: points (B, 2, T, 2), hands left, right, fractions → (B, T, width).

    A hand's half is [sin(x f), cos(y f)] twice over, f_k = 10000^(-2k / C), C = width / 4, in the points' own data type; the right
    hand takes the even channels. (cos x and sin y are nowhere, and x and y are not scaled: its weights were trained so.)
    """
    if width % 8:
        raise ValueError(f"the published position code needs a width divisible by 8, got {width}")
    if points.dim() != 4 or points.shape[1] != 2 or points.shape[-1] != 2:
        raise ValueError(f"expected points (B, 2, T, 2), hands left, right, got {tuple(points.shape)}")
    channels = width // 4
    exponent = torch.arange(0, channels, 2, dtype=points.dtype, device=points.device) / channels
    angle = points.unsqueeze(-1) * (1.0 / 10000**exponent)  # (B, 2, T, xy, C / 2)
    code = torch.cat([angle[..., 0, :].sin(), angle[..., 1, :].cos()], -1)
    return joined_hands(torch.cat([code, code], -1), RIGHT_LEFT_INTERLEAVED)


def handsonvlm_reported(points: np.ndarray | None, steps: int = 4) -> np.ndarray:
    """What HandsOnVLM's evaluation took an answer's points (2, n, 2), hands left, right, fractions of the frame, for: (2, steps, 2).

    Of more than `steps` points the last ones; fewer are followed by the picture's corner (0, 0), and so an answer without any is scored
    as if it had said that corner.
    """
    found = np.zeros((2, 0, 2)) if points is None else np.asarray(points, float)
    if found.ndim != 3 or found.shape[0] != 2 or found.shape[2] != 2:
        raise ValueError(f"expected points (2, n, 2), hands left, right, got {found.shape}")
    found = found[:, ~np.isnan(found).any((0, 2))][:, -steps:]  # steps that were not written are NaN
    return np.concatenate([found, np.zeros((2, steps - found.shape[1], 2))], 1)
