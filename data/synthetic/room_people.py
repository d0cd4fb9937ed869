"""People in rooms: poses for standing, sitting and leaning, set down where the room has a place for them, checked against its surfaces.

Scene frame: metres, y up. The stand-in body looks along +z at rest, its arms are spread out to the sides.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from data.synthetic.rooms import Place, Room
from pose_tools.body_models import Smpl, load_smpl
from pose_tools.egohmr.body import PosedBody
from pose_tools.egohmr.collision import CapsuleField, near_points
from pose_tools.geometry import axis_angle_to_matrix, matrix_to_axis_angle

HIPS, KNEES, ANKLES, SHOULDERS, ELBOWS = (1, 2), (4, 5), (7, 8), (16, 17), (18, 19)
SPINE = (3, 6, 9)
SEAT_PARTS = (0, 1, 2)
"""Joints whose skin rests on a seat: pelvis and thighs."""

MOST_INSIDE = 16
"""So many of a room's vertices may lie in a person's capsules: the floor under the feet, the seat."""


@dataclass(frozen=True)
class Person:
    """Parameters in the scene frame: `global_orient` (3,), `body_pose` (69,) axis-angle, `betas` (10,), `transl` (3,); with them
    `vertices` (6890, 3) and `joints` (24, 3), metres."""

    global_orient: np.ndarray
    body_pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    place: Place


@lru_cache(maxsize=1)
def body() -> Smpl:
    """The stand-in body, on which the synthetic people are made."""
    return load_smpl()


@lru_cache(maxsize=1)
def field() -> CapsuleField:
    return CapsuleField(body())


@lru_cache(maxsize=1)
def owners() -> np.ndarray:
    """(6890,) which joint each vertex follows most."""
    smpl = body()
    return np.asarray(smpl.by_level.tolist())[smpl.weights.argmax(0).numpy()]


def put_person(rng: np.random.Generator, room: Room, place: Place, betas: np.ndarray, tries: int = 8) -> Person | None:
    """Someone of shape `betas` at a place of the room; None where every try runs into the furniture."""
    for _ in range(tries):
        person = _set_down(rng, place, betas)
        if points_inside(person, room.vertices) <= MOST_INSIDE:
            return person
    return None


def points_inside(person: Person, points: np.ndarray) -> int:
    """How many of `points` (N, 3) lie in the person's capsules."""
    pose = torch.from_numpy(np.concatenate([person.global_orient, person.body_pose]).reshape(1, 24, 3))
    posed = PosedBody(torch.from_numpy(person.vertices)[None], torch.from_numpy(person.joints)[None], axis_angle_to_matrix(pose))
    close = ((points >= person.vertices.min(0)) & (points <= person.vertices.max(0))).all(1)
    near, valid = near_points(posed, torch.from_numpy(points[close])[None])
    return int((valid & field().inside(posed, near)).sum()) if near.shape[1] else 0


def _set_down(rng: np.random.Generator, place: Place, betas: np.ndarray) -> Person:
    """A pose for the place, turned to its heading, the lowest point on the floor or the thighs on the seat."""
    if place.kind == "sit":
        pose = _sitting(rng, place.seat, leg_lengths(np.asarray(betas, np.float32).tobytes()))
    else:
        pose = _upright(rng, place.kind)
    lean = rng.uniform(-0.15, 0.05) if place.kind == "sit" else 0.0
    angles = torch.tensor([[0.0, place.yaw + rng.normal(0, 0.15), 0.0], [lean, 0.0, rng.normal(0, 0.03)]], dtype=torch.float64)
    turn, tilt = axis_angle_to_matrix(angles)
    orient = matrix_to_axis_angle(turn @ tilt).numpy()
    pose, betas = pose.reshape(69), np.asarray(betas, np.float64)
    with torch.no_grad():
        out = body()(*(torch.tensor(row, dtype=torch.float32)[None] for row in (orient, pose, betas)))
    vertices, joints = out.vertices[0].double().numpy(), out.joints[0].double().numpy()
    height = -vertices[:, 1].min()
    if place.kind == "sit":
        height = max(height, place.seat - vertices[np.isin(owners(), SEAT_PARTS), 1].min())
    move = np.array([place.position[0], height, place.position[1]]) - joints[0] * [1, 0, 1]
    if place.kind != "sit":
        move[[0, 2]] += rng.normal(0, 0.04, 2)
    return Person(orient, pose, betas, move, vertices + move, joints + move, place)


@lru_cache(maxsize=64)
def leg_lengths(betas: bytes) -> tuple[float, float, float]:
    """(thigh, shin, ankle to sole) metres of a shape, given as the bytes of its float32 numbers."""
    with torch.no_grad():
        out = body()(torch.zeros(1, 3), torch.zeros(1, 69), torch.from_numpy(np.frombuffer(betas, np.float32).copy())[None])
    joints = out.joints[0].numpy()
    thigh, shin = (float(np.linalg.norm(joints[a] - joints[b])) for a, b in ((1, 4), (4, 7)))
    return thigh, shin, float(joints[7, 1] - out.vertices[0, :, 1].min())


def _noise(rng: np.random.Generator) -> np.ndarray:
    """(24, 3) radians of liveliness; hands and feet move less."""
    scale = np.full((24, 1), 0.08)
    scale[[10, 11, 22, 23]] = 0.02
    return rng.standard_normal((24, 3)) * scale


def _arms(
    rng: np.random.Generator, pose: np.ndarray, down: tuple[float, float], forward: tuple[float, float], bend: tuple[float, float]
) -> None:
    """Both arms lowered, swung forward and bent by angles drawn for each, radians."""
    for side, sign in ((0, 1.0), (1, -1.0)):
        lower = axis_angle_to_matrix(torch.tensor([0.0, 0.0, -sign * rng.uniform(*down)], dtype=torch.float64))
        swing = axis_angle_to_matrix(torch.tensor([-rng.uniform(*forward), 0.0, 0.0], dtype=torch.float64))
        pose[SHOULDERS[side]] += matrix_to_axis_angle(swing @ lower).numpy()
        pose[ELBOWS[side], 1] -= sign * rng.uniform(*bend)


def _upright(rng: np.random.Generator, kind: str) -> np.ndarray:
    """(23, 3): standing, or leaning forward onto something."""
    pose = _noise(rng)
    step = rng.normal(0, 0.15)
    for side, sign in ((0, 1.0), (1, -1.0)):
        pose[HIPS[side], 0] -= sign * step
        bent = abs(rng.normal(0, 0.12))
        pose[KNEES[side], 0] += bent
        pose[HIPS[side], 0] -= 0.5 * bent
        pose[ANKLES[side], 0] -= 0.5 * bent
    if kind == "lean":
        forward = rng.uniform(0.35, 0.7)
        pose[list(SPINE), 0] += forward / 3
        _arms(rng, pose, (1.05, 1.3), (0.15, 0.5), (0.0, 0.3))
    else:
        pose[list(SPINE), 0] += rng.normal(0.03, 0.05)
        _arms(rng, pose, (1.0, 1.35), (-0.2, 0.7), (0.05, 1.4))
    pose[15] += [rng.normal(0.05, 0.15), rng.normal(0, 0.35), 0.0]
    return pose[1:]


HIP_OVER_SEAT = 0.1
"""Metres from the seat to the hip joints of someone who sits on it."""


def _sitting(rng: np.random.Generator, seat: float, legs: tuple[float, float, float]) -> np.ndarray:
    """(23, 3): seated, the thighs raised so that the feet reach the floor from a seat of this height."""
    pose = _noise(rng)
    pose[list(SPINE), 0] += rng.uniform(-0.02, 0.12)
    for side, sign in ((0, 1.0), (1, -1.0)):
        pose[HIPS[side], 1] += sign * rng.uniform(0.0, 0.2)
    _arms(rng, pose, (1.1, 1.3), (0.2, 0.6), (0.4, 1.3))
    pose[15] += [rng.normal(0.05, 0.15), rng.normal(0, 0.35), 0.0]
    thigh, shin, sole = legs
    forward = rng.uniform(-0.05, 0.2)  # the shins from the vertical, feet ahead of the knees
    drop = (seat + HIP_OVER_SEAT - sole - shin * np.cos(forward)) / thigh
    raised = float(np.arccos(np.clip(drop, -0.3, 0.5)))
    pose[list(HIPS), 0] -= raised
    pose[list(KNEES), 0] += raised - forward
    pose[list(ANKLES), 0] += forward
    return pose[1:]
