"""PeCLR's equivariance: what a view did to the hand is undone on its projection, read as points of the plane."""

from __future__ import annotations

from collections.abc import Collection

import torch
from torch import Tensor
from torch.nn import functional

STEPS = ("crop", "rotate")


def undo_view(
    projections: Tensor,
    *,
    jitter: Tensor | None = None,
    angle: Tensor | None = None,
    image_size: int = 128,
    steps: Collection[str] = STEPS,
) -> Tensor:
    """Projections (N, D) of views → (N, D), of length 1, as if the views had not been shifted and turned (Spurr et al., PeCLR, ICCV 2021).

    A row, normalised, is read as D / 2 points (x, y) of consecutive numbers. "crop" moves them by −jitter / image_size of their
    own extent; `jitter` (N, 2) pixels x, y, as the view's parameters have it (minus the shift of the crop). "rotate" turns them by
    −angle about their mean; `angle` (N,) degrees, counter-clockwise in the picture. Extent and mean carry no gradient. The crop's
    scale is not undone. Without steps only the normalisation remains.
    """
    unknown = set(steps) - set(STEPS)
    if unknown:
        raise ValueError(f"undo_view: steps may be 'crop' and 'rotate', got {sorted(unknown)}")
    if projections.dim() != 2 or projections.shape[1] % 2:
        raise ValueError(f"undo_view: expected projections (N, D) with D even, got {tuple(projections.shape)}")
    if projections.dtype in (torch.float16, torch.bfloat16):
        projections = projections.float()
    projections = functional.normalize(projections, dim=1)
    if not steps:
        return projections
    n = len(projections)
    points = projections.view(n, -1, 2)
    if "crop" in steps:
        shift = _given(jitter, (n, 2), "jitter", projections) / image_size
        extent = (points.amax(1) - points.amin(1)).detach()
        points = points - (shift * extent)[:, None]
    if "rotate" in steps:
        radians = torch.deg2rad(_given(angle, (n,), "angle", projections))
        cos, sin = torch.cos(radians)[:, None], torch.sin(radians)[:, None]
        centre = points.mean(1, keepdim=True).detach()
        x, y = (points - centre).unbind(-1)
        points = torch.stack([cos * x - sin * y, sin * x + cos * y], dim=-1) + centre
    return functional.normalize(points.flatten(1), dim=1)


def _given(value: Tensor | None, shape: tuple[int, ...], name: str, like: Tensor) -> Tensor:
    if value is None:
        raise ValueError(f"undo_view: this step needs {name} {shape}")
    value = torch.as_tensor(value, device=like.device)
    if tuple(value.shape) != shape:
        raise ValueError(f"undo_view: {name} must be {shape}, got {tuple(value.shape)}")
    return value.to(like.dtype)
