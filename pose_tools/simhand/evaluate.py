"""The metrics of SiMHand's fine-tuning under names of their own, and PeCLR's way of evaluating on FreiHAND.

They are not the literature's: root- and scale-aligned error is no PA-MPJPE, AUC 20–50 mm with 15 steps no AUC 0–50 mm with 100. Those
are `pose_tools.metrics.pa_mpjpe` and `auc`, to be reported beside them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import torch
from torch import Tensor

from pose_tools.joints import convert
from pose_tools.metrics import auc
from pose_tools.simhand.lifting import lift_25d, to_25d
from pose_tools.views import View

__all__ = ["align_root_and_scale", "lift_25d", "peclr_freihand", "peclr_joints", "peclr_view", "root_scale_aligned", "to_25d"]

MILLIMETRES = {"m": 1000.0, "mm": 1.0}
PECLR_SIZE = 224


def align_root_and_scale(pred: np.ndarray, gt: np.ndarray, root: int = 0, end: int = 9) -> np.ndarray:
    """`pred` (N, 21, 3) moved so that its root lies on the truth's and scaled so that the bone root – end has the truth's length."""
    lengths = [np.linalg.norm(x[:, end] - x[:, root], axis=-1) for x in (pred, gt)]
    with np.errstate(divide="ignore", invalid="ignore"):
        scale = (lengths[1] / lengths[0])[:, None, None]
        return gt[:, [root]] + scale * (pred - pred[:, [root]])


def root_scale_aligned(pred: Any, gt: Any, *, valid: Any = None, unit: str = "m") -> dict[str, Any]:
    """`pred`, `gt` (N, 21, 3), FreiHAND order, in `unit` ("m" or "mm"; pred's own scale does not matter), `valid` (N, 21) bool →

    mean, median (mm), auc_20_50 (0–1), all per joint over the samples first and then over the joints; per_joint (21,) mm means;
    pck (15,) at thresholds (15,) mm; invalid: samples whose prediction cannot be scaled (root and middle base coincide, or NaN): they
    count as missing every threshold, and are left out of mean and median. The root's own error is always 0 and counts, as published.
    """
    if unit not in MILLIMETRES:
        raise ValueError(f"root_scale_aligned: unit must be 'm' or 'mm', got {unit!r}")
    pred, gt = (np.asarray(x.detach().cpu() if isinstance(x, Tensor) else x, np.float64) for x in (pred, gt))
    if pred.shape != gt.shape or pred.ndim != 3 or pred.shape[1:] != (21, 3) or len(pred) == 0:
        raise ValueError(f"root_scale_aligned: expected two arrays (N, 21, 3), got {pred.shape} and {gt.shape}")
    errors = np.linalg.norm(align_root_and_scale(pred, gt) - gt, axis=-1) * MILLIMETRES[unit]  # (N, 21)
    failed = ~np.isfinite(errors).all(1)
    errors[failed] = np.nan
    counted = np.ones(errors.shape, bool) if valid is None else np.asarray(valid, bool)
    columns = [errors[counted[:, joint], joint] for joint in range(21)]
    columns = [column for column in columns if column.size]
    if failed.all():
        means = medians = np.full(len(columns), np.nan)
    else:
        known = [column[~np.isnan(column)] for column in columns]
        means, medians = (np.array([f(k) if k.size else np.nan for k in known]) for f in (np.mean, np.median))
    thresholds = np.linspace(20, 50, 15)
    pck = np.mean([(column[:, None] <= thresholds).mean(0) for column in columns], axis=0)
    return {
        "mean": float(np.nanmean(means)) if np.isfinite(means).any() else float("nan"),
        "median": float(np.nanmean(medians)) if np.isfinite(medians).any() else float("nan"),
        "auc_20_50": float(np.mean([auc(column, 20, 50, 15) for column in columns])),
        "per_joint": means,
        "pck": pck,
        "thresholds": thresholds,
        "invalid": int(failed.sum()),
    }


def peclr_view(bbox_xyxy: Any, size: tuple[int, int]) -> View:
    """A box's centre in the middle of 224 px, its longer side 0.7 of them; `size` (width, height) of the picture."""
    x0, y0, x1, y1 = (float(v) for v in bbox_xyxy)
    longer = max(x1 - x0, y1 - y0)
    if not longer > 0:
        raise ValueError(f"peclr_view: the box {[x0, y0, x1, y1]} has no extent")
    scale, middle = 0.7 * PECLR_SIZE / longer, PECLR_SIZE / 2
    return View(
        np.array([[scale, 0, middle - scale * (x0 + x1) / 2], [0, scale, middle - scale * (y0 + y1) / 2]]), size, (PECLR_SIZE, PECLR_SIZE)
    )


def peclr_joints(kp3d: Tensor) -> Tensor:
    """PeCLR's output (…, 21, 3), AIT order with the palm first → FreiHAND order with the wrist, 2 · palm − middle base."""
    wrist = 2 * kp3d[..., :1, :] - kp3d[..., 3:4, :]
    return convert(torch.cat([wrist, kp3d[..., 1:, :]], dim=-2), "ait", "freihand")


@torch.no_grad()
def peclr_freihand(
    model: Callable[[Tensor, Tensor], dict[str, Tensor]], image: np.ndarray, intrinsics: np.ndarray, scale: float
) -> np.ndarray:
    """PeCLR's two passes over one FreiHAND picture uint8 (224, 224, 3) → joints (21, 3) metres, FreiHAND order, camera frame.

    First the central square of side 0.33 · 224, then the whole-pixel box of the points found there. `intrinsics` (3, 3); `scale` is the
    data set's metric length of the reference bone. Outside the picture the net sees black.
    """
    from pose_tools.simhand.views import normalise

    height, width = image.shape[:2]
    half = 0.33 * PECLR_SIZE / 2
    box = np.array([width / 2 - half, height / 2 - half, width / 2 + half, height / 2 + half])
    for _ in range(2):
        view = peclr_view(box, (width, height))
        # as published: OpenCV's coordinates, whole at the pixels' centres, which the intrinsics are in as well; nothing smoothed
        cut = cv2.warpAffine(image, view.matrix[:2], view.out)
        pixels = torch.from_numpy(normalise(cut))[None]
        output = model(pixels, torch.from_numpy(view.matrix @ intrinsics).float()[None])
        points = view.to_original(np.trunc(output["kp2d"][0].double().numpy()))
        box = np.concatenate([points.min(0), points.max(0)])
    return peclr_joints(output["kp3d"][0]).double().numpy() * scale
