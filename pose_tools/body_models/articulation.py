"""How a hand's joints move: bending axes, limits and named poses in MANO's axis-angle, right hand, model frame.

MANO's joints have no frames of their own: every rotation is about the model's axes (fingers −x, back of the hand +y, thumb
+z). A left hand takes (x, −y, −z) of each vector.
"""

from __future__ import annotations

import numpy as np
from scipy.spatial.transform import Rotation

from pose_tools.body_models import hand_shape
from pose_tools.body_models.kinematics import MANO_FINGERS

FLEXION_LIMITS = np.radians([[-15, 90], [0, 105], [-10, 80]] * 4 + [[-20, 35], [-15, 60], [-20, 80]]).reshape(5, 3, 2)
"""(finger in MANO order, joint, least/most) bending in radians of a relaxed adult hand."""

SPREAD_LIMITS = np.radians([[-15, 18], [-12, 12], [-25, 15], [-15, 12], [-30, 30]])
"""(finger in MANO order, least/most) sideways angle in radians; positive is towards the thumb."""


def bending_axes() -> tuple[np.ndarray, np.ndarray]:
    """Unit axes of the stand-in hand in the model frame: `flexion` (5, 3 joints, 3) closes the hand, `spread` (5, 3) moves a
    straight finger towards the thumb; for the thumb `spread` sweeps it across the palm (opposition)."""
    flexion, spread = np.zeros((5, 3, 3)), np.zeros((5, 3))
    for k, name in enumerate(MANO_FINGERS):
        chain, _ = hand_shape.finger_chain(name)
        bones = np.diff(chain, axis=0)
        bones = np.stack([-bones[:, 0], bones[:, 2], bones[:, 1]], 1)
        bones /= np.linalg.norm(bones, axis=1, keepdims=True)
        # The direction a finger closes towards: the palm for the long ones, across the palm for the thumb.
        inward = np.array([-0.25, -0.45, -0.86]) if name == "thumb" else np.array([0.0, -1.0, 0.0])
        axes = np.cross(bones, inward)
        flexion[k] = axes / np.linalg.norm(axes, axis=1, keepdims=True)
        turn = np.cross(bones[0], np.array([-0.2, -1.0, -0.1]) if name == "thumb" else np.array([0.0, 0.0, 1.0]))
        spread[k] = turn / np.linalg.norm(turn)
    return flexion, spread


def hand_pose(flexion: np.ndarray, spread: np.ndarray | None = None) -> np.ndarray:
    """Axis-angle pose (…, 45), absolute, right hand, from bending angles `flexion` (…, 5, 3) and sideways angles `spread` (…, 5), radians.

    Fingers in MANO order (index, middle, pinky, ring, thumb). The first joint turns sideways first, then bends.
    """
    flexion = np.asarray(flexion, float)
    spread = np.zeros(flexion.shape[:-1]) if spread is None else np.asarray(spread, float)
    bend, side = bending_axes()
    pose = flexion[..., None] * bend
    turns = Rotation.from_rotvec((spread[..., None] * side).reshape(-1, 3)) * Rotation.from_rotvec(pose[..., 0, :].reshape(-1, 3))
    pose[..., 0, :] = turns.as_rotvec().reshape(*spread.shape, 3)
    return pose.reshape(*flexion.shape[:-2], 45)


def _named(curl: dict[str, tuple[float, float, float]], spread: dict[str, float]) -> np.ndarray:
    flexion = np.radians([curl.get(name, (0.0, 0.0, 0.0)) for name in MANO_FINGERS])
    return hand_pose(flexion, np.radians([spread.get(name, 0.0) for name in MANO_FINGERS]))


def named_pose(name: str) -> np.ndarray:
    """A pose (45,) by name: flat, relaxed, fist, point, pinch, grasp, spread. Raises ValueError for others."""
    fist = (82.0, 96.0, 60.0)
    poses: dict[str, tuple[dict, dict]] = {
        "flat": ({}, {}),
        "relaxed": (
            {"index": (22, 30, 14), "middle": (28, 34, 17), "ring": (32, 36, 18), "pinky": (34, 36, 18), "thumb": (8, 12, 16)},
            {"thumb": 6},
        ),
        "fist": (dict.fromkeys(("index", "middle", "ring", "pinky"), fist) | {"thumb": (18, 40, 48)}, {"thumb": 24, "pinky": 8, "ring": 4}),
        "point": (
            dict.fromkeys(("middle", "ring", "pinky"), fist) | {"thumb": (18, 38, 40), "index": (4, 4, 2)},
            {"thumb": 22, "pinky": 8, "ring": 4},
        ),
        "pinch": (
            {"index": (48, 44, 22), "middle": (32, 34, 14), "ring": (24, 26, 12), "pinky": (18, 20, 10), "thumb": (8, 20, 22)},
            {"thumb": 22},
        ),
        "grasp": (
            {"index": (42, 44, 24), "middle": (45, 46, 26), "ring": (47, 46, 26), "pinky": (48, 42, 24), "thumb": (4, 14, 22)},
            {"thumb": 26},
        ),
        "spread": ({"thumb": (-14, -6, -8)}, {"index": 12, "middle": 1, "ring": -8, "pinky": -18, "thumb": -8}),
    }
    if name not in poses:
        raise ValueError(f"no hand pose named {name!r}: choose one of {', '.join(poses)}")
    return _named(*poses[name])
