"""Flesh round bones as signed distance fields (negative inside), used to shape the stand-in hand and body."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

Field = Callable[[np.ndarray], np.ndarray]
"""Points (N, 3) → signed distances (N,), both in the same unit."""


def cones(points: np.ndarray, start: np.ndarray, end: np.ndarray, r_start: np.ndarray, r_end: np.ndarray) -> np.ndarray:
    """Approximate signed distances (N, K) from `points` (N, 3) to K capsules from `start` to `end` (K, 3) whose radius runs from `r_start` to `r_end` (K,)."""
    axis = end - start
    along = np.einsum("nkd,kd->nk", points[:, None] - start, axis) / np.maximum((axis * axis).sum(1), 1e-12)
    along = np.clip(along, 0.0, 1.0)
    nearest = start + along[..., None] * axis
    return np.linalg.norm(points[:, None] - nearest, axis=2) - (r_start + along * (r_end - r_start))


def blend(distances: np.ndarray, softness: float) -> np.ndarray:
    """Smooth union over the last axis: −k log Σ exp(−d/k). Solids melt into each other over about `softness`."""
    low = distances.min(axis=-1, keepdims=True)
    return low[..., 0] - softness * np.log(np.exp(-(distances - low) / softness).sum(-1))


def gradient(field: Field, points: np.ndarray, step: float) -> np.ndarray:
    """Central differences of `field` at `points` (N, 3), in one call of the field."""
    offsets = step * np.vstack([np.eye(3), -np.eye(3)])
    values = field((points[None] + offsets[:, None]).reshape(-1, 3)).reshape(6, -1)
    return (values[:3] - values[3:]).T / (2 * step)


def pull(field: Field, points: np.ndarray, step: float, rounds: int = 6, along: np.ndarray | None = None) -> np.ndarray:
    """`points` (N, 3) moved onto the surface (field = 0) by damped Newton steps; `along` (3,) or (N, 3) masks the axes that may move."""
    for _ in range(rounds):
        slope = gradient(field, points, step)
        if along is not None:
            slope = slope * along
        points = points - slope * (np.clip(field(points), -8 * step, 8 * step) / np.maximum((slope * slope).sum(1), 0.05))[:, None]
    return points
