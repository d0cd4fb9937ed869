"""The stand-in body's mesh: 6890 vertices and 13776 faces, closed. A cage of rings is subdivided once and pulled onto the skin
of `body_shape`.

The trunk is a stack of rings of 16; a patch of each side is cut out for an arm, the lowest ring splits into two loops for the
legs, the highest goes on as neck and head. Limbs are tubes of 10.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from pose_tools.body_models import body_shape, meshing, solids
from pose_tools.body_models.body_shape import LIMBS

VERTICES = 6890
_RING = 16
_TURN = 2 * np.pi * np.arange(_RING) / _RING  # from the front, towards the left
_TRUNK = [  # height, half width, half depth, centre z
    (-0.10, 0.165, 0.115, -0.01),
    (-0.03, 0.17, 0.115, -0.01),
    (0.04, 0.155, 0.10, -0.005),
    (0.11, 0.145, 0.095, -0.005),
    (0.18, 0.15, 0.095, -0.005),
    (0.25, 0.16, 0.105, 0.0),
    (0.315, 0.17, 0.11, 0.0),
    (0.365, 0.18, 0.10, -0.01),
    (0.41, 0.185, 0.09, -0.015),
    (0.455, 0.16, 0.075, -0.02),
    (0.485, 0.10, 0.065, -0.025),
    (0.52, 0.06, 0.06, -0.02),
    (0.555, 0.056, 0.057, -0.01),
    (0.585, 0.06, 0.075, 0.01),
    (0.62, 0.075, 0.095, 0.01),
    (0.655, 0.083, 0.10, 0.005),
    (0.69, 0.083, 0.095, 0.0),
    (0.725, 0.072, 0.08, -0.002),
    (0.75, 0.048, 0.055, -0.002),
]
_HEIGHTS = (
    -0.10,
    -0.065,
    -0.03,
    0.005,
    0.04,
    0.075,
    0.11,
    0.145,
    0.18,
    0.215,
    0.25,
    0.285,
    0.32,
    0.365,
    0.41,
    0.455,
    0.482,
    0.505,
    0.528,
    0.55,
    0.572,
    0.594,
    0.614,
    0.634,
    0.654,
    0.674,
    0.694,
    0.714,
    0.732,
    0.748,
    0.760,
)
_ARM_ROWS = (12, 15)
_LEG_STATIONS = (0.14, 0.20, 0.27, 0.325, 0.365, 0.40, 0.44, 0.50, 0.58, 0.65, 0.70, 0.745)
_FOOT_STATIONS = (0.865, 0.89, 0.915, 0.94, 0.962, 0.982)
_SHANK_RINGS, _HEEL_RINGS, _ARM_RINGS = 20, 7, 27
_ARM_STATIONS = (0.05, 0.10, 0.15, 0.20, 0.235, 0.265, 0.30, 0.36, 0.43, 0.485, 0.52, 0.55, 0.58, 0.61, 0.64, 0.662, 0.677)


@dataclass(frozen=True)
class BodyMesh:
    """`vertices` (6890, 3) metres, pelvis at the origin, `faces` (13776, 3) outward, `owner` (6890,) limb 0…3 or −1, `station`
    (6890,) metres along the owner's bones from its first joint (0 for the trunk)."""

    vertices: np.ndarray
    faces: np.ndarray
    owner: np.ndarray
    station: np.ndarray


def build() -> BodyMesh:
    """The mesh at rest; always the same."""
    points, owner, station, faces = _cage()
    points = _settle(points, owner, faces, (6, 12, 1))
    faces, carry = meshing.subdivide(faces, len(points))
    points, owner, station = _carried(carry, points, owner, station)
    faces, carry = meshing.split_longest(points, faces, VERTICES - len(points))
    points, owner, station = _carried(carry, points, owner, station)
    points = _fair_crotch(_settle(points, owner, faces, (1, 8, 1)), faces)
    return BodyMesh(points, faces, owner, station)


def _carried(carry, points: np.ndarray, owner: np.ndarray, station: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Values of the finer mesh. A vertex between trunk and limb belongs to the trunk."""
    limbs = np.stack([owner == k for k in range(len(LIMBS))], 1).astype(float)
    share = carry @ limbs
    return carry @ points, np.where(share.max(1) > 0.99, share.argmax(1), -1), carry @ station


def _cage() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    points, owner, station, faces = [], [], [], []

    def add(new: np.ndarray, limb: int = -1, at: float = 0.0) -> list[int]:
        first = len(points)
        points.extend(np.asarray(new, float))
        owner.extend([limb] * len(new))
        station.extend([at] * len(new))
        return list(range(first, len(points)))

    low, high = _ARM_ROWS
    grid = np.full((len(_HEIGHTS), _RING), -1)
    for row, y in enumerate(_HEIGHTS):
        wide, deep, z = (np.interp(y, [ring[0] for ring in _TRUNK], [ring[k] for ring in _TRUNK]) for k in (1, 2, 3))
        ring = np.stack([wide * np.sin(_TURN), np.full(_RING, y), z + deep * np.cos(_TURN)], 1)
        for col in range(_RING):
            if not (low < row < high and col in (4, 12)):
                grid[row, col] = add(ring[col][None])[0]
    crotch = add(np.array([[0.0, -0.13, 0.05], [0.0, -0.145, -0.005], [0.0, -0.13, -0.06]]))
    for row in range(len(_HEIGHTS) - 1):
        for col in range(_RING):
            if low <= row < high and col in (3, 4, 11, 12):
                continue
            a, b, c, d = grid[row, col], grid[row, (col + 1) % _RING], grid[row + 1, (col + 1) % _RING], grid[row + 1, col]
            faces += [(a, b, c), (a, c, d)]
    crown = add(np.array([[0.0, 0.768, -0.002]]))[0]
    faces += meshing.fan(list(grid[-1]), crown)

    front, rear = grid[0, 0], grid[0, 8]
    # Loops turn anticlockwise about the limb, which leaves the trunk downwards or sideways.
    loops = {
        "left_leg": [front, *crotch, rear, *(grid[0, c] for c in range(7, 0, -1))],
        "right_leg": [rear, *reversed(crotch), front, *(grid[0, c] for c in range(15, 8, -1))],
        "left_arm": _arm_loop(grid, 4),
        "right_arm": _arm_loop(grid, 12),
    }
    for k, name in enumerate(LIMBS):
        loop = loops[name]
        for ring, at in _tube(name, np.array([points[v] for v in loop])):
            ring = add(ring, k, at)
            faces += meshing.strip(loop, ring) if len(ring) > 1 else meshing.fan(loop, ring[0])
            loop = ring
    return np.array(points), np.array(owner), np.array(station), np.array(faces)


def _arm_loop(grid: np.ndarray, column: int) -> list[int]:
    low, high = _ARM_ROWS
    rows = range(low, high + 1)
    return [*(grid[r, column + 1] for r in rows), grid[high, column], *(grid[r, column - 1] for r in reversed(rows)), grid[low, column]]


def _tube(name: str, loop: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Rings (positions, station) of a limb, turned so that they start where its `loop` (N, 3) on the trunk starts."""
    chain, radii = body_shape.limb_chain(name)
    leg = name.endswith("leg")
    back = np.array([0.0, 0.0, 1.0]) if leg else np.array([0.0, 1.0, 0.0])
    axis = chain[1] - chain[0]
    side = np.cross(axis, back) / np.linalg.norm(np.cross(axis, back))
    away = loop - loop.mean(0)
    start = np.arctan2(away @ side, away @ back)
    # Ten even angles, shifted as the loop lies.
    shift = np.angle(np.exp(1j * (start - 2 * np.pi * np.arange(len(loop)) / len(loop))).sum())
    angles = shift + 2 * np.pi * np.arange(10) / 10
    length = np.linalg.norm(np.diff(chain, axis=0), axis=1).sum()
    given, count = (_LEG_STATIONS, _SHANK_RINGS) if leg else (_ARM_STATIONS, _ARM_RINGS)
    stations = np.interp(np.linspace(0, len(given) - 1, count), np.arange(len(given)), given)
    rings = [(_limb_ring(chain, radii, s, angles, back, leg), s) for s in stations]
    if leg:
        rings += _heel(chain, angles)
        rings += [(_limb_ring(chain, radii, s, angles, back, leg), s) for s in _FOOT_STATIONS]
    rings.append((_limb_ring(chain, radii * 0.6, length - 0.005, angles[::2], back, leg), length - 0.005))
    rings.append((chain[-1][None], length))
    return rings


def _heel(chain: np.ndarray, angles: np.ndarray) -> list[tuple[np.ndarray, float]]:
    """Rings that fan out round the instep, from level above the ankle to upright across the foot."""
    ankle = np.linalg.norm(np.diff(chain[:3], axis=0), axis=1).sum()
    instep = np.array([chain[2, 0], -0.862, 0.008])
    rings = []
    for turn in np.linspace(0.0, np.pi / 2, _HEEL_RINGS):
        up = np.array([0.0, np.sin(turn), np.cos(turn)])
        axis = np.array([0.0, -np.cos(turn), np.sin(turn)])
        side = np.cross(axis, up)
        ring = instep - 0.045 * up + 0.04 * (np.cos(angles)[:, None] * up + np.sin(angles)[:, None] * side)
        rings.append((ring, ankle - 0.03 + 0.08 * turn / (np.pi / 2)))
    return rings


def _limb_ring(chain: np.ndarray, radii: np.ndarray, station: float, angles: np.ndarray, back: np.ndarray, leg: bool) -> np.ndarray:
    # At the ankle the front of the leg turns into the top of the foot: tilt the reference with it.
    ankle = np.linalg.norm(np.diff(chain[:3], axis=0), axis=1).sum()
    blend = float(np.clip((station - ankle + 0.05) / 0.10, 0, 1)) if leg else 0.0
    # Hands and the front of the feet are broad.
    wide = float(np.interp(station, *(((ankle, ankle + 0.1), (1.0, 1.4)) if leg else ((ankle - 0.02, ankle + 0.06), (1.0, 2.2)))))
    up = (1 - blend) * back + blend * np.array([0.0, 1.0, 0.0])
    return meshing.tube_ring(chain, radii, station, angles, back=up, reach=0.05, wide=wide)


def _settle(points: np.ndarray, owner: np.ndarray, faces: np.ndarray, rounds: tuple[int, int, int]) -> np.ndarray:
    def field(p: np.ndarray) -> np.ndarray:
        return body_shape.skin(p, np.tile(owner, len(p) // len(owner)))

    pace = np.where(owner >= 0, 0.4, 0.5)
    return solids.settle(field, points, np.ones_like(points), pace, meshing.averaging(faces, len(points)), rounds, step=1e-5, furthest=0.02)


def _fair_crotch(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Span a smooth skin between the legs, where the two sides of the slit leave the vertices nothing to hold on to."""
    inside = (np.abs(points[:, 0]) < 0.05) & (points[:, 1] < -0.085) & (points[:, 1] > -0.27)
    ease = np.where(inside, 0.7, 0.0)[:, None]
    mean = meshing.averaging(faces, len(points))
    for _ in range(40):
        points = points + ease * (mean @ points - points)
    return points
