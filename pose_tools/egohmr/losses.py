"""The losses of both stages, one term each; weights as published."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

STAGE_1_WEIGHTS = {
    "keypoints_2d_mode": 0.01, "keypoints_2d_exp": 0.001, "keypoints_3d_mode": 0.05, "keypoints_3d_full_mode": 0.02, "v2v_mode": 0.5,
    "body_pose_mode": 0.001, "global_orient_mode": 0.001, "betas_mode": 0.0005, "pose_6d_mode": 0.1, "pose_6d_exp": 0.1, "nll": 0.001,
    "adversarial": 0.0005, "transl_nll": 0.001,
}  # fmt: skip
"""`mode` terms judge the most likely pose, `exp` terms the sampled ones. `transl_nll`, ours, trains the translation's deviation."""

STAGE_2_WEIGHTS = {
    "v2v": 0.5, "keypoints_3d": 0.05, "keypoints_3d_full": 0.02, "keypoints_2d_full": 0.01, "betas": 0.0005, "body_pose": 0.001,
    "global_orient": 0.001, "pose_6d": 0.1, "penetration": 0.0002,
}  # fmt: skip

IGNORED_BODY_25 = (1, 9, 12)
"""Neck and hips: BODY_25 and SMPL mean different places by them."""

NLL_NOISE = 0.005


def keypoints_2d(pred: Tensor, keypoints: Tensor) -> Tensor:
    """(B, n): sum over 25 joints of confidence × L1, `pred` (B, n, 25, 2) and `keypoints` (B, 25, 3) in the picture's units."""
    confidence = keypoints[:, None, :, 2:].clone()
    confidence[:, :, list(IGNORED_BODY_25)] = 0
    return (confidence * (pred - keypoints[:, None, :, :2]).abs()).sum((2, 3))


def keypoints_3d(pred: Tensor, target: Tensor, *, aligned: bool) -> Tensor:
    """(B, n): L1 summed over `pred` (B, n, 24, 3) against `target` (B, 24, 3) metres; `aligned` takes the pelvis (joint 0) off both."""
    target = target[:, None, :24]
    if aligned:
        pred, target = pred - pred[:, :, :1], target - target[:, :, :1]
    return (pred - target).abs().sum((2, 3))


def v2v(vertices: Tensor, joints: Tensor, true_vertices: Tensor, true_joints: Tensor) -> Tensor:
    """(): mean L1 of pelvis-aligned vertices (B, 6890, 3)."""
    return ((vertices - joints[:, :1]) - (true_vertices - true_joints[:, :1])).abs().mean()


def squared(pred: Tensor, target: Tensor) -> Tensor:
    """(): squared error summed, over the number of rows."""
    return ((pred - target) ** 2).sum() / len(pred)


def orthonormality(x: Tensor, order: str) -> Tensor:
    """(): mean of (RᵀR − I)² over the 2 × 2 Gram matrices of 6D rotations (…, 144)."""
    pairs = x.reshape(-1, 3, 2) if order == "row" else x.reshape(-1, 2, 3).transpose(1, 2)
    gram = pairs.transpose(1, 2) @ pairs
    return ((gram - torch.eye(2, dtype=x.dtype, device=x.device)) ** 2).mean()


def total(terms: Mapping[str, Tensor], weights: Mapping[str, float]) -> dict[str, Tensor]:
    """{"loss": weighted sum} | terms. Raises ValueError for weights of terms that there are not."""
    unknown = set(terms) - set(weights)
    if unknown:
        raise ValueError(f"no weight for {', '.join(sorted(unknown))}")
    return {"loss": torch.stack([weights[name] * value for name, value in terms.items()]).sum(), **terms}
