"""Posed hands for the synthetic world: free poses, grips that close around an object, and the placing of a hand before the camera.

Everything is designed for a right hand in the frame FNT of the flat hand: F from the wrist to the middle knuckle, N out of
the palm, T towards the thumb; a left hand is its mirror image, so the same numbers serve both.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import least_squares
from scipy.spatial.transform import Rotation

from pose_tools.body_models import articulation
from pose_tools.types import Side

if TYPE_CHECKING:
    from pose_tools.body_models import Mano

MIRROR = np.array([1.0, -1.0, -1.0])
"""What a mirror x → −x does to an axis-angle vector."""
_FLESH = 0.009
"""Half the thickness of a finger, metres."""


@dataclass(frozen=True)
class Skeleton:
    """The flat right hand: `joints` (21, 3) metres, FreiHAND order, and `axes` (3, 3) with columns F, N, T."""

    joints: np.ndarray
    axes: np.ndarray


@dataclass(frozen=True)
class Grasp:
    """A right hand's pose (45,) and where the object is: `point` (3,), `axis` (3,) and `across` (3,), in FNT from the middle knuckle.

    `point` is where the object's grip point lies; `across` is the direction its local x axis is turned towards.
    """

    hand_pose: np.ndarray
    point: np.ndarray
    axis: np.ndarray
    across: np.ndarray


@lru_cache(maxsize=2)
def mano(side: Side) -> Mano:
    """The licence-free stand-in hand of one side."""
    from pose_tools.body_models import load_mano

    return load_mano(side=side)


def hand_axes(joints: np.ndarray, side: Side) -> np.ndarray:
    """(3, 3) with columns F, N, T of a hand's (21, 3) joints; right-handed for right hands, left-handed for left ones."""
    forward = joints[9] - joints[0]
    forward = forward / np.linalg.norm(forward)
    thumbward = joints[5] - joints[17]
    thumbward = thumbward - forward * (thumbward @ forward)
    thumbward = thumbward / np.linalg.norm(thumbward)
    normal = np.cross(thumbward, forward) * (1 if side == "right" else -1)
    return np.stack([forward, normal, thumbward], axis=1)


@lru_cache(maxsize=2)
def skeleton(side: Side = "right") -> Skeleton:
    """The flat hand of one side with mean shape."""
    _, joints = pose_hand(side, np.zeros(3), np.zeros(45), np.zeros(10), np.zeros(3))
    return Skeleton(joints, hand_axes(joints, side))


def pose_hand(
    side: Side, global_orient: np.ndarray, hand_pose: np.ndarray, betas: np.ndarray, transl: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`(vertices (778, 3), joints (21, 3) FreiHAND order)` of one hand, metres, from axis-angle parameters of that side."""
    vertices, joints = pose_hands(side, *(np.asarray(a)[None] for a in (global_orient, hand_pose, betas, transl)))
    return vertices[0], joints[0]


def pose_hands(
    side: Side, global_orient: np.ndarray, hand_pose: np.ndarray, betas: np.ndarray, transl: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """`(vertices (N, 778, 3), joints (N, 21, 3))` of N hands of one side in one pass: parameters (N, 3), (N, 45), (N, 10), (N, 3)."""
    import torch

    arrays = [torch.from_numpy(np.asarray(a, dtype=np.float32)) for a in (global_orient, hand_pose, betas, transl)]
    with torch.no_grad():
        output = mano(side)(*arrays)
    return output.vertices.numpy().astype(float), output.joints.numpy().astype(float)


@lru_cache(maxsize=2)
def mano_faces(side: Side) -> np.ndarray:
    """(1538, 3) int32, seen from outside counter-clockwise."""
    return mano(side).faces.numpy().astype(np.int32)


def bend_fingers(flexion: np.ndarray, spread: np.ndarray, thumb: np.ndarray) -> np.ndarray:
    """A right hand's pose (45,) from the flexion (4, 3) rad and spread (4,) rad of index, middle, ring, pinky and the thumb's (4,).

    The thumb's numbers are its sweep across the palm and the bending of its three joints.
    """
    order = [0, 1, 3, 2]
    return articulation.hand_pose(np.concatenate([flexion[order], thumb[None, 1:]]), np.concatenate([spread[order], thumb[:1]]))


def reach_thumb(target: np.ndarray) -> np.ndarray:
    """The thumb's sweep and bending (4,) rad that bring its tip near `target` (3,) without strain.

    Metres, in FNT from the middle knuckle."""
    rest = skeleton("right")
    goal = rest.joints[9] + rest.axes @ target
    bones = np.diff(rest.joints[1:5], axis=0)
    bend_axes, sweep_axes = articulation.bending_axes()
    bend, sweep = bend_axes[4], sweep_axes[4]

    def residual(x: np.ndarray) -> np.ndarray:
        turns = [Rotation.from_rotvec(bend[i] * x[i + 1]).as_matrix() for i in range(3)]
        first = Rotation.from_rotvec(sweep * x[0]).as_matrix() @ turns[0]
        second = first @ turns[1]
        tip = rest.joints[1] + first @ bones[0] + second @ bones[1] + second @ turns[2] @ bones[2]
        return np.concatenate([(tip - goal) / 0.006, 0.5 * (x - [0.1, 0.0, 0.2, 0.3])])

    low, high = np.array([-0.5, -0.45, -0.25, -0.35]), np.array([1.0, 0.7, 1.05, 1.4])
    return least_squares(residual, np.array([0.1, 0.0, 0.2, 0.3]), bounds=(low, high), max_nfev=30).x


def wrap_flexion(radius: float) -> np.ndarray:
    """Flexion (4, 3) rad of fingers whose bones lie on a cylinder of `radius` metres: each bone touches it at its middle."""
    joints = skeleton("right").joints
    around = radius + _FLESH
    ahead = 0.6 * min(radius, 0.035) + 0.006
    flexion = np.zeros((4, 3))
    for i, start in enumerate((5, 9, 13, 17)):
        half = np.linalg.norm(np.diff(joints[start : start + 4], axis=0), axis=1) / 2
        turns = np.arctan(half / around)
        flexion[i] = [np.arctan(ahead / around) + turns[0], turns[0] + turns[1], turns[1] + turns[2]]
    return np.minimum(flexion, [1.45, 1.7, 1.2])


@lru_cache(maxsize=64)
def wrap_grasp(millimetres: int) -> Grasp:
    """A power grip around a cylinder whose radius is `millimetres`; the axis runs across the palm, its top at the thumb."""
    radius = millimetres / 1000
    ahead = 0.6 * min(radius, 0.035) + 0.006
    # the row of knuckles slants: the axis follows it
    rest = skeleton("right")
    row = rest.axes.T @ (rest.joints[5] - rest.joints[17])
    axis = row * [1, 0, 1]
    axis /= np.linalg.norm(axis)
    point = np.array([-ahead, radius + _FLESH + 0.003, 0.0])
    around = radius + _FLESH
    angle = np.radians(35 if millimetres > 18 else 100)
    thumb_target = point + around * (np.array([-np.cos(angle), np.sin(angle), 0.0])) + axis * 0.03
    pose = bend_fingers(wrap_flexion(radius), np.array([0.05, 0.0, -0.03, -0.08]), reach_thumb(thumb_target))
    return Grasp(pose, point, axis, np.array([0.0, 1.0, 0.0]))


@lru_cache(maxsize=8)
def rim_grasp() -> Grasp:
    """A pinch of an edge between the thumb on top and the bent fingers below; the dish lies beyond the finger tips."""
    flexion = np.tile([0.75, 0.55, 0.25], (4, 1)) + np.array([[0.05, 0, 0], [0, 0, 0], [0.0, 0, 0], [0.05, 0, 0]])
    rest = skeleton("right")
    tips = np.mean([_finger_tip(rest, start, flexion[i]) for i, start in ((0, 5), (1, 9))], axis=0)
    thumb_target = tips + np.array([-0.012, 0.004, 0.022])
    axis = np.array([-0.55, -0.25, 0.8])
    point = (tips + thumb_target) / 2 + np.array([0.0, 0.004, 0.0])
    across = np.array([0.75, 0.6, 0.0])
    axis = axis - across * (axis @ across) / (across @ across)
    pose = bend_fingers(flexion, np.array([0.02, 0.0, -0.02, -0.05]), reach_thumb(thumb_target))
    return Grasp(pose, point, axis / np.linalg.norm(axis), across / np.linalg.norm(across))


def _finger_tip(rest: Skeleton, start: int, flexion: np.ndarray) -> np.ndarray:
    """Where a finger's tip comes to, in FNT from the middle knuckle, when its joints bend by `flexion` (3,)."""
    local = (rest.joints[start : start + 4] - rest.joints[9]) @ rest.axes
    point, turn = local[0].copy(), 0.0
    for bone, bend in zip(np.diff(local, axis=0), flexion, strict=True):
        turn += bend
        cos, sin = np.cos(turn), np.sin(turn)
        point += [bone[0] * cos - bone[1] * sin, bone[0] * sin + bone[1] * cos, bone[2]]
    return point


def free_pose(rng: np.random.Generator) -> np.ndarray:
    """A right hand's pose (45,) that holds nothing: flat, relaxed, cupped, fist, pointing or pinching, with noise."""
    kind = rng.choice(["flat", "relaxed", "cupped", "fist", "point", "spread"], p=[0.15, 0.35, 0.15, 0.12, 0.11, 0.12])
    base = {"flat": 0.08, "relaxed": 0.38, "cupped": 0.65, "fist": 1.35, "point": 1.3, "spread": 0.05}[str(kind)]
    curl = base * (0.85 + 0.3 * rng.random()) + 0.08 * rng.standard_normal(4) + np.array([-0.06, 0.0, 0.05, 0.08])
    if kind == "point":
        curl[0] = 0.1 * rng.random()
    flexion = np.clip(curl, -0.12, 1.5)[:, None] * np.array([0.95, 1.15, 0.7])
    wide = 0.16 if kind == "spread" else 0.05
    spread = np.array([1.0, 0.1, -0.8, -1.7]) * wide * (0.6 + 0.8 * rng.random())
    thumb = _free_thumb(bool(kind in ("fist", "point")), int(rng.integers(4)))
    return bend_fingers(flexion, spread, thumb + 0.05 * rng.standard_normal(4))


@lru_cache(maxsize=8)
def _free_thumb(closed: bool, variant: int) -> np.ndarray:
    """One of four thumbs (4,): lying beside the palm, or folded over bent fingers."""
    if closed:
        return reach_thumb(np.array([-0.012 + 0.004 * variant, 0.032, 0.012 + 0.006 * variant]))
    beside = ([-0.012, 0.012, 0.055], [-0.022, 0.004, 0.072], [-0.01, 0.03, 0.045], [-0.032, 0.012, 0.075])[variant]
    return reach_thumb(np.array(beside))


def rotation_to(forward: np.ndarray, roll: float, side: Side) -> np.ndarray:
    """(3, 3) rotation of the rest hand that turns its F to `forward` (3,) and its back to the camera.

    `roll` radians turn the thumb to the camera."""
    forward = forward / np.linalg.norm(forward)
    away = np.array([0.0, 0.0, 1.0])
    normal = away - forward * (away @ forward)
    normal /= np.linalg.norm(normal)
    thumbward = np.cross(forward, normal) * (1 if side == "right" else -1)
    target = np.stack([forward, np.cos(roll) * normal + np.sin(roll) * thumbward, np.cos(roll) * thumbward - np.sin(roll) * normal], axis=1)
    return target @ skeleton(side).axes.T


def for_side(hand_pose: np.ndarray, side: Side) -> np.ndarray:
    """A right hand's pose (45,) as the hand of `side` takes it: a left hand looks like the right one in a mirror."""
    return hand_pose if side == "right" else (hand_pose.reshape(15, 3) * MIRROR).reshape(45)


def forearm(
    wrist: np.ndarray,
    elbow: np.ndarray,
    flat: np.ndarray,
    radii: tuple[float, float],
    thin_share: float,
    segments: int = 12,
    rings: int = 16,
):
    """`(vertices, normals, faces)` of an arm from `wrist` to `elbow` (3,) metres, `radii` wide at either.

    At the wrist it measures only `thin_share` of that along `flat` (3,); towards the elbow it grows round.
    """
    along = elbow - wrist
    along = along / np.linalg.norm(along)
    thin = flat - along * (flat @ along)
    thin /= np.linalg.norm(thin)
    wide = np.cross(along, thin)
    share = np.linspace(0, 1, rings)[:, None, None]
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)[None, :, None]
    radius = radii[0] + (radii[1] - radii[0]) * np.minimum(share * 1.6, 1.0)
    flatness = thin_share + (1 - thin_share) * np.minimum(share * 2, 1.0)
    normals = np.cos(angle) * wide + np.sin(angle) * thin + 0 * share
    centre = wrist + share * (elbow - wrist)
    vertices = centre + radius * (np.cos(angle) * wide + flatness * np.sin(angle) * thin)
    a = np.arange(rings * segments).reshape(rings, segments)[:-1]
    b = np.roll(a, -1, axis=1)
    faces = np.concatenate(
        [np.stack([a, b, b + segments], -1).reshape(-1, 3), np.stack([a, b + segments, a + segments], -1).reshape(-1, 3)]
    )
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), faces.astype(np.int32)
