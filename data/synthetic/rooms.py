"""Furnished rooms as one mesh: floor, walls, tables with chairs, a sofa, a cabinet; and the places where a person can be in them.

Scene frame: metres, y up, the floor at y = 0, the room's middle at x = z = 0. Surfaces are grids with a vertex every `STEP` metres, so
that the vertices alone are a scan of the room. A heading of `yaw` radians looks along (sin yaw, 0, cos yaw).
"""

from __future__ import annotations

import colorsys
from dataclasses import dataclass
from typing import Literal

import numpy as np

STEP = 0.05
WALL = 2.5
"""Height of the walls, metres."""

PlaceKind = Literal["stand", "sit", "lean", "behind"]


@dataclass(frozen=True)
class Place:
    """Where a person can be: `kind`, the pelvis' (x, z) metres, the heading, and the seat's height where one sits."""

    kind: PlaceKind
    position: tuple[float, float]
    yaw: float
    seat: float = 0.0


@dataclass(frozen=True)
class Room:
    """`vertices` (V, 3) metres, `faces` (F, 3) outward, `colours` (V, 3) 0–1, and where people can be; `size` is its (x, z) extent."""

    vertices: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    places: tuple[Place, ...]
    size: tuple[float, float]


class _Builder:
    """Collects surfaces; furniture is made in its own frame and set down by `turned`."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng
        self.vertices: list[np.ndarray] = []
        self.faces: list[np.ndarray] = []
        self.colours: list[np.ndarray] = []
        self.count = 0
        self.position, self.yaw = np.zeros(3), 0.0

    def turned(self, position: tuple[float, float], yaw: float) -> _Builder:
        """What follows is set down at (x, z) with this heading."""
        self.position, self.yaw = np.array([position[0], 0.0, position[1]]), yaw
        return self

    def panel(self, corner: np.ndarray, along: np.ndarray, up: np.ndarray, colour: np.ndarray) -> None:
        """A rectangle from `corner` along two edges; its front is the side of along × up."""
        n, m = (max(2, int(np.ceil(np.linalg.norm(edge) / STEP)) + 1) for edge in (along, up))
        s, t = np.meshgrid(np.linspace(0, 1, n), np.linspace(0, 1, m), indexing="ij")
        points = corner + s.reshape(-1, 1) * along + t.reshape(-1, 1) * up
        number = np.arange(n * m).reshape(n, m)
        a, b, c, d = number[:-1, :-1].ravel(), number[1:, :-1].ravel(), number[1:, 1:].ravel(), number[:-1, 1:].ravel()
        self.vertices.append(points @ _about_y(self.yaw).T + self.position)
        self.faces.append(np.concatenate([np.stack([a, b, c], 1), np.stack([a, c, d], 1)]) + self.count)
        grain = 1 + 0.05 * self.rng.standard_normal((n * m, 1))
        self.colours.append(np.clip(colour * grain, 0, 1))
        self.count += n * m

    def box(self, low: tuple[float, float, float], high: tuple[float, float, float], colour: np.ndarray, *, bottom: bool = True) -> None:
        """An upright box between two corners of the furniture's frame."""
        low_, high_ = np.array(low), np.array(high)
        dx, dy, dz = np.diag(high_ - low_)
        self.panel(low_ + dy, dz, dx, colour)  # top
        if bottom:
            self.panel(low_, dx, dz, colour)
        self.panel(low_ + dz, dx, dy, colour)
        self.panel(low_, dy, dx, colour)
        self.panel(low_, dz, dy, colour)
        self.panel(low_ + dx, dy, dz, colour)

    def room(self, places: list[Place], size: tuple[float, float]) -> Room:
        vertices, faces, colours = (np.concatenate(part) for part in (self.vertices, self.faces, self.colours))
        return Room(vertices, faces, colours, tuple(places), size)


def make_room(rng: np.random.Generator) -> Room:
    """A room drawn from `rng`: a table with two chairs in one half, a sofa at a wall of the other, a cabinet, and free floor."""
    width, depth = rng.uniform(4.2, 6.0), rng.uniform(3.8, 5.2)
    builder, places = _Builder(rng), []
    _shell(builder, width, depth)
    side = rng.choice([-1.0, 1.0])
    _table_with_chairs(builder, places, (side * width * rng.uniform(0.16, 0.24), rng.uniform(-0.3, 0.3)), rng.uniform(-0.3, 0.3))
    _sofa(builder, places, (-side * (width / 2 - 0.5), rng.uniform(-0.6, 0.6)), side * np.pi / 2)
    _cabinet(builder, (side * rng.uniform(-0.2, 0.5) * width / 2, -depth / 2 + 0.25), 0.0)
    for _ in range(3):
        spot = (-side * rng.uniform(-0.02, 0.16) * width, rng.uniform(-0.3, 0.32) * depth)
        places.append(Place("stand", spot, rng.uniform(-np.pi, np.pi)))
    return builder.room(places, (width, depth))


def _about_y(yaw: float) -> np.ndarray:
    c, s = np.cos(yaw), np.sin(yaw)
    return np.array([[c, 0, s], [0, 1, 0], [-s, 0, c]])


def _ahead(position: tuple[float, float], yaw: float, right: float, ahead: float) -> tuple[float, float]:
    """The spot `right` (local x) and `ahead` (local z) of a position with a heading."""
    x, _, z = _about_y(yaw) @ np.array([right, 0.0, ahead])
    return float(position[0] + x), float(position[1] + z)


def _colour(rng: np.random.Generator, value: tuple[float, float], saturation: tuple[float, float] = (0.05, 0.45)) -> np.ndarray:
    hue = rng.uniform(0.04, 0.13) if rng.random() < 0.5 else rng.random()
    return np.array(colorsys.hsv_to_rgb(hue, rng.uniform(*saturation), rng.uniform(*value)))


def _shell(builder: _Builder, width: float, depth: float) -> None:
    """Floor and four walls, seen from inside."""
    rng = builder.turned((0.0, 0.0), 0.0).rng
    x, z, up = np.array([width, 0, 0]), np.array([0, 0, depth]), np.array([0, WALL, 0])
    corner = -(x + z) / 2
    builder.panel(corner, z, x, _colour(rng, (0.3, 0.7)))
    wall = _colour(rng, (0.6, 0.95), (0.0, 0.2))
    shades = [wall * shade for shade in rng.uniform(0.85, 1.0, 4)]
    builder.panel(corner, x, up, shades[0])
    builder.panel(corner + z, up, x, shades[1])
    builder.panel(corner, up, z, shades[2])
    builder.panel(corner + x, z, up, shades[3])


def _table_with_chairs(builder: _Builder, places: list[Place], position: tuple[float, float], yaw: float) -> None:
    rng = builder.rng
    width, depth, height = rng.uniform(1.1, 1.6), rng.uniform(0.65, 0.9), rng.uniform(0.71, 0.77)
    wood, seat_colour = _colour(rng, (0.35, 0.85)), _colour(rng, (0.2, 0.8))
    builder.turned(position, yaw)
    builder.box((-width / 2, height - 0.04, -depth / 2), (width / 2, height, depth / 2), wood)
    for x in (-width / 2 + 0.03, width / 2 - 0.08):
        for z in (-depth / 2 + 0.03, depth / 2 - 0.08):
            builder.box((x, 0, z), (x + 0.05, height - 0.04, z + 0.05), wood, bottom=False)
    seat = rng.uniform(0.43, 0.48)
    for sign in (-1.0, 1.0):
        beside = rng.uniform(-0.2, 0.2) * width
        ahead = sign * (depth / 2 + rng.uniform(0.2, 0.35))
        heading = yaw + (np.pi if sign > 0 else 0.0)
        _chair(builder, places, _ahead(position, yaw, beside, ahead), heading, seat, seat_colour)
    ahead = depth / 2 + rng.uniform(0.18, 0.24)
    end = width / 2 + rng.uniform(0.22, 0.3)
    right = rng.choice([-1.0, 1.0])
    places.append(Place("lean", _ahead(position, yaw, right * end, 0.0), yaw - right * np.pi / 2))
    places.append(Place("behind", _ahead(position, yaw, right * width * 0.42, ahead), yaw + np.pi))


def _chair(
    builder: _Builder, places: list[Place], position: tuple[float, float], yaw: float, seat: float, colour: np.ndarray
) -> None:
    """A chair whose seat's middle is at `position`."""
    builder.turned(position, yaw)
    builder.box((-0.21, seat - 0.04, -0.21), (0.21, seat, 0.21), colour)
    builder.box((-0.21, seat, -0.25), (0.21, seat + 0.42, -0.21), colour)
    for x in (-0.21, 0.17):
        for z in (-0.25, 0.17):
            builder.box((x, 0, z), (x + 0.04, seat - 0.04, z + 0.04), colour * 0.7, bottom=False)
    places.append(Place("sit", _ahead(position, yaw, 0.0, -0.04), yaw, seat))


def _sofa(builder: _Builder, places: list[Place], position: tuple[float, float], yaw: float) -> None:
    rng = builder.rng
    width, seat, colour = rng.uniform(1.6, 2.1), rng.uniform(0.4, 0.46), _colour(rng, (0.25, 0.8))
    builder.turned(position, yaw)
    builder.box((-width / 2, 0, -0.4), (width / 2, seat, 0.35), colour, bottom=False)
    builder.box((-width / 2, seat, -0.45), (width / 2, seat + 0.42, -0.25), colour * 0.9)
    for x in (-width / 2 - 0.15, width / 2):
        builder.box((x, 0, -0.45), (x + 0.15, seat + 0.2, 0.35), colour * 0.9, bottom=False)
    for share in (-0.25, 0.25):
        places.append(Place("sit", _ahead(position, yaw, share * width + rng.uniform(-0.1, 0.1), 0.0), yaw, seat))


def _cabinet(builder: _Builder, position: tuple[float, float], yaw: float) -> None:
    rng = builder.rng
    width, height = rng.uniform(0.7, 1.4), rng.uniform(0.8, 1.9)
    builder.turned(position, yaw)
    builder.box((-width / 2, 0, -0.2), (width / 2, height, 0.2), _colour(rng, (0.3, 0.9)), bottom=False)
