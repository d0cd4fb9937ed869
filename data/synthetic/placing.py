"""Where things are: hands that reach in from the border, objects in their grip, objects on the table below."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import draw, factors, hands as hand_models, objects as object_meshes

from pose_tools.raster import vertex_normals

if TYPE_CHECKING:
    from data.synthetic.world import Plan

SKIN = np.array([[0.95, 0.80, 0.70], [0.90, 0.70, 0.58], [0.82, 0.60, 0.46], [0.70, 0.48, 0.35], [0.55, 0.36, 0.25], [0.38, 0.24, 0.17], [0.28, 0.18, 0.13]])
GLOVES = np.array([[0.92, 0.92, 0.90], [0.35, 0.55, 0.80], [0.12, 0.12, 0.13], [0.85, 0.75, 0.35], [0.45, 0.62, 0.45], [0.55, 0.50, 0.45], [0.60, 0.35, 0.60]])


@dataclass(frozen=True)
class Frame:
    """The camera over the table: focal length and size in pixels, `up` (3,) in the camera frame, `height` metres above the table."""

    focal: float
    size: int
    up: np.ndarray
    height: float

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) pixels."""
        return np.array([[self.focal, 0, self.size / 2], [0, self.focal, self.size / 2], [0, 0, 1.0]])

    @classmethod
    def draw(cls, rng: np.random.Generator, camera_bin: int, size: int) -> Frame:
        """A camera of a bin, rolled by a few degrees."""
        view = np.radians(rng.uniform(*factors.FIELD_OF_VIEW_BINS[camera_bin // len(factors.PITCH_BINS)]))
        pitch = np.radians(rng.uniform(*factors.PITCH_BINS[camera_bin % len(factors.PITCH_BINS)]))
        roll = np.clip(rng.normal(0, np.radians(4)), -0.2, 0.2)
        up = np.array([np.sin(roll) * np.cos(pitch), -np.cos(roll) * np.cos(pitch), -np.sin(pitch)])
        return cls(size / 2 / np.tan(view / 2), size, up, float(rng.uniform(0.35, 0.6)))

    def ray(self, pixel: np.ndarray) -> np.ndarray:
        """(3,) the viewing ray of a pixel, at depth 1."""
        return np.array([(pixel[0] - self.size / 2) / self.focal, (pixel[1] - self.size / 2) / self.focal, 1.0])

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) pixels of points (N, 3) metres."""
        return points[:, :2] / np.maximum(points[:, 2:], 0.05) * self.focal + self.size / 2

    def with_table_below(self, rng: np.random.Generator, hands: list[PlacedHand], held: list[PlacedObject]) -> Frame:
        """The same camera with the table just below the lowest hand or held object."""
        if not hands:
            return self
        lowest = max(-(points @ self.up).min() for points in [h.vertices for h in hands] + [o.vertices for o in held])
        return replace(self, height=float(lowest + rng.choice([0.003, rng.uniform(0.0, 0.2)])))


@dataclass(frozen=True)
class PlacedHand:
    """A posed hand before the camera with its forearm, as parts to draw and as labels."""

    side: str
    vertices: np.ndarray
    joints: np.ndarray
    axes: np.ndarray
    grasp: hand_models.Grasp | None
    mano: dict[str, list[float]]
    glove: bool
    parts: tuple[draw.Part, ...]
    held: int | None = None
    touches: bool = False

    def record(self, box: list[float], visible: float, frame: Frame) -> dict[str, Any]:
        """The hand's entry in scenes.jsonl."""
        return {
            "side": self.side, "bbox_xyxy": box, "visible_fraction": round(float(visible), 4),
            "joints_2d": frame.project(self.joints).round(3).tolist(), "joints_3d": self.joints.round(6).tolist(),
            "mano": self.mano, "contact": self.touches, "held": self.held, "glove": self.glove,
        }  # fmt: skip


@dataclass(frozen=True)
class PlacedObject:
    """An object before the camera: the shape, its pose and what it is called."""

    name: str
    colour: str
    family: int
    shade: int
    rgb: np.ndarray
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    held_by: tuple[str, ...] = ()

    def part(self, number: int) -> draw.Part:
        """The surface to draw, as object number `number` of the scene."""
        return draw.Part(10 + number, self.vertices, self.normals, self.faces, np.tile(self.rgb, (len(self.vertices), 1)))

    def record(self, box: list[float], visible: float) -> dict[str, Any]:
        """The object's entry in scenes.jsonl."""
        return {
            "name": self.name, "colour": self.colour, "bbox_xyxy": box, "visible_fraction": round(float(visible), 4),
            "held_by": list(self.held_by), "family": self.family, "shade": self.shade,
        }  # fmt: skip


def _draw_object(rng: np.random.Generator, pair: tuple[str, str], split: factors.Split) -> tuple[object_meshes.ObjectMesh, dict[str, Any]]:
    name, colour = pair
    family, shade = (int(rng.choice(factors.TENTHS[split])) for _ in range(2))
    look = {"name": name, "colour": colour, "family": family, "shade": shade, "rgb": factors.shade_rgb(colour, shade)}
    return object_meshes.build(name, family), look


def _grasp_for(mesh: object_meshes.ObjectMesh) -> hand_models.Grasp:
    return hand_models.rim_grasp() if mesh.grip == "rim" else hand_models.wrap_grasp(int(round(mesh.grip_radius * 1000)))


def place_hand(rng: np.random.Generator, frame: Frame, side: str, plan: Plan) -> PlacedHand | None:
    """A hand that reaches in from the border and takes 18–40 % of the picture's width."""
    sign = 1 if side == "right" else -1
    reach = -sign if plan.crossed else sign
    size = frame.size
    together = "both" in plan.holds
    centre = size / 2 + np.array([reach * rng.uniform(0.06, 0.33), rng.uniform(-0.12, 0.32)]) * size
    entry = _entry(rng, size, sign, plan.crossed)
    held_mesh = None
    if side in plan.holds:
        held_mesh, _ = _draw_object(held_rng(rng, plan, side), plan.holds[side], plan.split)
    toward = (centre - entry) / np.linalg.norm(centre - entry)
    deviate = rng.normal(0, np.radians(16))
    toward = np.array([np.cos(deviate) * toward[0] - np.sin(deviate) * toward[1], np.sin(deviate) * toward[0] + np.cos(deviate) * toward[1]])
    forward = np.array([*toward, rng.uniform(-0.25, 0.6)])
    grasp = _grasp_for(held_mesh) if held_mesh else None
    roll = _roll(rng, held_mesh)
    rotation = hand_models.rotation_to(forward, roll, side)
    right_pose = grasp.hand_pose + rng.normal(0, 0.03, 45) if grasp else hand_models.free_pose(rng)
    pose = right_pose if side == "right" else hand_models.mirror_pose(right_pose)
    betas = np.clip(rng.normal(0, 0.7, 10), -2, 2)
    orient = Rotation.from_matrix(rotation).as_rotvec()
    vertices, joints, faces = hand_models.pose_hand(side, orient, pose, betas, np.zeros(3))
    low, high = vertices[:, :2].min(0), vertices[:, :2].max(0)
    target = rng.uniform(0.23, 0.385)
    depth = frame.focal * (high - low).max() / (target * size)
    if not 0.16 < depth < 0.9:
        return None
    middle = np.array([*(low + high) / 2, vertices[:, 2].mean()])
    transl = frame.ray(centre) * depth - middle
    vertices, joints = vertices + transl, joints + transl
    axes = rotation @ hand_models.skeleton(side).axes
    parts, glove = _dress(rng, frame, side, vertices, joints, faces, axes, entry)
    mano = {k: np.asarray(v).round(6).tolist() for k, v in (("global_orient", orient), ("hand_pose", pose), ("betas", betas), ("transl", transl))}
    return PlacedHand(side, vertices, joints, axes, grasp, mano, glove, parts)


def held_rng(rng: np.random.Generator, plan: Plan, side: str) -> np.random.Generator:
    """A generator both the hand and the object it holds draw the object's shape from."""
    return np.random.default_rng([plan.background, 1 if side == "left" else 2])


def _entry(rng: np.random.Generator, size: int, sign: int, crossed: bool) -> np.ndarray:
    """Where a forearm comes in, a little beyond the border: mostly below, sometimes from its own side."""
    if not crossed and rng.random() < 0.25:
        return np.array([size * (0.5 + sign * 0.72), size * rng.uniform(0.55, 1.1)])
    return np.array([size * (0.5 + sign * rng.uniform(0.05, 0.5)), size * 1.25])


def _roll(rng: np.random.Generator, mesh: object_meshes.ObjectMesh | None) -> float:
    if mesh is None:
        kind = rng.random()
        return rng.normal(0.3, 0.4) if kind < 0.65 else rng.normal(1.2, 0.3) if kind < 0.85 else rng.normal(2.6, 0.35)
    if mesh.grip == "rim":
        return rng.normal(1.0, 0.3)
    return rng.normal(0.95, 0.4)


def _dress(rng: np.random.Generator, frame: Frame, side: str, vertices, joints, faces, axes, entry) -> tuple[tuple[draw.Part, ...], bool]:
    """The hand's and the forearm's surfaces in skin or glove, bare or sleeved; and whether there is a glove."""
    skin = SKIN[0] + 0
    place = rng.uniform(0, len(SKIN) - 1.001)
    skin = SKIN[int(place)] * (1 - place % 1) + SKIN[int(place) + 1] * (place % 1)
    glove = bool(rng.random() < 0.12)
    hand_rgb = np.clip(GLOVES[rng.integers(len(GLOVES))] + rng.normal(0, 0.03, 3), 0.03, 0.97) if glove else skin
    tone = np.tile(hand_rgb, (len(vertices), 1))
    if not glove:
        palm = np.clip((vertex_normals(vertices, faces) @ axes[:, 1]), 0, 1)[:, None]
        tone = np.clip(tone * (1 + 0.12 * palm) + palm * np.array([0.03, 0.0, 0.0]), 0, 1)
    ids = (1, 3) if side == "left" else (2, 4)
    hand = draw.Part(ids[0], vertices, vertex_normals(vertices, faces), faces, tone)
    wrist = joints[0]
    ring = vertices[wrist_ring(side)]
    elbow = frame.ray(entry) * max(0.12, wrist[2] * rng.uniform(0.72, 1.02))
    centre = ring.mean(0)
    radius = float(np.linalg.norm(ring - centre, axis=1).max())
    start = centre + 0.012 * (wrist - centre) / (np.linalg.norm(wrist - centre) + 1e-9) * 0
    arm_vertices, arm_normals, arm_faces = hand_models.forearm(start, elbow, axes[:, 1], (radius * 1.0, radius * rng.uniform(1.25, 1.6)))
    share = np.linalg.norm(arm_vertices - start, axis=1) / np.linalg.norm(elbow - start)
    arm = np.tile(hand_rgb if glove and rng.random() < 0.4 else skin, (len(arm_vertices), 1))
    if rng.random() < 0.6:
        sleeve = np.clip(rng.uniform(0.08, 0.9) + rng.normal(0, 0.12, 3), 0.04, 0.96)
        cuff = rng.uniform(0.0, 0.6)
        covered = share > cuff
        arm[covered] = sleeve
        arm_vertices[covered] += arm_normals[covered] * radius * rng.uniform(0.08, 0.3)
    return (hand, draw.Part(ids[1], arm_vertices, arm_normals, arm_faces, arm)), glove


_RINGS: dict[str, np.ndarray] = {}


def wrist_ring(side: str) -> np.ndarray:
    """Numbers of the vertices around the open wrist of a hand mesh: the ends of edges that belong to one face only."""
    if side not in _RINGS:
        faces = hand_models.mano_faces(side)
        edges = np.sort(np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]]), axis=1)
        unique, count = np.unique(edges, axis=0, return_counts=True)
        _RINGS[side] = np.unique(unique[count == 1])
    return _RINGS[side]


def place_held_object(rng: np.random.Generator, frame: Frame, hand: PlacedHand, plan: Plan) -> PlacedObject | None:
    """The object in a hand's grip, turned as the grip wants it."""
    mesh, look = _draw_object(held_rng(rng, plan, hand.side), plan.holds[hand.side], plan.split)
    grasp = hand.grasp
    z = hand.axes @ grasp.axis
    across = hand.axes @ grasp.across
    if mesh.grip == "rim":
        x = across - z * (across @ z)
        anchor = np.array([-(mesh.grip_radius - 0.012), 0.0, mesh.grip_height])
    else:
        twist = np.pi + rng.normal(0, 0.4) if look["name"] == "cup" else rng.uniform(-np.pi, np.pi)
        twist = rng.normal(0, 0.12) if look["name"] == "box" else twist
        ahead = across - z * (across @ z)
        ahead /= np.linalg.norm(ahead)
        x = np.cos(twist) * ahead + np.sin(twist) * np.cross(z, ahead)
        anchor = np.array([0.0, 0.0, mesh.grip_height])
    x = x / np.linalg.norm(x)
    turn = np.stack([x, np.cross(z, x), z], axis=1)
    turn = turn @ Rotation.from_rotvec(rng.normal(0, 0.07, 3)).as_matrix()
    vertices = hand.joints[9] + hand.axes @ grasp.point + (mesh.vertices - anchor) @ turn.T
    if vertices[:, 2].min() < 0.1:
        return None
    return PlacedObject(vertices=vertices, normals=mesh.normals @ turn.T, faces=mesh.faces, held_by=(hand.side,), **look)


def place_free_object(rng: np.random.Generator, frame: Frame, pair: tuple[str, str], split: factors.Split, layers: list[draw.Layer]) -> PlacedObject | None:
    """An object standing or lying on the table where little else is; None when no place was found."""
    mesh, look = _draw_object(rng, pair, split)
    away = np.array([0.0, 0.0, 1.0]) - frame.up * frame.up[2]
    away /= np.linalg.norm(away)
    side = np.cross(frame.up, away)
    turn = rng.uniform(0, 2 * np.pi)
    level = np.cos(turn) * side + np.sin(turn) * away
    if look["name"] in ("knife", "spoon") or (look["name"] in ("cup", "bottle", "box") and rng.random() < 0.2):
        axes = np.stack([np.cross(frame.up, level), frame.up, level], axis=1)
    else:
        axes = np.stack([level, np.cross(frame.up, level), frame.up], axis=1)
    shape, normals = mesh.vertices @ axes.T, mesh.normals @ axes.T
    middle = (shape.min(0) + shape.max(0)) / 2
    shape = shape - middle
    shape = shape - frame.up * (shape @ frame.up).min()
    for _ in range(10):
        pixel = rng.uniform(0.06, 0.94, 2) * frame.size
        ray = frame.ray(pixel)
        drop = -(ray @ frame.up)
        if drop < 0.25:
            continue
        base = ray * frame.height / drop
        extent = np.ptp(frame.project(base + shape), axis=0).max() / frame.size
        scale = rng.uniform(0.13, 0.29) / extent
        vertices = base + shape * scale
        if _room_for(frame, vertices, layers):
            return PlacedObject(vertices=vertices, normals=normals, faces=mesh.faces, **look)
    return None


def _room_for(frame: Frame, vertices: np.ndarray, layers: list[draw.Layer]) -> bool:
    """Whether an object's box is inside the picture and overlaps others little (objects) or not too much (hands)."""
    points = frame.project(vertices)
    x1, y1, x2, y2 = *points.min(0), *points.max(0)
    if min(x1, y1) < -0.02 * frame.size or max(x2, y2) > 1.02 * frame.size:
        return False
    for layer in layers:
        h, w = layer.mask.shape
        s = draw.SUPERSAMPLE
        ox1, oy1, ox2, oy2 = layer.x / s, layer.y / s, (layer.x + w) / s, (layer.y + h) / s
        overlap = max(0.0, min(x2, ox2) - max(x1, ox1)) * max(0.0, min(y2, oy2) - max(y1, oy1))
        limit = 0.2 if layer.part.id >= 10 else 0.45 if layer.part.id <= 2 else 0.8
        if overlap > limit * min((x2 - x1) * (y2 - y1), (ox2 - ox1) * (oy2 - oy1)):
            return False
    return True


def place_held_together(rng: np.random.Generator, frame: Frame, hands: list[PlacedHand], plan: Plan) -> list[PlacedObject | None]:
    """One object between two hands."""
    return [None]
