"""What is known about a hand before any landmark is seen: usual poses, the limits of its joints, the spread of shapes."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import numpy as np
import torch

from pose_tools.body_models import Mano, articulation

POSE_SLACK = 0.25
"""Radians by which a pose may leave the statistics in any direction: the scans of a model file show few twists."""
UNKNOWN_SPREAD = 0.5
"""Radians of standard deviation where the model file has no pose statistics."""
LIMIT_SLACK = 0.1
"""Radians past a joint's limit that count as one standard deviation."""
TWIST_LIMIT = 0.35
"""Radians a joint may turn about its own bone."""
MARGIN = 0.17
"""Radians by which limits are widened: they are those of a relaxed hand, without force."""


class Prior(NamedTuple):
    """Minus twice the log of the prior: (θ − mean)ᵀ precision (θ − mean) + |hinge(axes · θ)|² / slack² + |β|².

    `mean` (45,), `precision` (45, 45) of the axis-angle pose θ; `axes` (K, 45) with limits `low`, `high` (K,), radians.
    """

    mean: torch.Tensor
    precision: torch.Tensor
    axes: torch.Tensor
    low: torch.Tensor
    high: torch.Tensor


def prior_of(mano: Mano) -> Prior:
    """The prior of `mano`: its file's pose statistics, and the limits of bending, spreading and twisting for its side."""
    covariance = mano.pose_covariance
    eye = torch.eye(45, dtype=torch.float64, device=mano.pose_mean.device)
    covariance = UNKNOWN_SPREAD**2 * eye if covariance is None else covariance.double() + POSE_SLACK**2 * eye
    axes, low, high = _limits(-1.0 if mano.side == "left" else 1.0)
    limits = (torch.tensor(x, dtype=torch.float64, device=eye.device) for x in (axes, low, high))
    return Prior(mano.pose_mean.double(), torch.linalg.inv(covariance), *limits)


@lru_cache(maxsize=2)
def _limits(flip: float) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    flexion, spread = articulation.bending_axes()
    rows, low, high = [], [], []

    def limit(joint: int, axis: np.ndarray, least: float, most: float) -> None:
        row = np.zeros((15, 3))
        row[joint] = axis * np.array([1.0, flip, flip])
        rows.append(row.ravel())
        low.append(least - MARGIN)
        high.append(most + MARGIN)

    for finger in range(5):
        # Across the bending axis: sideways at the first joint, not at all at the others; along the bone: twist.
        sideways = spread[finger] - (spread[finger] @ flexion[finger, 0]) * flexion[finger, 0]
        sideways /= np.linalg.norm(sideways)
        for k in range(3):
            joint = 3 * finger + k
            bend = flexion[finger, k]
            side = sideways - (sideways @ bend) * bend
            side /= np.linalg.norm(side)
            limit(joint, bend, *articulation.FLEXION_LIMITS[finger, k])
            limit(joint, side, *(articulation.SPREAD_LIMITS[finger] if k == 0 else (0.0, 0.0)))
            limit(joint, np.cross(bend, side), -TWIST_LIMIT, TWIST_LIMIT)
    return np.array(rows), np.array(low), np.array(high)


def energy(prior: Prior, pose: torch.Tensor, betas: torch.Tensor) -> torch.Tensor:
    """Minus twice the log prior (B,) of `pose` (B, 45) and `betas` (B, 10)."""
    away = pose - prior.mean
    excess = _excess(prior, pose)
    return ((away @ prior.precision) * away).sum(1) + (excess / LIMIT_SLACK).square().sum(1) + betas.square().sum(1)


def pose_terms(prior: Prior, pose: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Half the gradient (B, 45) and half the Hessian (B, 45, 45) of `energy` by the pose (Gauss–Newton: limits count where exceeded)."""
    excess = _excess(prior, pose)
    gradient = (pose - prior.mean) @ prior.precision + (excess / LIMIT_SLACK**2) @ prior.axes
    active = (excess != 0).to(pose.dtype) / LIMIT_SLACK**2
    return gradient, prior.precision + (prior.axes.T * active[:, None]) @ prior.axes


def _excess(prior: Prior, pose: torch.Tensor) -> torch.Tensor:
    angles = pose @ prior.axes.T
    return angles - torch.minimum(torch.maximum(angles, prior.low), prior.high)
