"""What the published SiMHand and PeCLR code does, quirks included. For converters, evaluators and tests."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from pose_tools.simhand.views import OUT, Parameters, crop_region, make_view, rotation


def local_negatives(loss: Callable[..., Tensor], *rows: Tensor, replicas: int = 8) -> Tensor:
    """The mean of `loss(z1, z2, …)` over `replicas` equal parts of the batch: "batch 8192" on 8 GPUs was 8 losses of 1024 pairs.

    Negatives, and the extremes of the weights, come from the part alone.
    """
    n = len(rows[0])
    if n % replicas:
        raise ValueError(f"local_negatives: {n} pairs do not part into {replicas} equal replicas")
    return torch.stack([loss(*(r[i : i + n // replicas] for r in rows)) for i in range(0, n, n // replicas)]).mean()


def original_joints(experiment: str, raw: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """Key points before the augmentation in 128-px coordinates (N, 21, 2), from 0…1: what `joints_type original` should have given.

    The published command line never did: its comparison of the word was always false, and the augmented points were used.
    In simclr_w and peclr_w both views hold one and the same array, which was multiplied by 128 twice.
    """
    if experiment in ("simclr_w", "peclr_w"):
        return (raw[0] * OUT * OUT,) * 2
    return raw[0] * OUT, raw[1] * OUT


def make_view_in_steps(image: np.ndarray, joints: np.ndarray, **drawn: Any) -> tuple[np.ndarray, np.ndarray, np.ndarray, Parameters]:
    """`views.make_view` with the pixels resampled as published: turn (bilinear), cut, resize (area), one after the other."""
    return make_view(image, joints, resample=_in_steps, **drawn)


def _in_steps(image: np.ndarray, xy: np.ndarray, found: Parameters) -> np.ndarray:
    if found["angle"] is not None:
        turn = rotation(xy, found["angle"])
        image = cv2.warpAffine(image, turn, image.shape[1::-1])
        xy = (xy.astype(np.float64) @ turn[:, :2].T + turn[:, 2]).astype(np.float32)
    (x0, y0, x1, y1), _ = crop_region(xy, found, image.shape[1::-1])
    return cv2.resize(image[y0:y1, x0:x1], (OUT, OUT), interpolation=cv2.INTER_AREA)


def key_point_errors(pred: np.ndarray, gt: np.ndarray) -> dict[str, float]:
    """The pre-training package's end-point errors of (N, 21, d), nothing aligned, over all points.

    Of an even number of errors the median is the lower of the two in the middle, as torch.median has it.
    """
    distances = torch.from_numpy(np.linalg.norm(np.asarray(pred, np.float64) - np.asarray(gt, np.float64), axis=-1))
    return {name: float(getattr(torch, name)(distances)) for name in ("mean", "median", "min", "max")}


def key_point_auc(pred: np.ndarray, gt: np.ndarray) -> float:
    """The pre-training package's AUC of (N, 21, 3) metres: share of errors strictly below 0, 5, …, 495 mm, per joint, then the mean."""
    distances = np.linalg.norm(np.asarray(pred, np.float64) - np.asarray(gt, np.float64), axis=-1)
    thresholds = np.arange(100) * 0.005
    share = (distances[None] < thresholds[:, None, None]).mean(1)  # (100, 21)
    return float((np.trapezoid(share, thresholds, axis=0) / (thresholds[-1] - thresholds[0])).mean())
