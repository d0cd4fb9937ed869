"""What the fine-tuned networks learn of an annotated hand: crops as `pose_tools.mano.crops` cuts them, labels in the forms of each network.

Left hands are mirrored, picture and labels. The 2.5-D net gets the crop's own intrinsics, so turning or scaling a crop changes its
pixels and its camera but no depth; the detection net knows no camera, and its 3-D labels are turned in the picture's plane with the crop.
"""

from __future__ import annotations

import numpy as np

from pose_tools.joints import convert
from pose_tools.mano.crops import MIRROR
from pose_tools.mano.crops import labels as crop_labels
from pose_tools.simhand.detnet_training import REFERENCE, heat_maps, joint_targets
from pose_tools.simhand.lifting import PECLR_BONE
from pose_tools.types import HandSample
from pose_tools.views import View

FARTHEST = 50.0
"""Depth of the root in bone lengths that the 2.5-D net can say."""


def crop_intrinsics(view: View, intrinsics: np.ndarray, mirror: bool) -> np.ndarray:
    """(3, 3): the picture's camera frame, x reversed for a mirrored hand → pixels of the crop."""
    return view.matrix @ np.asarray(intrinsics, np.float64) @ np.diag(MIRROR if mirror else np.ones(3))


def in_plane(view: View) -> np.ndarray:
    """(3, 3): the picture's camera frame → that of a camera that is turned with the crop; of determinant −1 for a mirrored crop."""
    turn = np.eye(3)
    turn[:2, :2] = view.matrix[:2, :2] / np.sqrt(abs(np.linalg.det(view.matrix[:2, :2])))
    return turn


def with_palm(points: np.ndarray) -> np.ndarray:
    """FreiHAND order (21, d) → PeCLR's: AIT order, the palm (mid point of wrist and middle base) for the wrist."""
    palm = (points[:1] + points[9:10]) / 2
    return convert(np.concatenate([palm, points[1:]]), "freihand", "ait")


def regression_targets(hand: HandSample, view: View) -> dict[str, np.ndarray]:
    """For `Regression25D`, PeCLR's order, without the batch axis: intrinsics (3, 3) and kp2d (21, 2) pixels of the crop, zrel (21,) and
    root_depth () in lengths of the reference bone; has_kp2d, has_zrel (21,) and has_root_depth () are 0 where nothing is known.

    Points outside the crop are not to be found in it, and depths need a camera and both ends of the bone.
    """
    joints, seen, valid = _checked(hand, view)
    mirror = hand.side == "left"
    has_kp2d = with_palm(seen[:, None])[:, 0] > 0.99
    points = with_palm(joints * (MIRROR if mirror else 1.0))
    known = with_palm(valid[:, None].astype(float))[:, 0] > 0.99
    length = float(np.linalg.norm(points[PECLR_BONE[0]] - points[PECLR_BONE[1]]))
    placed = hand.intrinsics is not None and known[[0, *PECLR_BONE]].all() and length > 0
    intrinsics, kp2d = np.eye(3), with_palm(_crop_pixels(hand, view))
    if hand.intrinsics is not None:
        intrinsics = crop_intrinsics(view, hand.intrinsics, mirror)
        if known[0]:
            image = intrinsics @ points[0]
            kp2d[0] = image[:2] / image[2]
    depth = (points[:, 2] - points[0, 2]) / length if placed else np.zeros(21)
    root = float(points[0, 2]) / length if placed else 0.0
    out = {
        "intrinsics": intrinsics, "kp2d": kp2d, "has_kp2d": has_kp2d, "zrel": depth, "has_zrel": known & placed,
        "root_depth": root, "has_root_depth": placed and 0 < root < FARTHEST,
    }  # fmt: skip
    return {name: np.asarray(value, np.float32) for name, value in out.items()}


def detnet_targets(hand: HandSample, view: View) -> dict[str, np.ndarray]:
    """For `detnet_losses`, FreiHAND order, without the batch axis: heat_map (21, 32, 32), veil (21,), location, delta (21, 3), has_3d ().

    Without all 3-D joints a hand teaches its heat maps only.
    """
    joints, _, valid = _checked(hand, view)
    maps, veil = heat_maps(np.where(_labelled(hand, hand.joints_2d)[:, None], _crop_pixels(hand, view), -1e4))
    out = {"heat_map": maps, "veil": veil, "location": np.zeros((21, 3)), "delta": np.zeros((21, 3)), "has_3d": np.array(0.0)}
    if valid.all() and np.linalg.norm(joints[REFERENCE[1]] - joints[REFERENCE[0]]) > 0:
        out["location"], out["delta"] = joint_targets(joints @ in_plane(view).T)
        out["has_3d"] = np.array(1.0)
    return {name: np.asarray(value, np.float32) for name, value in out.items()}


def _checked(hand: HandSample, view: View) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Joints (21, 3) with zeros where unknown, and which points (21,) are seen in the crop and known in 3-D; CropError for bad labels."""
    found = crop_labels(hand, view)
    valid = found["has_joints_3d"] > 0
    joints = np.zeros((21, 3)) if hand.joints_3d is None else np.where(valid[:, None], np.asarray(hand.joints_3d, np.float64), 0.0)
    return joints, found["has_joints_2d"], valid


def _labelled(hand: HandSample, points: np.ndarray | None) -> np.ndarray:
    there = np.ones(21, bool) if hand.joints_valid is None else np.asarray(hand.joints_valid, bool)
    return there if points is not None else np.zeros(21, bool)


def _crop_pixels(hand: HandSample, view: View) -> np.ndarray:
    """Key points (21, 2) in pixels of the crop, zeros where there are none."""
    points = np.zeros((21, 2)) if hand.joints_2d is None else np.asarray(hand.joints_2d, np.float64)
    return view.to_grid(np.where(_labelled(hand, hand.joints_2d)[:, None], points, 0.0))

