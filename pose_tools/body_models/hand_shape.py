"""The stand-in hand's skeleton and flesh: where its joints rest and the signed distance field of its skin.

Design frame, millimetres: (u, v, w) = (towards the finger tips, towards the thumb, towards the back of the hand), wrist
joint at the origin. The sizes are those of an average adult hand, 0.18 m from the wrist to the tip of the middle finger.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pose_tools.body_models import solids
from pose_tools.body_models.kinematics import MANO_FINGERS

# Per finger: first joint, direction in the palm's plane (degrees towards the thumb), lengths of the three segments
# (the last one up to the skin), radius of the flesh at the three joints and the tip.
_LONG = {
    "index": ((90.0, 23.5, 0.0), 5.0, (34.0, 23.0, 24.0), (10.3, 9.3, 8.3, 7.1)),
    "middle": ((93.5, 1.5, 1.5), 0.5, (37.0, 25.5, 25.0), (10.5, 9.5, 8.5, 7.3)),
    "ring": ((88.0, -19.5, 0.0), -5.0, (34.5, 24.5, 24.5), (10.0, 8.9, 8.0, 6.9)),
    "pinky": ((80.0, -38.0, -3.5), -12.0, (27.0, 18.5, 21.5), (9.0, 7.9, 7.1, 6.2)),
}
_BEND = np.radians([3.0, 7.0, 11.0])
_THUMB = (np.array([[21.0, 19.0, -9.0], [49.0, 40.0, -17.0], [72.5, 56.0, -20.0], [95.5, 70.5, -21.0]]), (13.0, 10.6, 9.6, 7.7))
WRIST_CUT = -7.0
"""Where the open wrist ends, u in mm."""


@lru_cache(maxsize=1)
def skeleton() -> tuple[np.ndarray, np.ndarray]:
    """Joints (16, 3) in MANO order and the skin at the finger tips (5, 3) in `MANO_FINGERS` order, mm."""
    joints, tips = np.zeros((16, 3)), np.zeros((5, 3))
    for k, name in enumerate(MANO_FINGERS):
        chain = finger_chain(name)[0]
        joints[3 * k + 1 : 3 * k + 4], tips[k] = chain[:3], chain[3]
    return joints, tips


def finger_chain(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Three joints and the tip (4, 3) of a finger, and its radii there (4,), mm."""
    if name == "thumb":
        return _THUMB[0], np.array(_THUMB[1])
    base, spread, lengths, radii = _LONG[name]
    turn = np.radians(spread)
    steps = np.stack([np.cos(_BEND) * np.cos(turn), np.cos(_BEND) * np.sin(turn), -np.sin(_BEND)], 1) * np.array(lengths)[:, None]
    return np.asarray(base) + np.vstack([np.zeros(3), np.cumsum(steps, 0)]), np.array(radii)


@lru_cache(maxsize=5)
def _finger_cones(name: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A finger's flesh (start, end, radius at start, radius at end): slim between the joints, a soft pad under the tip."""
    chain, radii = finger_chain(name)
    forward = (chain[3] - chain[2]) / np.linalg.norm(chain[3] - chain[2])
    tip = chain[3] - forward * radii[3]
    knots, sizes = [chain[0]], [radii[0]]
    for i in (0, 1):
        knots += [0.5 * (chain[i] + chain[i + 1]), chain[i + 1]]
        sizes += [0.5 * (radii[i] + radii[i + 1]) - 0.35, radii[i + 1]]
    knots, sizes = np.array([*knots, tip]), np.array([*sizes, radii[3]])
    pad = 0.45 * chain[2] + 0.55 * tip - np.array([0.0, 0.0, 1.3])
    pad_size = 0.5 * (radii[2] + radii[3]) - 0.4
    start, end = np.vstack([knots[:-1], pad]), np.vstack([knots[1:], pad + 1e-3])
    return start, end, np.append(sizes[:-1], pad_size), np.append(sizes[1:], pad_size)


def finger_field(name: str, points: np.ndarray) -> np.ndarray:
    """Signed distance (N,) to one finger, without the palm."""
    each = solids.cones(points, *_finger_cones(name))
    return solids.blend(np.stack([each[:, :-1].min(1), each[:, -1]], 1), 0.8)


@lru_cache(maxsize=1)
def _palm_cones() -> tuple[np.ndarray, ...]:
    """The palm's bones and muscles: (start, end, radius at start, radius at end), each (K, …)."""
    j = {name: finger_chain(name)[0] for name in MANO_FINGERS}

    def on(name: str, s: float) -> np.ndarray:  # a point on the first segment, s mm past the knuckle
        step = j[name][1] - j[name][0]
        return j[name][0] + step / np.linalg.norm(step) * s

    rows = [
        ((-30, 12.5, 0), (6, 13, 0), 15.5, 15.5),
        ((-30, -12.5, 0), (6, -13, 0), 15.5, 15.0),
        ((-30, 0, 0), (6, 0, 0), 16.5, 16.5),  # wrist
        ((6, 11, 0), j["index"][0], 14.0, 10.0),
        ((6, 3, 1), j["middle"][0], 14.5, 10.5),  # metacarpals
        ((6, -6, 0), j["ring"][0], 14.0, 10.0),
        ((6, -12, -1), j["pinky"][0], 13.0, 9.0),
        (on("index", 2) - (0, 0, 5), on("middle", 2) - (0, 0, 6), 7.5, 7.5),
        (on("middle", 2) - (0, 0, 6), on("ring", 2) - (0, 0, 5), 7.5, 7.5),  # pads
        (on("ring", 2) - (0, 0, 5), on("pinky", 2) - (0, 0, 4), 7.5, 7.0),
        (on("index", 10), on("middle", 10), 6.3, 6.3),
        (on("middle", 10), on("ring", 10), 6.3, 6.3),
        (on("ring", 9.5), on("pinky", 9), 5.8, 5.6),  # webs
        ((12, 12, -7), (45, 36, -16), 13.5, 11.0),
        ((16, 10, -9), (52, 22, -12), 10.0, 8.0),  # ball of the thumb
        ((10, -17, -7), (66, -34, -7), 12.0, 9.5),  # outer edge
        ((46, 30, -9), (66, 24, -5), 8.0, 7.0),
        ((52, 34, -12), (72, 28, -6), 5.0, 5.0),  # web of the thumb
    ]
    start, end, r0, r1 = (np.array([np.asarray(row[k], float) for row in rows]) for k in range(4))
    return start, end, r0, r1


def palm_field(points: np.ndarray) -> np.ndarray:
    """Signed distance (N,) to wrist, palm and webs."""
    return solids.blend(solids.cones(points, *_palm_cones()) + 1.6, 2.2)


def skin(points: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Signed distance (N,) to the skin. `owner` (N,): the finger a vertex belongs to (0…4), or −1 for the palm.

    A finger's vertex sees only the palm and its own finger, so neighbouring fingers never grow together.
    """
    palm = palm_field(points)
    out = np.full(len(points), np.inf)
    for k, name in enumerate(MANO_FINGERS):
        near = np.flatnonzero((owner == k) | (owner < 0))
        joined = solids.blend(np.stack([palm[near], finger_field(name, points[near])], 1), 1.8)
        out[near] = np.minimum(out[near], joined)
    return out
