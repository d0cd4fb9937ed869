"""The stand-in body's skeleton and flesh: where its joints rest and the signed distance field of its skin.

Metres, pelvis at the origin, as SMPL stands: arms stretched out, +x to the body's left, +y up, +z ahead, palms down. An adult
of 1.72 m.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

from pose_tools.body_models import solids

_CENTRE = {0: (0, 0, 0), 3: (0, 0.11, -0.02), 6: (0, 0.235, -0.02), 9: (0, 0.30, -0.01), 12: (0, 0.50, -0.025), 15: (0, 0.59, 0.012)}
_LEFT = {
    1: (0.078, -0.085, 0.0),
    4: (0.098, -0.47, -0.005),
    7: (0.105, -0.875, -0.038),
    10: (0.122, -0.928, 0.085),
    13: (0.075, 0.415, -0.015),
    16: (0.175, 0.435, -0.02),
    18: (0.43, 0.435, -0.035),
    20: (0.68, 0.438, -0.035),
    22: (0.762, 0.434, -0.038),
}

LIMBS = ("left_leg", "right_leg", "left_arm", "right_arm")
LIMB_JOINTS = {"left_leg": (1, 4, 7, 10), "right_leg": (2, 5, 8, 11), "left_arm": (16, 18, 20, 22), "right_arm": (17, 19, 21, 23)}
_TOE, _FINGERTIPS = (0.128, -0.931, 0.163), (0.866, 0.430, -0.040)


@lru_cache(maxsize=1)
def skeleton() -> np.ndarray:
    """Joints (24, 3) in SMPL's order."""
    joints = np.zeros((24, 3))
    for k, at in {**_CENTRE, **_LEFT}.items():
        joints[k] = at
    for k, at in _LEFT.items():
        joints[k + 1] = np.array(at) * [-1, 1, 1]
    return joints


def limb_chain(name: str) -> tuple[np.ndarray, np.ndarray]:
    """A limb's polyline (N, 3) from hip or shoulder to toe or finger tip, and a rough radius at each point (N,)."""
    left = {
        "leg": np.array([*(_LEFT[k] for k in (1, 4, 7, 10)), _TOE]),
        "arm": np.array([*(_LEFT[k] for k in (16, 18, 20, 22)), _FINGERTIPS]),
    }
    radii = {"leg": np.array([0.09, 0.055, 0.04, 0.035, 0.024]), "arm": np.array([0.06, 0.04, 0.026, 0.017, 0.013])}
    side, kind = name.split("_")
    return left[kind] * ([1, 1, 1] if side == "left" else [-1, 1, 1]), radii[kind]


_TORSO = [  # start, end, radius at start and end; a first x above zero stands for both sides
    ((0.070, -0.035, -0.005), (0.062, 0.03, -0.005), 0.112, 0.098),
    ((0.070, -0.075, -0.045), (0.065, -0.03, -0.055), 0.085, 0.075),
    ((0.048, 0.06, 0.0), (0.058, 0.17, -0.005), 0.098, 0.096),
    ((0.060, 0.19, -0.002), (0.082, 0.31, -0.012), 0.098, 0.098),
    ((0.062, 0.295, 0.035), (0.075, 0.325, 0.030), 0.072, 0.070),
    ((0.085, 0.35, -0.035), (0.125, 0.375, -0.035), 0.076, 0.066),
    ((0.05, 0.415, -0.022), (0.165, 0.428, -0.022), 0.062, 0.058),
    ((0.115, 0.445, -0.030), (0.03, 0.515, -0.035), 0.042, 0.048),
    ((0, 0.42, -0.03), (0, 0.575, 0.0), 0.066, 0.058),
    ((0, 0.655, -0.008), (0, 0.680, 0.004), 0.090, 0.088),
    ((0, 0.60, 0.045), (0, 0.66, 0.045), 0.052, 0.060),
    ((0, 0.632, 0.098), (0, 0.655, 0.094), 0.014, 0.010),
    ((0, -0.095, 0.045), (0, -0.095, -0.06), 0.040, 0.040),
    ((0.083, 0.635, -0.002), (0.083, 0.662, -0.006), 0.010, 0.013),
]
_LEG = [
    ((0.087, -0.09, 0.0), (0.096, -0.25, 0.005), 0.086, 0.077),
    ((0.096, -0.25, 0.005), (0.098, -0.45, 0.0), 0.077, 0.056),
    ((0.098, -0.45, 0.002), (0.100, -0.50, 0.0), 0.057, 0.053),
    ((0.100, -0.50, -0.010), (0.102, -0.60, -0.024), 0.053, 0.057),
    ((0.102, -0.60, -0.022), (0.105, -0.85, -0.038), 0.055, 0.036),
    ((0.105, -0.85, -0.038), (0.105, -0.905, -0.052), 0.037, 0.040),
    ((0.105, -0.875, -0.025), (0.112, -0.918, 0.070), 0.038, 0.030),
    ((0.132, -0.922, 0.055), (0.142, -0.930, 0.115), 0.028, 0.021),
    ((0.110, -0.920, 0.060), (0.120, -0.931, 0.140), 0.030, 0.023),
    ((0.105, -0.915, -0.045), (0.118, -0.930, 0.080), 0.036, 0.028),
]
_ARM = [
    ((0.165, 0.432, -0.021), (0.205, 0.434, -0.022), 0.062, 0.057),
    ((0.205, 0.434, -0.022), (0.30, 0.434, -0.028), 0.055, 0.048),
    ((0.30, 0.434, -0.028), (0.43, 0.435, -0.035), 0.047, 0.039),
    ((0.43, 0.435, -0.035), (0.50, 0.437, -0.033), 0.039, 0.041),
    ((0.50, 0.437, -0.033), (0.665, 0.438, -0.035), 0.041, 0.027),
    ((0.670, 0.438, -0.043), (0.775, 0.434, -0.060), 0.020, 0.014),
    ((0.670, 0.438, -0.027), (0.775, 0.436, -0.020), 0.020, 0.015),
    ((0.775, 0.434, -0.058), (0.838, 0.428, -0.054), 0.0135, 0.0105),
    ((0.775, 0.436, -0.040), (0.855, 0.430, -0.040), 0.0150, 0.0115),
    ((0.775, 0.436, -0.022), (0.842, 0.430, -0.026), 0.0140, 0.0110),
    ((0.700, 0.434, -0.012), (0.755, 0.426, 0.016), 0.017, 0.012),
]


@lru_cache(maxsize=8)
def _cones(part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    rows = {"torso": _TORSO, "leg": _LEG, "arm": _ARM}[part.split("_")[-1]]
    signs = (1,) if part.startswith("left") else (-1,) if part.startswith("right") else (1, -1)
    built = []
    for a, b, ra, rb in rows:
        for sign in signs if a[0] or b[0] else (1,):
            built.append((np.array(a) * [sign, 1, 1], np.array(b) * [sign, 1, 1], ra, rb))
    return tuple(np.array([row[k] for row in built], float) for k in range(4))  # type: ignore[return-value]


def skin(points: np.ndarray, owner: np.ndarray) -> np.ndarray:
    """Signed distance (N,) to the skin. `owner` (N,): the limb a vertex belongs to (place in `LIMBS`), or −1 for the trunk.

    A limb's vertex sees only the trunk and its own limb, so the thighs never grow together.
    """
    trunk = solids.blend(solids.cones(points, *_cones("torso")) + 0.004, 0.010)
    out = np.full(len(points), np.inf)
    for k, name in enumerate(LIMBS):
        near = np.flatnonzero((owner == k) | (owner < 0))
        limb = solids.blend(solids.cones(points[near], *_cones(name)) + 0.002, 0.005)
        if name.endswith("leg"):  # thighs leave a slit between them, so they never grow together
            limb = np.maximum(limb, 0.008 - points[near, 0] * (1 if name.startswith("left") else -1))
        joined = solids.blend(np.stack([trunk[near], limb], 1), 0.012)
        out[near] = np.minimum(out[near], joined)
    return out
