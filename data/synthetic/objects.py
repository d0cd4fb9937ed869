"""Solid objects as small meshes: eight names, each with ten shape families, and how a hand takes hold of them.

Object frame: metres, z up along the object's axis, the origin at the middle of its base.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from typing import Literal

import numpy as np

Grip = Literal["wrap", "rim"]
SEGMENTS = 18


@dataclass(frozen=True)
class ObjectMesh:
    """`vertices` (V, 3) and `normals` (V, 3) metres, object frame; `faces` (F, 3) int32, seen from outside counter-clockwise.

    A "wrap" grip closes the hand around the axis at height `grip_height`, where the object is `grip_radius` thick; a "rim"
    grip pinches the edge at radius `grip_radius` and height `grip_height`.
    """

    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    grip: Grip
    grip_radius: float
    grip_height: float


Part = tuple[np.ndarray, np.ndarray, np.ndarray]


def _join(parts: list[Part]) -> Part:
    offsets = np.cumsum([0] + [len(p[0]) for p in parts[:-1]])
    return (
        np.concatenate([p[0] for p in parts]),
        np.concatenate([p[1] for p in parts]),
        np.concatenate([p[2] + o for p, o in zip(parts, offsets, strict=True)]).astype(np.int32),
    )


def lathe(profile: list[tuple[float, float]], segments: int = SEGMENTS, smooth: float = 35.0) -> Part:
    """The surface of revolution of (radius, height) points, walked so that the outside is on the right.

    Neighbouring bands share a normal where the profile turns less than `smooth` degrees.
    """
    points = np.asarray(profile, dtype=float)
    along = np.diff(points, axis=0)
    along /= np.linalg.norm(along, axis=1, keepdims=True) + 1e-12
    normal = np.stack([along[:, 1], -along[:, 0]], axis=1)
    start, end = normal.copy(), normal.copy()
    for i in range(len(normal) - 1):
        if normal[i] @ normal[i + 1] > np.cos(np.radians(smooth)):
            mean = normal[i] + normal[i + 1]
            end[i] = start[i + 1] = mean / np.linalg.norm(mean)
    angle = np.linspace(0, 2 * np.pi, segments, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)

    def ring(radius: float, height: float) -> np.ndarray:
        return np.concatenate([circle * radius, np.full((segments, 1), height)], axis=1)

    vertices = np.concatenate([np.concatenate([ring(*points[i]), ring(*points[i + 1])]) for i in range(len(normal))])
    normals = np.concatenate([np.concatenate([ring(*start[i]), ring(*end[i])]) for i in range(len(normal))])
    a = np.arange(segments)
    b = (a + 1) % segments
    quad = np.concatenate([np.stack([a, b, b + segments], 1), np.stack([a, b + segments, a + segments], 1)])
    faces = np.concatenate([quad + 2 * segments * i for i in range(len(normal))])
    return vertices, normals, faces.astype(np.int32)


def block(x: float, y: float, z0: float, z1: float, taper: float = 1.0) -> Part:
    """A box of half-widths x and y from z0 to z1; `taper` scales the top."""
    vertices, normals, faces = [], [], []
    low = [np.array([sx * x, sy * y, z0]) for sx, sy in ((-1, -1), (1, -1), (1, 1), (-1, 1))]
    high = [np.array([p[0] * taper, p[1] * taper, z1]) for p in low]
    sides = [(low[i], low[(i + 1) % 4], high[(i + 1) % 4], high[i]) for i in range(4)]
    for quad in [*sides, tuple(high), tuple(reversed(low))]:
        normal = np.cross(quad[1] - quad[0], quad[3] - quad[0])
        faces += [[len(vertices) + k for k in tri] for tri in ((0, 1, 2), (0, 2, 3))]
        vertices += list(quad)
        normals += [normal / (np.linalg.norm(normal) + 1e-12)] * 4
    return np.array(vertices), np.array(normals), np.array(faces, dtype=np.int32)


def ellipsoid(radii: tuple[float, float, float], centre: tuple[float, float, float], rings: int = 9) -> Part:
    """An ellipsoid with its poles on z."""
    angle = np.linspace(-np.pi / 2, np.pi / 2, rings)
    vertices, normals, faces = lathe([(np.cos(a), np.sin(a)) for a in angle], 14, smooth=90)
    scaled = normals / np.asarray(radii)
    return vertices * radii + centre, scaled / np.linalg.norm(scaled, axis=1, keepdims=True), faces


def _handle(radius: float, height: float, size: float, thickness: float) -> Part:
    """A cup's handle: three quarters of a ring standing on the wall at `radius`."""
    turn = np.linspace(-0.55 * np.pi, 0.55 * np.pi, 8)
    around = np.linspace(0, 2 * np.pi, 7, endpoint=False)
    out = np.stack([np.cos(turn), np.zeros_like(turn), np.sin(turn)], 1)
    centre = out * [size * 0.8, 0, size] + [radius - 0.004, 0, height]
    normals = np.cos(around)[None, :, None] * out[:, None] + np.sin(around)[None, :, None] * np.array([0.0, 1.0, 0.0])
    vertices = centre[:, None] + thickness * normals
    a = np.arange(7 * len(around)).reshape(7, len(around))
    b = np.roll(a, -1, axis=1)
    n = len(around)
    faces = np.concatenate([np.stack([a, b + n, a + n], -1).reshape(-1, 3), np.stack([a, b, b + n], -1).reshape(-1, 3)])
    return vertices.reshape(-1, 3), normals.reshape(-1, 3), faces.astype(np.int32)


def _mesh(part: Part, grip: Grip, radius: float, height: float) -> ObjectMesh:
    return ObjectMesh(part[0], part[1], part[2], grip, radius, height)


def _cup(u: np.ndarray) -> ObjectMesh:
    r, h, flare, wall = 0.031 + 0.010 * u[0], 0.075 + 0.05 * u[1], 0.98 + 0.3 * u[2], 0.004
    top = r * flare
    body = lathe([(0, 0), (r, 0), (top, h), (top - wall, h), (r - wall, wall), (0, wall)])
    parts = [body] if u[3] < 0.3 else [body, _handle((r + top) / 2, h * 0.52, h * (0.25 + 0.1 * u[4]), 0.006)]
    return _mesh(_join(parts), "wrap", max(r, top), h * 0.5)


def _bottle(u: np.ndarray) -> ObjectMesh:
    r, h, neck, shoulder = 0.026 + 0.011 * u[0], 0.17 + 0.07 * u[1], 0.010 + 0.006 * u[2], 0.52 + 0.22 * u[3]
    waist = r * (0.82 + 0.18 * u[4])
    body = [(0, 0), (r * 0.92, 0), (r, 0.01), (waist, h * 0.3), (r, h * shoulder), (neck, h * (shoulder + 0.16))]
    cap = [(neck, h * 0.90), (neck * 1.3, h * 0.90), (neck * 1.3, h), (0, h)]
    return _mesh(lathe(body + cap, smooth=50), "wrap", r, h * 0.34)


def _bowl(u: np.ndarray) -> ObjectMesh:
    r, h, foot, wall = 0.055 + 0.02 * u[0], 0.040 + 0.03 * u[1], 0.4 + 0.2 * u[2], 0.004
    power = 0.45 + 0.35 * u[3]
    t = np.linspace(0, 1, 5)
    outer = [(r * (foot + (1 - foot) * k**power), h * k) for k in t]
    inner = [(x - wall, max(z, wall)) for x, z in reversed(outer)]
    return _mesh(lathe([(0, 0), *outer, *inner, (0, wall)]), "rim", r, h)


def _plate(u: np.ndarray) -> ObjectMesh:
    r, h, flat = 0.075 + 0.025 * u[0], 0.010 + 0.012 * u[1], 0.55 + 0.2 * u[2]
    profile = [(0, 0), (r * flat, 0), (r, h), (r, h + 0.004), (r * flat, 0.005), (0, 0.005)]
    return _mesh(lathe(profile, 24, smooth=8), "rim", r, h)


def _box(u: np.ndarray) -> ObjectMesh:
    x, y, h = 0.026 + 0.022 * u[0], 0.018 + 0.016 * u[1], 0.07 + 0.10 * u[2]
    return _mesh(block(x, y, 0, h, 1 - 0.12 * u[3]), "wrap", y + 0.004, h * 0.5)


def _ball(u: np.ndarray) -> ObjectMesh:
    r, squash = 0.030 + 0.018 * u[0], 0.9 + 0.1 * u[1]
    return _mesh(ellipsoid((r, r, r * squash), (0, 0, r * squash), 11), "wrap", r, r * squash)


def _handle_bar(u: np.ndarray) -> tuple[Part, float]:
    length, thick = 0.085 + 0.03 * u[0], 0.0075 + 0.003 * u[1]
    return lathe([(0, 0), (thick, 0.004), (thick * 1.15, length * 0.5), (thick * 0.85, length)], 8, smooth=60), length


def _knife(u: np.ndarray) -> ObjectMesh:
    bar, length = _handle_bar(u)
    blade, width = 0.09 + 0.05 * u[2], 0.013 + 0.009 * u[3]
    tip, spine = 0.5 + 0.4 * u[4], 0.0018
    outline = np.array([(-width, 0), (width * 0.8, 0), (width * 0.8, blade), (-width * 0.1, blade), (-width, blade * tip)])
    z = outline[:, 1] + length - 0.003
    face = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4]], dtype=np.int32)
    sides = []
    for sign in (1.0, -1.0):
        vertices = np.stack([outline[:, 0], np.full(5, sign * spine), z], 1)
        normals = np.tile([0.0, sign, 0.0], (5, 1))
        sides.append((vertices, normals, face if sign < 0 else face[:, ::-1]))
    return _mesh(_join([bar, *sides]), "wrap", 0.009, length * 0.5)


def _spoon(u: np.ndarray) -> ObjectMesh:
    bar, length = _handle_bar(u)
    width, long = 0.019 + 0.008 * u[2], 0.028 + 0.012 * u[3]
    neck = 0.02 + 0.03 * u[4]
    stem = lathe([(0.005, length - 0.002), (0.004, length + neck + 0.01)], 8)
    head = ellipsoid((width, 0.008, long), (0, 0, length + neck + long), 9)
    return _mesh(_join([bar, stem, head]), "wrap", 0.009, length * 0.5)


_BUILDERS = {"cup": _cup, "bottle": _bottle, "bowl": _bowl, "plate": _plate, "box": _box, "ball": _ball, "knife": _knife, "spoon": _spoon}


@cache
def build(name: str, family: int) -> ObjectMesh:
    """The mesh of shape family 0..9 of a name; a family fixes the proportions (scenes only scale it)."""
    if name not in _BUILDERS:
        raise ValueError(f"no object is called {name!r}; the names are {', '.join(_BUILDERS)}")
    rng = np.random.default_rng([list(_BUILDERS).index(name), family])
    # the first two proportions walk evenly through their range, so neighbouring families never coincide
    u = rng.random(5)
    u[0], u[1] = (family * 3 % 10) / 9.0, (family * 7 % 10) / 9.0
    return _BUILDERS[name](u)
