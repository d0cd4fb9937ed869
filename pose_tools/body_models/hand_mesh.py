"""The stand-in hand's mesh: 778 vertices and 1538 faces laid out as rings, then pulled onto the skin of `hand_shape`.

The palm is a stack of rings of 28 (13 across the back, 1 on the outer edge, 13 across the palm, 1 on the thumb's side). The
last one splits into four loops of 10, a patch on the thumb's side is cut out for a fifth; each loop carries a tube of rings
with a rounded cap. The wrist is an open ring of 16.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial

import numpy as np

from pose_tools.body_models import hand_shape, meshing, solids
from pose_tools.body_models.kinematics import MANO_FINGERS, TIP_VERTICES

_ACROSS, _RING, _PALM_RINGS = 13, 28, 9
_THUMB_ROWS = (1, 4)
_LONG_ORDER = ("index", "middle", "ring", "pinky")  # along the ring, from the thumb outwards
_ANGLES = np.radians([-54, -18, 18, 54, 90, 126, 162, -162, -126, -90])  # of a tube's ten vertices, from the back of the finger

_TIP_IDS = {
    name: sorted({ids[k] for ids in TIP_VERTICES.values()}, key=[i[k] for i in TIP_VERTICES.values()].index)
    for k, name in enumerate(("thumb", "index", "middle", "ring", "pinky"))
}
"""Per finger the vertex numbers the four conventions use, FreiHAND's first: it becomes the pole of the finger's cap."""


@dataclass(frozen=True)
class HandMesh:
    """`vertices` (778, 3) mm in the design frame, `faces` (1538, 3) outward, `owner` (778,) finger 0…4 or −1, `station` (778,) mm
    along the owner's bones from its first joint (0 for the palm)."""

    vertices: np.ndarray
    faces: np.ndarray
    owner: np.ndarray
    station: np.ndarray


def build() -> HandMesh:
    """The mesh at rest; always the same."""
    points, owner, station, faces, poles = _layout()
    faces = np.array(faces)
    points = _settle(points, owner, station, faces)
    order = _numbering(points, owner, poles)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return HandMesh(points[order], rank[_short_diagonals(points, faces)], owner[order], station[order])


def _layout() -> tuple[np.ndarray, np.ndarray, np.ndarray, list, dict[str, int]]:
    """First positions and the connectivity: points, owner, station, faces, and the pole of each finger."""
    points, owner, station, faces = [], [], [], []

    def add(new: np.ndarray, finger: int, at: float = 0.0) -> list[int]:
        first = len(points)
        points.extend(np.asarray(new, float))
        owner.extend([finger] * len(new))
        station.extend([at] * len(new))
        return list(range(first, len(points)))

    wrist = [add(_wrist_ring(16, hand_shape.WRIST_CUT), -1), add(_wrist_ring(19, -1.0), -1)]
    palm = _palm_grid()
    removed = [(row, _RING - 1) for row in range(_THUMB_ROWS[0] + 1, _THUMB_ROWS[1])]
    grid = np.full((_PALM_RINGS, _RING), -1)
    for row in range(_PALM_RINGS):
        for col in range(_RING):
            if (row, col) not in removed:
                grid[row, col] = add(palm[row, col][None], -1)[0]
    webs = [add(0.5 * (palm[-1, c] + palm[-1, 26 - c])[None], -1)[0] for c in (3, 6, 9)]

    faces += meshing.strip(wrist[0], wrist[1]) + meshing.strip(wrist[1], list(grid[0]))
    for row in range(_PALM_RINGS - 1):
        for col in range(_RING):
            if _THUMB_ROWS[0] <= row < _THUMB_ROWS[1] and col in (26, 27):
                continue
            a, b, c, d = grid[row, col], grid[row, (col + 1) % _RING], grid[row + 1, (col + 1) % _RING], grid[row + 1, col]
            faces += [(a, b, c), (a, c, d)]

    poles = {}
    for k, name in enumerate(MANO_FINGERS):
        loop = _thumb_loop(grid) if name == "thumb" else _finger_loop(grid, webs, _LONG_ORDER.index(name))
        for ring, at in _tube(name):
            ring = add(ring, k, at)
            faces += meshing.strip(loop, ring) if len(ring) > 1 else meshing.fan(loop, ring[0])
            loop = ring
        poles[name] = loop[0]
    return np.array(points), np.array(owner), np.array(station), faces, poles


def _wrist_ring(count: int, u: float) -> np.ndarray:
    # The palm's columns start at the radial end of the back, so does this ring.
    angle = np.radians(40.0) + 2 * np.pi * np.arange(count) / count
    return np.stack([np.full(count, u), 26 * np.cos(angle), 17 * np.sin(angle)], 1)


def _palm_grid() -> np.ndarray:
    """First positions (rings, 28, 3) of the palm, from the wrist to the crotches of the fingers."""
    ends = []
    for c in range(_ACROSS):
        i, part = min(c // 3, 3), (c - 3 * min(c // 3, 3)) / 3
        ends.append((1 - part) * _crotch(i) + part * _crotch(i + 1))
    ends = np.array(ends)
    rings = []
    for row in range(_PALM_RINGS):
        t = row / (_PALM_RINGS - 1)
        u = 7.0 + t * (ends[:, 0] - 7.0)
        v = (1 - t) * np.linspace(22, -22, _ACROSS) + t * ends[:, 1]
        w = ends[:, 2] * t
        h = (1 - t) * 15 + t * 9
        back = np.stack([u, v, w + h], 1)
        front = np.stack([u, v, w - h], 1)[::-1]
        outer = 0.5 * (back[-1] + front[0]) + [0, -5, 0]
        thumbward = 0.5 * (back[0] + front[-1]) + [0, 5, 0]
        rings.append(np.vstack([back, outer, front, thumbward]))
    return np.array(rings)


def _crotch(i: int) -> np.ndarray:
    """Where finger i − 1 and finger i of `_LONG_ORDER` part; i = 0 and 4 are the free sides of index and pinky."""
    at = [hand_shape.finger_chain(name)[0] for name in _LONG_ORDER]
    reach = 18.5
    point = [c[0] + (c[1] - c[0]) / np.linalg.norm(c[1] - c[0]) * reach for c in at]
    if i == 0:
        return point[0] + [-3.0, 8.5, 0.0]
    if i == 4:
        return point[3] + [-4.0, -7.5, 0.0]
    return 0.5 * (point[i - 1] + point[i])


def _finger_loop(grid: np.ndarray, webs: list[int], i: int) -> list[int]:
    sides = [grid[-1, 27], *webs, grid[-1, 13]]
    back = [grid[-1, 3 * i + k] for k in range(4)]
    front = [grid[-1, 26 - 3 * i - k] for k in (3, 2, 1, 0)]
    return [*back, sides[i + 1], *front, sides[i]]


def _thumb_loop(grid: np.ndarray) -> list[int]:
    low, high = _THUMB_ROWS
    rows = range(low, high + 1)
    return [*(grid[r, 0] for r in rows), grid[high, 27], *(grid[r, 26] for r in reversed(rows)), grid[low, 27]]


def _tube(name: str) -> list[tuple[np.ndarray, float]]:
    """Rings (positions, station) of a finger from its base to the pole."""
    chain, radii = hand_shape.finger_chain(name)
    lengths = np.linalg.norm(np.diff(chain, axis=0), axis=1)
    p, d, tip = np.cumsum(lengths)
    if name == "thumb":
        stations = [p - 8, p - 3.5, p, p + 4, 0.5 * (p + d), d - 4, d, d + 4, d + 0.45 * (tip - d), d + 0.76 * (tip - d)]
        lean = [9.0, 7.0, 5.0, 3.0, 1.0]  # its web reaches further out than its back
    else:
        stations = [23.5, p - 5.0, p, p + 4.2, 0.5 * (p + d) + 0.3, d - 3.2, d + 1.0, d + 0.40 * (tip - d), d + 0.73 * (tip - d)]
        lean = []
        if name == "pinky":
            stations[:3] = 19.8, 23.2, 27.2
    lean += [0.0] * (len(stations) - len(lean))
    across = partial(meshing.tube_ring, back=np.array([0.0, 0.0, 1.0]), reach=6.0)
    rings = [(across(chain, radii, s, _ANGLES, lean=tilt), s) for s, tilt in zip(stations, lean, strict=True)]
    last = d + 0.93 * (tip - d)
    rings.append((across(chain, radii * 0.6, last, _ANGLES[::2]), last))
    rings.append((chain[3][None], tip))
    return rings


def _settle(points: np.ndarray, owner: np.ndarray, station: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Pull the vertices onto the skin and even out their spacing along it; the wrist's rim stays in its plane."""
    rim = points[:, 0] <= hand_shape.WRIST_CUT
    free = np.where(rim[:, None], [0.0, 1.0, 1.0], 1.0)
    pace = np.full(len(points), 0.5)
    for k in range(len(MANO_FINGERS)):
        rings = np.unique(station[owner == k])
        # A tube's first rings give way to the palm, the others stay where the joints need them.
        pace[owner == k] = np.interp(station[owner == k], rings[:3], [0.5, 0.3, 0.04])

    def field(p: np.ndarray) -> np.ndarray:
        return hand_shape.skin(p, np.tile(owner, len(p) // len(owner)))

    return solids.settle(field, points, free, pace, meshing.averaging(faces, len(points)), (5, 11, 2))


def _short_diagonals(points: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Flip the shared edge of two triangles where the other diagonal of their quad is clearly shorter."""
    faces = faces.copy()
    edges: dict[tuple[int, int], int] = {}
    for f, (a, b, c) in enumerate(faces):
        for e in ((a, b), (b, c), (c, a)):
            edges[e] = f
    for (a, b), f in list(edges.items()):
        g = edges.get((b, a))
        if a > b or g is None or a not in faces[f] or b not in faces[f] or a not in faces[g] or b not in faces[g]:
            continue
        c, d = int(faces[f].sum() - a - b), int(faces[g].sum() - a - b)
        if f == g or (c, d) in edges or (d, c) in edges:
            continue
        if np.linalg.norm(points[c] - points[d]) < 0.9 * np.linalg.norm(points[a] - points[b]):
            faces[f], faces[g] = (a, d, c), (d, b, c)
            for e, h in (((a, d), f), ((d, c), f), ((c, a), f), ((d, b), g), ((b, c), g), ((c, d), g)):
                edges[e] = h
            edges.pop((a, b), None)
            edges.pop((b, a), None)
    return faces


def _numbering(points: np.ndarray, owner: np.ndarray, poles: dict[str, int]) -> np.ndarray:
    """Order of the vertices so that MANO's finger-tip numbers lie on the finger tips: pole first, then the nearest on the pad side."""
    order = np.full(len(points), -1)
    taken = np.zeros(len(points), bool)
    for k, name in enumerate(MANO_FINGERS):
        near = np.linalg.norm(points - points[poles[name]] - [0, 0, 1e-3], axis=1) + 1e6 * (owner != k)
        for place, vertex in zip(_TIP_IDS[name], np.argsort(near, kind="stable"), strict=False):
            order[place], taken[vertex] = vertex, True
    order[order < 0] = np.flatnonzero(~taken)
    return order
