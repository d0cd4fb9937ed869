"""Objects in a scene: in the grip of a hand, between two hands, under finger tips, or on the table."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import draw, factors, hands, objects
from data.synthetic.frame import Frame
from data.synthetic.reaching import PlacedHand

OBJECT_ID = 10


@dataclass(frozen=True)
class Thing:
    """An object that is to be shown: its name, colour word, shape family and shade."""

    name: str
    colour: str
    family: int
    shade: int

    @classmethod
    def draw(cls, rng: np.random.Generator, pair: tuple[str, str], split: factors.Split) -> Thing:
        """A thing of a (name, colour) pair in a shape and shade of the split."""
        family, shade = (int(rng.choice(factors.TENTHS[split])) for _ in range(2))
        return cls(*pair, family, shade)

    @property
    def mesh(self) -> objects.ObjectMesh:
        """Its surface, metres."""
        return objects.build(self.name, self.family)

    @property
    def grasp(self) -> hands.Grasp:
        """How one hand holds it."""
        return hands.rim_grasp() if self.mesh.grip == "rim" else hands.wrap_grasp(int(round(self.mesh.grip_radius * 1000)))


@dataclass(frozen=True)
class PlacedObject:
    """A thing before the camera: `vertices` and `normals` (V, 3), camera frame, metres."""

    thing: Thing
    vertices: np.ndarray
    normals: np.ndarray
    held_by: tuple[str, ...] = ()
    touched_by: tuple[str, ...] = ()

    def part(self, number: int) -> draw.Part:
        """The surface to draw, as object number `number` of the scene."""
        rgb = factors.shade_rgb(self.thing.colour, self.thing.shade)
        return draw.Part(OBJECT_ID + number, self.vertices, self.normals, self.thing.mesh.faces, np.tile(rgb, (len(self.vertices), 1)))

    def record(self, box: list[float], visible: float) -> dict[str, Any]:
        """The object's entry in scenes.jsonl."""
        return {
            "name": self.thing.name, "colour": self.thing.colour, "bbox_xyxy": box, "visible_fraction": round(float(visible), 4),
            "held_by": list(self.held_by), "touched_by": list(self.touched_by), "family": self.thing.family, "shade": self.thing.shade,
        }  # fmt: skip


def put_in_hand(rng: np.random.Generator, thing: Thing, hand: PlacedHand) -> PlacedObject | None:
    """The thing in a hand's grip, turned as the grip wants it; None when it would touch the lens."""
    mesh, grasp = thing.mesh, thing.grasp
    z, across = hand.axes @ grasp.axis, hand.axes @ grasp.across
    ahead = across - z * (across @ z)
    ahead /= np.linalg.norm(ahead)
    if mesh.grip == "rim":
        twist, anchor = 0.0, np.array([-(mesh.grip_radius - 0.012), 0.0, mesh.grip_height])
    else:
        # a cup's ear stays clear of the fingers, a box lies flat against the palm, the rest may turn freely
        clear = (0.7 if hand.side == "right" else -0.7) + rng.normal(0, 0.25)
        twist = {"cup": clear, "box": rng.normal(0, 0.12) - np.pi / 2}.get(thing.name, rng.uniform(-np.pi, np.pi))
        anchor = np.array([0.0, 0.0, mesh.grip_height])
    x = np.cos(twist) * ahead + np.sin(twist) * np.cross(z, ahead)
    turn = np.stack([x, np.cross(z, x), z], axis=1) @ Rotation.from_rotvec(rng.normal(0, 0.07, 3)).as_matrix()
    vertices = hand.joints[9] + hand.axes @ grasp.point + (mesh.vertices - anchor) @ turn.T
    if vertices[:, 2].min() < 0.1:
        return None
    return PlacedObject(thing, vertices, mesh.normals @ turn.T, held_by=(hand.side,), touched_by=(hand.side,))


def two_handed_size(rng: np.random.Generator, thing: Thing) -> tuple[float, float]:
    """`(radius, scale)` at which a thing is something for two hands: half the distance of the palms, metres, and how much it grows."""
    wide = thing.mesh.grip_radius
    scale = min(rng.uniform(0.055, 0.085) / wide, 0.19 / float(np.ptp(thing.mesh.vertices, axis=0).max()))
    return wide * scale, scale


def put_between(rng: np.random.Generator, thing: Thing, scale: float, middle: np.ndarray, axis: np.ndarray, frame: Frame) -> PlacedObject:
    """The thing, `scale` times its size, held by both hands at `middle` (3,) with its axis along `axis` (3,)."""
    mesh = thing.mesh
    x = np.cross(frame.away, axis)
    x /= np.linalg.norm(x)
    x = Rotation.from_rotvec(axis * rng.uniform(0, 2 * np.pi)).apply(x)
    turn = np.stack([x, np.cross(axis, x), axis], axis=1)
    vertices = middle + (mesh.vertices - [0, 0, mesh.grip_height]) * scale @ turn.T
    return PlacedObject(thing, vertices, mesh.normals @ turn.T, held_by=("left", "right"), touched_by=("left", "right"))


def put_under_fingers(rng: np.random.Generator, thing: Thing, hand: PlacedHand, frame: Frame) -> PlacedObject | None:
    """The thing standing so that a finger tip rests on its surface; None when the pad of the finger looks the wrong way."""
    tip = int(rng.choice([8, 12]))
    along = hand.joints[tip] - hand.joints[tip - 1]
    pad = np.cross(np.cross(hand.axes[:, 0], hand.axes[:, 1]), along / np.linalg.norm(along))
    shape, normals = _stand(rng, thing, frame)
    facing = -(normals @ pad)
    facing[shape @ frame.up < 0.3 * np.max(shape @ frame.up)] = -1.0
    if facing.max() < 0.75:
        return None
    spots = np.flatnonzero(facing > max(0.75, facing.max() - 0.15))
    vertices = shape - shape[spots[rng.integers(len(spots))]] + hand.joints[tip] + pad * 0.005
    if vertices[:, 2].min() < 0.12:
        return None
    return PlacedObject(thing, vertices, normals, touched_by=(hand.side,))


def put_on_table(rng: np.random.Generator, thing: Thing, frame: Frame, layers: list[draw.Layer]) -> PlacedObject | None:
    """The thing standing or lying on the table where little else is; None when no place was found."""
    shape, normals = _stand(rng, thing, frame)
    for _ in range(10):
        pixel = rng.uniform(0.06, 0.94, 2) * frame.extent
        ray = frame.ray(pixel)
        drop = -(ray @ frame.up)
        if drop < 0.25:
            continue
        base = ray * frame.height / drop
        extent = np.ptp(frame.project(base + shape), axis=0).max() / frame.short
        vertices = base + shape * (rng.uniform(0.13, 0.29) / extent)
        if _room_for(frame.project(vertices), frame, layers):
            return PlacedObject(thing, vertices, normals)
    return None


def _stand(rng: np.random.Generator, thing: Thing, frame: Frame) -> tuple[np.ndarray, np.ndarray]:
    """Vertices around the origin and normals of the thing on a level ground through the origin: cutlery lies, the rest mostly stands."""
    turn = rng.uniform(0, 2 * np.pi)
    level = np.cos(turn) * np.cross(frame.up, frame.away) + np.sin(turn) * frame.away
    lies = thing.name in ("knife", "spoon") or (thing.name in ("cup", "bottle", "box") and rng.random() < 0.2)
    columns = [np.cross(frame.up, level), frame.up, level] if lies else [level, np.cross(frame.up, level), frame.up]
    axes = np.stack(columns, axis=1)
    shape = thing.mesh.vertices @ axes.T
    shape = shape - (shape.min(0) + shape.max(0)) / 2
    return shape - frame.up * (shape @ frame.up).min(), thing.mesh.normals @ axes.T


def _room_for(points: np.ndarray, frame: Frame, layers: list[draw.Layer]) -> bool:
    """Whether an object's box is inside the picture and overlaps others little (objects) or not too much (hands)."""
    (x1, y1), (x2, y2) = points.min(0), points.max(0)
    slack = 0.02 * frame.short
    if min(x1, y1) < -slack or x2 > frame.size[0] + slack or y2 > frame.size[1] + slack:
        return False
    for layer in layers:
        ox1, oy1, ox2, oy2 = layer.box
        overlap = max(0.0, min(x2, ox2) - max(x1, ox1)) * max(0.0, min(y2, oy2) - max(y1, oy1))
        limit = 0.2 if layer.part.id >= OBJECT_ID else 0.45 if layer.part.id <= 2 else 0.8
        if overlap > limit * min((x2 - x1) * (y2 - y1), (ox2 - ox1) * (oy2 - oy1)):
            return False
    return True
