"""Scores of hand poses: the numbers FreiHAND's and HO-3D's programs print, and our own, hand by hand.

The programs' definitions (`freihand`, `ho3d`) forgive mirrored predictions: their alignment may reflect. Ours (`hand_errors`) never
reflects, counts missed hands, and leaves the averaging to the caller, who knows which hands are not independent.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pose_tools.metrics import auc, f_score, mpjpe, procrustes
from pose_tools.types import HandSample

AUC_RANGE = (0.0, 0.05)
"""Metres, 100 thresholds."""
MISSED_MM = 100.0
"""What a missed hand costs in every distance; in F-scores and AUC it counts 0."""


@dataclass(frozen=True)
class PredictedHand:
    """`joints_3d` (21, 3) FreiHAND order and `vertices` (778, 3) or None, metres, the picture's camera; `confidence` grows with trust."""

    joints_3d: np.ndarray
    vertices: np.ndarray | None = None
    confidence: float | None = None


def freihand(pred_xyz: Any, pred_verts: Any, gt_xyz: Any, gt_verts: Any) -> dict[str, float]:
    """What FreiHAND's eval.py writes into scores.txt.

    Args:
        pred_xyz, gt_xyz: (N, 21, 3) metres, in one order. pred_verts, gt_verts: (N, V, 3), (N, 778, 3) metres.

    Returns means in centimetres (`xyz_mean3d`, `mesh_mean3d`, aligned ones with `_al_`), AUC of 0–5 cm and F-scores at 5 and 15 mm.
    Prediction and truth are aligned by a similarity that may reflect, joints and vertices on their own. With another number of vertices
    than the truth's the mesh has no means (−100 and −1, as printed), and its F-scores use the joints' alignment.
    """
    scores, _ = _official(pred_xyz, pred_verts, gt_xyz, gt_verts, "xyz_al")
    return scores


def ho3d(pred_xyz: Any, pred_verts: Any, gt_xyz: Any, gt_verts: Any) -> dict[str, float]:
    """What HO-3D's eval.py writes into scores.txt; arguments as for `freihand`, joints in HO-3D's order (MANO's 16, then tips).

    Beside FreiHAND's numbers (here called `xyz_procrustes_al_…`) the scale-translation aligned `xyz_scale_trans_al_…`: the distance from
    joint 0 to joint 4 of the given order (wrist to the base of the middle finger) is made the truth's, then the wrist put in place.
    """
    scores, (pred, gt) = _official(pred_xyz, pred_verts, gt_xyz, gt_verts, "xyz_procrustes_al")
    sizes = [np.linalg.norm(points[:, 4] - points[:, 0], axis=-1)[:, None, None] for points in (pred, gt)]
    scaled = pred / np.where(sizes[0] > 0, sizes[0], 1.0) * sizes[1]
    moved = scaled - scaled[:, :1] + gt[:, :1]
    return scores | _mean_and_auc("xyz_scale_trans_al", np.linalg.norm(moved - gt, axis=-1))


def _official(
    pred_xyz: Any, pred_verts: Any, gt_xyz: Any, gt_verts: Any, aligned_name: str
) -> tuple[dict[str, float], tuple[np.ndarray, np.ndarray]]:
    pred, gt, pred_mesh, gt_mesh = (
        np.asarray(x.detach().cpu() if hasattr(x, "detach") else x, np.float64) for x in (pred_xyz, gt_xyz, pred_verts, gt_verts)
    )
    if pred.ndim != 3 or pred.shape[1:] != (21, 3) or pred.shape != gt.shape or not len(pred):
        raise ValueError(f"joints: expected two arrays (N, 21, 3), got {pred.shape} and {gt.shape}")
    if pred_mesh.ndim != 3 or gt_mesh.ndim != 3 or pred_mesh.shape[::2] != gt_mesh.shape[::2] or len(pred_mesh) != len(pred):
        raise ValueError(f"vertices: expected ({len(pred)}, V, 3) and ({len(pred)}, 778, 3), got {pred_mesh.shape} and {gt_mesh.shape}")
    aligned, transform = _program_alignment(pred, gt)
    scores = _mean_and_auc("xyz", np.linalg.norm(pred - gt, axis=-1)) | _mean_and_auc(aligned_name, np.linalg.norm(aligned - gt, axis=-1))
    if pred_mesh.shape == gt_mesh.shape:
        aligned_mesh, _ = _program_alignment(pred_mesh, gt_mesh)
        scores |= _mean_and_auc("mesh", np.linalg.norm(pred_mesh - gt_mesh, axis=-1))
        scores |= _mean_and_auc("mesh_al", np.linalg.norm(aligned_mesh - gt_mesh, axis=-1))
    else:
        aligned_mesh = transform(pred_mesh)
        scores |= {"mesh_mean3d": -100.0, "mesh_auc3d": -1.0, "mesh_al_mean3d": -100.0, "mesh_al_auc3d": -1.0}
    for millimetres in (5, 15):
        scores[f"f_score_{millimetres}"] = float(np.mean(f_score(pred_mesh, gt_mesh, millimetres / 1000)))
        scores[f"f_al_score_{millimetres}"] = float(np.mean(f_score(aligned_mesh, gt_mesh, millimetres / 1000)))
    return scores, (pred, gt)


def _mean_and_auc(name: str, errors: np.ndarray) -> dict[str, float]:
    """Metres (N, points) → the mean in centimetres and the AUC."""
    return {f"{name}_mean3d": 100 * float(errors.mean()), f"{name}_auc3d": auc(errors, *AUC_RANGE, 100)}


def _program_alignment(pred: np.ndarray, gt: np.ndarray) -> tuple[np.ndarray, Callable[[np.ndarray], np.ndarray]]:
    """Both programs' alignment of `pred` with `gt` (N, points, 3), and what they do with other points by it.

    Sizes get 1e-8 added before dividing, so an exact prediction is off by nanometres; the second one scales by the truth's size without
    dividing by the prediction's: both are kept.
    """
    centre_pred, centre_gt = pred.mean(1, keepdims=True), gt.mean(1, keepdims=True)
    p, q = pred - centre_pred, gt - centre_gt
    size_p, size_q = (np.linalg.norm(x, axis=(1, 2), keepdims=True) + 1e-8 for x in (p, q))
    u, sizes, vt = np.linalg.svd(np.swapaxes(q / size_q, 1, 2) @ (p / size_p))
    turn, scale = np.swapaxes(u @ vt, 1, 2), sizes.sum(-1)[:, None, None]

    def other(points: np.ndarray) -> np.ndarray:
        middle = points.mean(1, keepdims=True)
        return (points - middle) @ turn * scale * size_q + (centre_gt - centre_pred) + middle

    return (p / size_p) @ turn * scale * size_q + centre_gt, other


MEASURES: dict[str, str] = {
    "pa_mpjpe": "PA-MPJPE, mm",
    "mpjpe": "MPJPE from the wrist, mm",
    "mpjpe_camera": "MPJPE in the camera's frame, mm",
    "pa_pve": "PA-PVE, mm",
    "pve": "PVE from the wrist, mm",
    "pa_auc": "AUC 0–50 mm, aligned",
    "auc": "AUC 0–50 mm, from the wrist",
    "pa_f5": "F@5 mm, aligned",
    "pa_f15": "F@15 mm, aligned",
    "f5": "F@5 mm, from the wrist",
    "f15": "F@15 mm, from the wrist",
}
"""What `hand_errors` measures. Aligned: by rotation, translation and scale, never reflected; joints and vertices on their own."""
DISTANCES = tuple(name for name, title in MEASURES.items() if title.endswith(", mm"))


def hand_errors(predicted: Sequence[PredictedHand | None], truth: Sequence[HandSample]) -> dict[str, np.ndarray]:
    """Every measure of `MEASURES` for every hand, (N,) each: distances in millimetres, scores 0–1.

    None is a missed hand: it costs `MISSED_MM` (0 in scores). NaN where a measure does not apply: without vertices on either side, or
    without a valid wrist. Only valid joints count.

    Raises ValueError for a hand without truth, or for a prediction that is not finite joints (21, 3) in metres.
    """
    if len(predicted) != len(truth):
        raise ValueError(f"hand_errors: {len(predicted)} predictions for {len(truth)} hands")
    rows = [_errors_of_one(p, t, f"hand {number}") for number, (p, t) in enumerate(zip(predicted, truth))]
    return {name: np.array([row.get(name, np.nan) for row in rows]) for name in MEASURES}


def _errors_of_one(predicted: PredictedHand | None, truth: HandSample, what: str) -> dict[str, float]:
    if truth.joints_3d is None:
        raise ValueError(f"{what} ({truth.source}) has no true joints; leave it out")
    valid = np.ones(21, bool) if truth.joints_valid is None else np.asarray(truth.joints_valid, bool)
    meshed = truth.vertices is not None and valid[0]
    if predicted is None:
        measured = [name for name in MEASURES if ("pve" in name or "f5" in name or "f15" in name) <= meshed]
        return {name: MISSED_MM if name in DISTANCES else 0.0 for name in measured}
    joints, gt = np.asarray(predicted.joints_3d, np.float64), np.asarray(truth.joints_3d, np.float64)
    if joints.shape != (21, 3) or not np.isfinite(joints).all():
        raise ValueError(f"{what} ({truth.source}): predicted joints must be finite (21, 3) metres, got {joints.shape}")
    if np.ptp(joints, axis=0).max() > 2:
        raise ValueError(f"{what} ({truth.source}): a predicted hand of {np.ptp(joints, axis=0).max():.0f} m; are these millimetres?")
    kept, gt_kept = joints[valid], gt[valid]
    row = {"mpjpe_camera": 1000 * float(mpjpe(kept, gt_kept))} if len(kept) else {}
    if len(kept) >= 3:
        distances = np.linalg.norm(procrustes(kept, gt_kept) - gt_kept, axis=-1)
        row |= {"pa_mpjpe": 1000 * float(distances.mean()), "pa_auc": auc(distances, *AUC_RANGE)}
    if valid[0]:
        distances = np.linalg.norm((kept - joints[0]) - (gt_kept - gt[0]), axis=-1)
        row |= {"mpjpe": 1000 * float(distances.mean()), "auc": auc(distances, *AUC_RANGE)}
        if predicted.vertices is not None and truth.vertices is not None:
            row |= _mesh_errors(predicted.vertices - joints[0], truth.vertices - gt[0])
    return row


def _mesh_errors(pred: np.ndarray, gt: np.ndarray) -> dict[str, float]:
    """Of vertices (778, 3) metres relative to the wrist joint."""
    aligned = procrustes(pred, gt)
    row = {"pve": 1000 * float(mpjpe(pred, gt)), "pa_pve": 1000 * float(mpjpe(aligned, gt))}
    for millimetres in (5, 15):
        row[f"f{millimetres}"] = float(f_score(pred, gt, millimetres / 1000))
        row[f"pa_f{millimetres}"] = float(f_score(aligned, gt, millimetres / 1000))
    return row


def spread_ratios(predicted: Sequence[PredictedHand | None], truth: Sequence[HandSample]) -> np.ndarray:
    """(20,) standard deviation of each joint's prediction over that of its label, from the wrist, left hands mirrored, the wrist left out.

    Near 0 the predictor says the same of every hand. Hands that are missed or have invalid joints don't count; NaN with fewer than two.
    """
    pairs = [
        (_as_right(p.joints_3d, t.side), _as_right(t.joints_3d, t.side))
        for p, t in zip(predicted, truth)
        if p is not None and t.joints_3d is not None and (t.joints_valid is None or np.all(t.joints_valid))
    ]
    if len(pairs) < 2:
        return np.full(20, np.nan)
    pred, gt = (np.sqrt(np.var(np.stack(points), axis=0).sum(-1)) for points in zip(*pairs))
    return pred[1:] / gt[1:]


def _as_right(joints: Any, side: str) -> np.ndarray:
    joints = np.asarray(joints, np.float64) - np.asarray(joints, np.float64)[:1]
    return joints * [-1, 1, 1] if side == "left" else joints


def doubtful_ratio(errors: np.ndarray, confidence: np.ndarray, share: float = 0.2) -> float:
    """How many times the mean error (N,) of the least confident `share` is that of the rest; NaN without enough hands."""
    order = np.argsort(confidence, kind="stable")
    few = round(share * len(order))
    if few == 0 or few == len(order):
        return float("nan")
    return float(errors[order[:few]].mean() / errors[order[few:]].mean())
