"""Errors and scores, one definition each. The unit of a result is the unit of what went in.

Every function takes NumPy arrays, lists or torch tensors; tensors in, tensors out (same type and device). Errors of poses are
per sample: the joints are averaged, leading dimensions stay. Intervals and paired comparisons are in statistics.py.
"""

from __future__ import annotations

import functools
import logging
import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from pose_tools.statistics import Interval, PairedDifference, Ratio, clustered_interval, paired_difference, ratio_of_means

__all__ = [
    "Interval",
    "PairedDifference",
    "Ratio",
    "auc",
    "box_iou",
    "clustered_interval",
    "f_score",
    "match_boxes",
    "mpjpe",
    "pa_mpjpe",
    "paired_difference",
    "procrustes",
    "ratio_of_means",
    "trajectory_errors",
]

logger = logging.getLogger(__name__)


def _array(value: Any) -> np.ndarray:
    return np.asarray(value.detach().cpu() if hasattr(value, "detach") else value, dtype=np.float64)


def _same_kind(function: Callable[..., Any]) -> Callable[..., Any]:
    """Computes in float64 NumPy and gives back a tensor like the first argument, if that was one."""

    @functools.wraps(function)
    def wrapped(first: Any, *args: Any, **kwargs: Any) -> Any:
        result = function(first, *args, **kwargs)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(first, torch.Tensor):
            dtype = first.dtype if first.is_floating_point() else torch.float64
            return torch.as_tensor(result, dtype=dtype, device=first.device)
        return result

    return wrapped


def _points(pred: Any, gt: Any, name: str) -> tuple[np.ndarray, np.ndarray]:
    pred, gt = _array(pred), _array(gt)
    if pred.shape != gt.shape or pred.ndim < 2:
        raise ValueError(f"{name}: prediction and truth must have one shape (…, J, D), got {pred.shape} and {gt.shape}")
    return pred, gt


def _mean_distance(pred: np.ndarray, gt: np.ndarray, valid: Any) -> np.ndarray:
    distances = np.linalg.norm(pred - gt, axis=-1)
    if valid is None:
        return distances.mean(-1)
    valid = np.broadcast_to(_array(valid) > 0, distances.shape)
    with np.errstate(invalid="ignore"):
        return np.where(valid, distances, 0).sum(-1) / valid.sum(-1)


@_same_kind
def mpjpe(pred: Any, gt: Any, root: int | None = None, valid: Any = None) -> Any:
    """Mean per-joint position error of `pred` (…, J, D) against `gt` (…, J, D) → (…,).

    `root` is the joint that is subtracted from both first (0 wrist, 9 middle base). `valid` (…, J) leaves joints out; a
    sample without a valid joint gives NaN. The same on vertices is the PVE.
    """
    pred, gt = _points(pred, gt, "mpjpe")
    if root is not None:
        pred, gt = pred - pred[..., [root], :], gt - gt[..., [root], :]
    return _mean_distance(pred, gt, valid)


@_same_kind
def procrustes(pred: Any, gt: Any, allow_reflection: bool = False, scale: bool = True) -> Any:
    """`pred` (…, J, D) moved onto `gt` (…, J, D) by the best rotation, translation and (unless `scale=False`) scale.

    `allow_reflection=True` is what FreiHAND's and HO-3D's programs do: a mirrored prediction is then forgiven. Without it a
    clearly mirrored prediction is logged, since it most often means a wrong side.
    """
    from pose_tools.geometry import similarity

    pred, gt = _points(pred, gt, "procrustes")
    found = similarity(pred, gt, with_scale=scale, allow_reflection=allow_reflection)
    if not allow_reflection and found.mirrored.any():
        logger.warning(
            "%d of %d predictions are mirror images of their truth: is the side right?", found.mirrored.sum(), found.mirrored.size
        )
    return found.apply(pred)


@_same_kind
def pa_mpjpe(pred: Any, gt: Any, allow_reflection: bool = False) -> Any:
    """MPJPE after Procrustes alignment of every sample: `pred` (…, J, D), `gt` (…, J, D) → (…,)."""
    return _mean_distance(_array(procrustes(_array(pred), _array(gt), allow_reflection)), _array(gt), None)


@_same_kind
def f_score(pred_verts: Any, gt_verts: Any, threshold: float) -> Any:
    """F-score of two meshes' vertices (…, V, 3), (…, W, 3) at a distance → (…,), 0–1.

    Precision is the share of predicted vertices with a true one nearer than `threshold` (strictly), recall the reverse; F is
    their harmonic mean (Knapitsch et al. 2017, as FreiHAND uses it: F@5 mm and F@15 mm).
    """
    from scipy.spatial import cKDTree

    pred, gt = _array(pred_verts), _array(gt_verts)
    if pred.ndim < 2 or pred.shape[:-2] != gt.shape[:-2] or pred.shape[-1] != gt.shape[-1]:
        raise ValueError(f"f_score: expected vertices (…, V, 3) and (…, W, 3), got {pred.shape} and {gt.shape}")
    scores = []
    for p, g in zip(pred.reshape(-1, *pred.shape[-2:]), gt.reshape(-1, *gt.shape[-2:]), strict=True):
        precision = (cKDTree(g).query(p)[0] < threshold).mean()
        recall = (cKDTree(p).query(g)[0] < threshold).mean()
        scores.append(2 * precision * recall / (precision + recall) if precision + recall > 0 else 0.0)
    return np.array(scores).reshape(pred.shape[:-2])[()]


def auc(errors: Any, low: float, high: float, steps: int = 100) -> float:
    """Area under the curve "share of errors ≤ t" over `steps` thresholds from `low` to `high`, divided by the range: 0–1.

    All errors count alike, whatever their shape; NaN (no prediction) is a miss at every threshold.
    """
    flat = np.sort(_array(errors).ravel())
    if flat.size == 0 or not low < high or steps < 2:
        raise ValueError(f"auc: needs errors, low < high and two steps, got {flat.size} errors, {low} to {high} in {steps} steps")
    thresholds = np.linspace(low, high, steps)
    share = np.searchsorted(flat[~np.isnan(flat)], thresholds, side="right") / flat.size
    return float(np.trapezoid(share, thresholds) / (high - low))


@_same_kind
def box_iou(a: Any, b: Any, compat: bool | str | None = None) -> Any:
    """Intersection over union of boxes xyxy: (4,) and (4,) → a number; (N, 4) and (M, 4) → (N, M); mixed → (N,) or (M,).

    Boxes are half-open. `compat="vlm4hoi"`, or True, counts both end pixels (+1), as that scorer does. Inverted, empty and non-finite
    boxes overlap nothing.
    """
    if compat not in (None, False, True, "vlm4hoi"):
        raise ValueError(f"box_iou: compat must be None or 'vlm4hoi', got {compat!r}")
    a, b = _array(a), _array(b)
    if any(boxes.ndim not in (1, 2) or boxes.shape[-1] != 4 for boxes in (a, b)):
        raise ValueError(f"box_iou: expected boxes (4,) or (N, 4), got {a.shape} and {b.shape}")
    if a.ndim == b.ndim == 2:
        a = a[:, None]
    end = 1.0 if compat else 0.0
    with np.errstate(invalid="ignore", over="ignore", divide="ignore"):
        inner = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2]) + end
        area_a, area_b = ((box[..., 2:] - box[..., :2] + end).prod(-1) for box in (a, b))
        intersection = np.where((inner > 0).all(-1), inner.prod(-1), 0.0)
        iou = intersection / (area_a + area_b - intersection)
    sound_a, sound_b = (np.isfinite(box).all(-1) & (box[..., 2:] >= box[..., :2]).all(-1) for box in (a, b))
    sound = sound_a & sound_b
    return np.asarray(np.where(sound & np.isfinite(iou), iou, 0.0))[()]


def match_boxes(pred: Any, gt: Any, threshold: float = 0.0, compat: bool | str | None = None) -> list[tuple[int, int, float]]:
    """One-to-one matching of predicted boxes (P, 4) with true ones (G, 4): [(i, j, IoU)], sorted by i.

    The pairs have the greatest sum of IoUs (Hungarian method); those that do not overlap, or with IoU below `threshold`,
    are left out.
    """
    from scipy.optimize import linear_sum_assignment

    pred, gt = _array(pred).reshape(-1, 4), _array(gt).reshape(-1, 4)
    overlaps = box_iou(pred, gt, compat)
    rows, columns = linear_sum_assignment(overlaps, maximize=True)
    pairs = [(int(i), int(j), float(overlaps[i, j])) for i, j in zip(rows, columns, strict=True)]
    return [pair for pair in pairs if pair[2] > 0 and pair[2] >= threshold]


def trajectory_errors(pred: Any, gt: Any, valid: Any, compat: bool | str | None = None, missing: float | None = None) -> dict[str, Any]:
    """Errors of future hand paths: `pred` (N, S, 2, T, 2), `gt` (N, 2, T, 2), `valid` (N, 2, T) bool; hands left, right.

    Per hand over its valid steps: ADE the mean distance, FDE the distance at the last step T (only hands valid there), WDE
    the mean weighted by t / T. Then the mean over hands, of the samples' mean (`ade`, `fde`, `wde`) and of the best of the
    S samples (`min_ade` …). Also `ade_left`, `ade_right`, …; `hands` (how many counted); `per_hand`, a dict of (N, 2)
    arrays, NaN where a hand doesn't count; `per_step` (N, 2, T), the samples' mean distance, NaN where a step isn't valid.
    `missing` is the distance that a prediction of NaN costs; without it NaN is an error.

    `compat="handsonvlm"`, or True, returns what its evaluation printed (`valid` (N, 2) or (N, 2, T)): see `_handsonvlm_errors`.
    """
    pred, gt, valid = _array(pred), _array(gt), _array(valid) > 0
    n, steps = gt.shape[0], gt.shape[2] if gt.ndim == 4 else 0
    if gt.shape != (n, 2, steps, 2) or pred.ndim != 5 or pred.shape[:1] + pred.shape[2:] != gt.shape or pred.shape[1] == 0 or steps == 0:
        raise ValueError(f"trajectory_errors: expected pred (N, S, 2, T, 2) and gt (N, 2, T, 2), got {pred.shape} and {gt.shape}")
    if compat not in (None, False, True, "handsonvlm"):
        raise ValueError(f"trajectory_errors: compat must be None or 'handsonvlm', got {compat!r}")
    if valid.shape != (n, 2, steps) and not (compat and valid.shape == (n, 2)):
        raise ValueError(f"trajectory_errors: expected valid (N, 2, T) = {(n, 2, steps)}, got {valid.shape}")
    unknown = np.isnan(gt).any(-1) & (valid if valid.ndim == 3 else valid[..., None])
    if unknown.any():
        raise ValueError(f"trajectory_errors: gt is NaN at {int(unknown.sum())} steps that valid says are known; correct one of the two")
    if compat:
        return _handsonvlm_errors(pred, gt, valid if valid.ndim == 2 else np.asarray(valid.any(-1)))
    distances = np.linalg.norm(pred - gt[:, None], axis=-1)  # (N, S, 2, T)
    lost = np.isnan(distances) & valid[:, None]
    if lost.any() and missing is None:
        hands = int(np.any(lost, axis=(1, 3)).sum())
        raise ValueError(f"trajectory_errors: {hands} hands have no prediction (NaN); say with missing= what distance that costs")
    distances = np.where(valid[:, None], np.where(lost, missing or 0.0, distances), 0.0)
    weights = valid * np.arange(1, steps + 1) / steps
    with np.errstate(invalid="ignore", divide="ignore"):
        errors = {  # (N, S, 2), NaN where a hand does not count
            "ade": distances.sum(-1) / valid.sum(-1)[:, None],
            "fde": np.where(valid[:, None, :, -1], distances[..., -1], np.nan),
            "wde": (distances * weights[:, None]).sum(-1) / weights.sum(-1)[:, None],
        }
    result: dict[str, Any] = {}
    per_hand = {name: values.mean(1) for name, values in errors.items()}
    per_hand |= {f"min_{name}": values.min(1) for name, values in errors.items()}
    for name, values in per_hand.items():
        result[name] = _nanmean(values)
        if not name.startswith("min_"):
            result |= {f"{name}_{side}": _nanmean(values[:, hand]) for hand, side in enumerate(("left", "right"))}
    per_step = np.where(valid, distances.mean(1), np.nan)
    return result | {"hands": int(valid.any(-1).sum()), "per_hand": per_hand, "per_step": per_step}


def _handsonvlm_errors(pred: np.ndarray, gt: np.ndarray, valid: np.ndarray) -> dict[str, float]:
    """What HandsOnVLM's evaluation printed, normalised coordinates; its quirks are kept.

    The names are swapped: "ade" is the mean distance at the last step, "fde" the mean over all steps. Steps whose truth is
    off screen cost nothing but stay in the denominator. "wde" averages over all hands, missing ones as zero. A
    prediction of NaN (no trajectory in the answer) counts as the picture's corner (0, 0).
    """
    steps = gt.shape[2]
    on_screen: np.ndarray = np.all((gt >= 0) & (gt < 1), axis=-1)
    pred = np.where(np.isnan(pred), 0.0, pred)
    distances = np.where(on_screen[:, None], np.linalg.norm(pred - gt[:, None], axis=-1), 0.0)
    weighted = (distances * np.arange(1, steps + 1) / steps).sum(-1) / np.maximum(on_screen.sum(-1), 1)[:, None]
    last, mean, weighted = (values.mean(1) * valid for values in (distances[..., -1], distances.mean(-1), weighted))
    result: dict[str, float] = {}
    for name, values in (("ade", last[valid]), ("fde", mean[valid]), ("wde", weighted.ravel())):
        result[name] = float(values.mean()) if values.size else float("nan")
        result[f"{name}_std"] = float(values.std()) if values.size else float("nan")
    return result


def _nanmean(values: np.ndarray) -> float:
    known = values[~np.isnan(values)]
    return float(known.mean()) if known.size else float("nan")
