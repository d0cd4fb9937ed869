"""Hands that reach into the picture: where they come from, how they are turned and dressed, how large they appear."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import draw, hands
from data.synthetic.frame import Frame
from pose_tools.raster import vertex_normals
from pose_tools.types import SIDES, Side

HAND_IDS = {"left": 1, "right": 2}
FOREARM_IDS = {"left": 3, "right": 4}
SKIN = np.array(
    [
        [0.95, 0.80, 0.70],
        [0.90, 0.70, 0.58],
        [0.82, 0.60, 0.46],
        [0.70, 0.48, 0.35],
        [0.55, 0.36, 0.25],
        [0.38, 0.24, 0.17],
        [0.28, 0.18, 0.13],
    ]
)
GLOVES = np.array(
    [
        [0.92, 0.92, 0.90],
        [0.35, 0.55, 0.80],
        [0.12, 0.12, 0.13],
        [0.85, 0.75, 0.35],
        [0.45, 0.62, 0.45],
        [0.55, 0.50, 0.45],
        [0.60, 0.35, 0.60],
    ]
)
SHARE = (0.23, 0.385)
"""How much of the picture's short side a hand takes, aimed at; what the forearm and the border hide comes off."""


@dataclass(frozen=True)
class Person:
    """Whose hands they are: colours (3,) 0..1 of `skin`, of the `sleeves` or None for bare arms, and of each side's `gloves`."""

    skin: np.ndarray
    sleeves: np.ndarray | None
    cuff: float
    gloves: dict[str, np.ndarray]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Person:
        """A tenth wears gloves, mostly two of a kind; three fifths wear long sleeves."""
        tone = rng.uniform(0, len(SKIN) - 1.001)
        skin = SKIN[int(tone)] * (1 - tone % 1) + SKIN[int(tone) + 1] * (tone % 1)
        sleeves = np.clip(rng.uniform(0.08, 0.9) + rng.normal(0, 0.12, 3), 0.04, 0.96) if rng.random() < 0.6 else None
        glove = np.clip(GLOVES[rng.integers(len(GLOVES))] + rng.normal(0, 0.03, 3), 0.03, 0.97)
        gloved = rng.choice([0, 1, 2, 3], p=[0.88, 0.02, 0.02, 0.08])
        sides = {0: (), 1: ("left",), 2: ("right",), 3: ("left", "right")}[int(gloved)]
        return cls(skin, sleeves, rng.uniform(0.0, 0.6), dict.fromkeys(sides, glove))


@dataclass(frozen=True)
class Forearm:
    """What a forearm is like: the elbow's `depth` in depths of the wrist, its `girth` in widths of the wrist, whether the glove covers
    it, and by how much a sleeve stands off, in half widths of the wrist."""

    depth: float
    girth: float
    gloved: bool
    sleeve: float

    @classmethod
    def draw(cls, rng: np.random.Generator, person: Person, side: Side) -> Forearm:
        """A forearm of the person; two fifths of the gloves are long."""
        depth, girth = rng.uniform(0.72, 1.02), rng.uniform(1.2, 1.55)
        gloved = side in person.gloves and rng.random() < 0.4
        return cls(depth, girth, gloved, rng.uniform(0.08, 0.3) if person.sleeves is not None else 0.0)


@dataclass(frozen=True)
class Posed:
    """A hand turned and bent, not yet moved: `vertices` (778, 3), `joints` (21, 3), `axes` (3, 3) columns F, N, T, MANO parameters."""

    side: Side
    vertices: np.ndarray
    joints: np.ndarray
    axes: np.ndarray
    mano: dict[str, list[float]]

    @classmethod
    def draw(cls, rng: np.random.Generator, side: Side, rotation: np.ndarray, pose: np.ndarray) -> Posed:
        """The hand of a random shape with a right hand's `pose` (45,), turned by `rotation` (3, 3)."""
        betas = np.clip(rng.normal(0, 0.7, 10), -2, 2)
        orient = Rotation.from_matrix(rotation).as_rotvec()
        # what is stored is what is posed, so labels round-trip through the hand model
        orient, bent, betas = orient.round(6), hands.for_side(pose, side).round(6), betas.round(6)
        vertices, joints = hands.pose_hand(side, orient, bent, betas, np.zeros(3))
        mano = {"global_orient": orient.tolist(), "hand_pose": bent.tolist(), "betas": betas.tolist()}
        return cls(side, vertices, joints, rotation @ hands.skeleton(side).axes, mano)


@dataclass(frozen=True)
class PlacedHand:
    """A posed hand before the camera with its forearm: `vertices` (778, 3) and `joints` (21, 3) metres, `axes` (3, 3) columns F, N, T."""

    side: Side
    vertices: np.ndarray
    joints: np.ndarray
    axes: np.ndarray
    mano: dict[str, list[float]]
    glove: bool
    parts: tuple[draw.Part, ...]
    forearm: Forearm
    entry: np.ndarray
    """Where the forearm comes in, (2,) pixels."""
    held: int | None = None
    touches: bool = False

    def record(self, box: list[float], visible: float, frame: Frame) -> dict[str, Any]:
        """The hand's entry in scenes.jsonl."""
        return {
            "side": self.side, "bbox_xyxy": box, "visible_fraction": round(float(visible), 4),
            "joints_2d": frame.project(self.joints).round(3).tolist(), "joints_3d": self.joints.round(6).tolist(),
            "mano": self.mano, "contact": self.touches, "held": self.held, "glove": self.glove,
        }  # fmt: skip


def reach_in(
    rng: np.random.Generator, frame: Frame, person: Person, side: Side, grasp: hands.Grasp | None, rim: bool, crossed: bool
) -> PlacedHand | None:
    """A hand that comes in from the border and holds what `grasp` is made for, or nothing; None when it would be too near or too far."""
    sign = 1 if side == "right" else -1
    reach = -sign if crossed else sign
    centre = frame.extent / 2 + np.array([reach * rng.uniform(0.06, 0.33), rng.uniform(-0.12, 0.32)]) * frame.extent
    entry = _entry(rng, frame, sign, crossed)
    toward = (centre - entry) / np.linalg.norm(centre - entry)
    cos, sin = np.cos(angle := rng.normal(0, np.radians(16))), np.sin(angle)
    forward = np.array([cos * toward[0] - sin * toward[1], sin * toward[0] + cos * toward[1], rng.uniform(-0.25, 0.6)])
    rotation = hands.rotation_to(forward, _roll(rng, grasp is not None, rim), side)
    pose = grasp.hand_pose + rng.normal(0, 0.03, 45) if grasp else hands.free_pose(rng)
    posed = Posed.draw(rng, side, rotation, pose)
    low, high = posed.vertices[:, :2].min(0), posed.vertices[:, :2].max(0)
    depth = frame.focal * (high - low).max() / (rng.uniform(*SHARE) * frame.short)
    if not 0.16 < depth < 0.9:
        return None
    transl = frame.ray(centre) * depth - [*(low + high) / 2, posed.vertices[:, 2].mean()]
    return place(rng, frame, person, posed, transl, entry)


def hold_together(
    rng: np.random.Generator, frame: Frame, person: Person, radius: float
) -> tuple[list[PlacedHand], np.ndarray, np.ndarray] | None:
    """Both hands around one thing of `radius` metres, palms facing: the hands, the thing's middle (3,) and its axis (3,)."""
    centre = frame.ray(frame.extent * np.array([rng.uniform(0.38, 0.62), rng.uniform(0.4, 0.68)]))
    middle = centre * (frame.focal * 0.16 / (rng.uniform(0.23, 0.31) * frame.short))
    tilt = Rotation.from_rotvec(rng.normal(0, 0.2, 3)).as_matrix()
    up, away = tilt @ frame.up, tilt @ frame.away
    grasp = hands.wrap_grasp(int(round(radius * 1000)))
    placed = []
    for side in SIDES:
        sign = 1 if side == "right" else -1
        turn = Rotation.from_rotvec(up * sign * rng.normal(0.25, 0.12)).as_matrix()
        forward = turn @ away
        axes = np.stack([forward, np.cross(up, forward) * sign, up], axis=1)
        posed = Posed.draw(rng, side, axes @ hands.skeleton(side).axes.T, grasp.hand_pose + rng.normal(0, 0.03, 45))
        transl = middle - posed.axes @ (grasp.point * [1, 1, 0]) - posed.joints[9]
        hand = place(rng, frame, person, posed, transl, _entry(rng, frame, sign, False))
        if hand.vertices[:, 2].min() < 0.12:
            return None
        placed.append(hand)
    return placed, middle, up


def _entry(rng: np.random.Generator, frame: Frame, sign: int, crossed: bool) -> np.ndarray:
    """Where a forearm comes in, a little beyond the border: mostly below, sometimes from its own side."""
    if not crossed and rng.random() < 0.25:
        return frame.extent * [0.5 + sign * 0.72, rng.uniform(0.55, 1.1)]
    return frame.extent * [0.5 + sign * rng.uniform(0.05, 0.5), 1.25]


def _roll(rng: np.random.Generator, holds: bool, rim: bool) -> float:
    """Radians by which the thumb is turned to the camera: 0 shows the back of the hand, π the palm."""
    if holds:
        return rng.normal(1.0, 0.3) if rim else rng.normal(0.95, 0.4)
    kind = rng.random()
    return rng.normal(0.3, 0.4) if kind < 0.65 else rng.normal(1.2, 0.3) if kind < 0.85 else rng.normal(2.6, 0.35)


def place(rng: np.random.Generator, frame: Frame, person: Person, posed: Posed, transl: np.ndarray, entry: np.ndarray) -> PlacedHand:
    """A posed hand moved by `transl` (3,) metres, dressed and with a forearm to `entry` (2,) pixels."""
    transl = transl.round(6)
    vertices, joints = posed.vertices + transl, posed.joints + transl
    arm = Forearm.draw(rng, person, posed.side)
    parts = dress(frame, person, posed.side, arm, vertices, joints, posed.axes, entry)
    mano = {**posed.mano, "transl": transl.tolist()}
    return PlacedHand(posed.side, vertices, joints, posed.axes, mano, posed.side in person.gloves, parts, arm, entry)


def dress(
    frame: Frame,
    person: Person,
    side: Side,
    arm: Forearm,
    vertices: np.ndarray,
    joints: np.ndarray,
    axes: np.ndarray,
    entry: np.ndarray,
    normals: np.ndarray | None = None,
) -> tuple[draw.Part, ...]:
    """The surfaces of a hand (778, 3) and of its forearm to `entry` (2,) pixels, in skin or glove, bare or sleeved.

    `normals` (778, 3) of the hand, if they are known."""
    glove = side in person.gloves
    rgb = person.gloves[side] if glove else person.skin
    faces = hands.mano_faces(side)
    normals = vertex_normals(vertices, faces) if normals is None else normals
    colours = np.tile(rgb, (len(vertices), 1))
    if not glove:
        palm = np.clip(normals @ axes[:, 1], 0, 1)[:, None]
        colours = np.clip(colours * (1 + 0.12 * palm) + palm * np.array([0.03, 0.0, 0.0]), 0, 1)
    hand = draw.Part(HAND_IDS[side], vertices, normals, faces, colours)
    ring = vertices[wrist_ring(side)]
    start = ring.mean(0)
    across, thick = (float(np.abs((ring - start) @ axes[:, k]).max()) for k in (2, 1))
    elbow = frame.ray(entry) * max(0.12, joints[0, 2] * arm.depth)
    points, arm_normals, arm_faces = hands.forearm(start, elbow, axes[:, 1], (across, across * arm.girth), thick / across)
    cloth = np.tile(rgb if arm.gloved else person.skin, (len(points), 1))
    if person.sleeves is not None:
        covered = np.linalg.norm(points - start, axis=1) > person.cuff * np.linalg.norm(elbow - start)
        cloth[covered] = person.sleeves
        points[covered] += arm_normals[covered] * across * arm.sleeve
    return hand, draw.Part(FOREARM_IDS[side], points, arm_normals, arm_faces, cloth, whole=False)


@lru_cache(maxsize=2)
def wrist_ring(side: Side) -> np.ndarray:
    """Numbers of the vertices around the open wrist of a hand mesh: the ends of edges that belong to one face only."""
    faces = hands.mano_faces(side)
    edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
    unique, count = np.unique(edges, axis=0, return_counts=True)
    return np.unique(unique[count == 1])
