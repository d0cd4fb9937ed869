"""Where similar hands are near: 2-D key points, normalised by option, in the first principal directions of the whole pool."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

Normalise = Literal["none", "wrist", "wrist_scale"]
CHUNK = 200_000
REFERENCE = (0, 9)
"""Wrist and middle base."""


def normalised(keypoints: np.ndarray, how: Normalise) -> np.ndarray:
    """Key points (N, 21, 2) → (N, 42) float64; NaN rows where a point is missing or the pose has no scale.

    none: crop coordinates; wrist: the wrist at the origin; wrist_scale: also the bone wrist – middle base of length 1.
    """
    points = np.asarray(keypoints, dtype=np.float64)
    if how != "none":
        points = points - points[:, :1]
    if how == "wrist_scale":
        length = np.linalg.norm(points[:, REFERENCE[1]], axis=-1)
        with np.errstate(divide="ignore", invalid="ignore"):
            points = points / np.where(length > 0, length, np.nan)[:, None, None]
    flat = points.reshape(len(points), -1)
    return np.where(np.isfinite(flat).all(1, keepdims=True), flat, np.nan)


def whole_poses(keypoints: np.ndarray, how: Normalise) -> np.ndarray:
    """(N,) bool: no key point is missing, and the pose has a scale where it needs one."""
    return np.isfinite(normalised(keypoints, how)[:, 0])


@dataclass(frozen=True)
class PoseSpace:
    """`mean` (42,), `directions` (42, D) by falling variance, `explained`: the share of the variance that they hold."""

    mean: np.ndarray
    directions: np.ndarray
    explained: float
    normalise: Normalise

    def project(self, keypoints: np.ndarray) -> np.ndarray:
        """(N, 21, 2) → (N, D) float32; NaN rows for poses with missing points."""
        return ((normalised(keypoints, self.normalise) - self.mean) @ self.directions).astype(np.float32)


def fit_pose_space(keypoints: Any, dims: int = 14, normalise: Normalise = "none") -> PoseSpace:
    """PCA of a pool (N, 21, 2), read `CHUNK` poses at a time (an np.memmap will do); poses with missing points are left out.

    Deterministic: eigenvectors of the covariance, each with its largest entry positive.
    """
    if normalise not in ("none", "wrist", "wrist_scale"):
        raise ValueError(f"normalise must be 'none', 'wrist' or 'wrist_scale', got {normalise!r}")
    count, total, products = 0, 0.0, 0.0
    shift: np.ndarray | None = None
    for chunk in chunks(keypoints):
        flat = normalised(chunk, normalise)
        flat = flat[np.isfinite(flat[:, 0])]
        if len(flat) == 0:
            continue
        shift = flat.mean(0) if shift is None else shift  # sums about a near mean lose nothing
        flat = flat - shift
        count, total, products = count + len(flat), total + flat.sum(0), products + flat.T @ flat
    if shift is None:
        raise ValueError("no pose of the pool has all its key points")
    width = len(shift)
    if not 1 <= dims <= width:
        raise ValueError(f"dims must be 1…{width}, got {dims}")
    mean = total / count
    variances, directions = np.linalg.eigh(products / count - np.outer(mean, mean))
    variances, directions = np.maximum(variances[::-1], 0), directions[:, ::-1][:, :dims]
    directions = directions * np.sign(directions[np.abs(directions).argmax(0), np.arange(dims)])
    explained = float(variances[:dims].sum() / variances.sum()) if variances.sum() > 0 else 1.0
    return PoseSpace(mean + shift, directions, explained, normalise)


def chunks(keypoints: Any, size: int = CHUNK) -> Iterator[np.ndarray]:
    """The pool in parts."""
    for start in range(0, len(keypoints), size):
        yield np.asarray(keypoints[start : start + size])
