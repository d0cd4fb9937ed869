"""Flesh round bones as signed distance fields (negative inside), used to shape the stand-in hand and body."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from scipy import sparse

Field = Callable[[np.ndarray], np.ndarray]
"""Points (N, 3) → signed distances (N,), both in the same unit."""


def cones(points: np.ndarray, start: np.ndarray, end: np.ndarray, r_start: np.ndarray, r_end: np.ndarray) -> np.ndarray:
    """Approximate signed distances (N, K) from `points` (N, 3) to K capsules from `start` to `end` (K, 3) whose
    radius runs from `r_start` to `r_end` (K,)."""
    axis = end - start
    length = np.maximum((axis * axis).sum(1), 1e-12)
    # |p − a − t·axis|² multiplied out: products of (N, 3) and (3, K) instead of (N, K, 3) arrays.
    ahead = points @ axis.T - (start * axis).sum(1)
    along = np.clip(ahead / length, 0.0, 1.0)
    square = (points * points).sum(1)[:, None] - 2 * (points @ start.T) + (start * start).sum(1)
    square += along * (along * length - 2 * ahead)
    return np.sqrt(np.maximum(square, 0.0)) - (r_start + along * (r_end - r_start))


def blend(distances: np.ndarray, softness: float) -> np.ndarray:
    """Smooth union over the last axis: −k log Σ exp(−d/k). Solids melt into each other over about `softness`."""
    low = distances.min(axis=-1, keepdims=True)
    return low[..., 0] - softness * np.log(np.exp(-(distances - low) / softness).sum(-1))


def slope(field: Field, points: np.ndarray, step: float) -> tuple[np.ndarray, np.ndarray]:
    """Values (N,) and forward differences (N, 3) of `field` at `points`, in one call of the field."""
    offsets = step * np.vstack([np.zeros(3), np.eye(3)])
    values = field((points[None] + offsets[:, None]).reshape(-1, 3)).reshape(4, -1)
    return values[0], (values[1:] - values[0]).T / step


def settle(
    field: Field,
    points: np.ndarray,
    free: np.ndarray,
    pace: np.ndarray,
    mean: sparse.spmatrix,
    rounds: tuple[int, int, int],
    step: float = 1e-3,
    furthest: float = 4.0,
) -> np.ndarray:
    """Pull `points` (N, 3) onto the surface (field = 0), even out their spacing along it, and pull again.

    `free` (N, 3): 1 where a coordinate may move. `pace` (N,): share of the way to the neighbours' mean per round. `mean`: see
    `meshing.averaging`.
    `rounds`: of pulling, evening, pulling. `step` of the differences and `furthest` move at a time are in the points' unit.
    """
    approach, relax, finish = rounds
    for i in range(approach + relax + finish):
        value, normal = slope(field, points, step)
        normal = normal * free
        normal /= np.maximum(np.linalg.norm(normal, axis=1, keepdims=True), 0.2)
        if approach <= i < approach + relax:
            shift = pace[:, None] * free * (mean @ points - points)
            points = points + shift - normal * (shift * normal).sum(1, keepdims=True)
        points = points - normal * np.clip(value, -furthest, furthest)[:, None]
    return points
