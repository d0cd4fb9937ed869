"""Where a hand ends that reaches for a thing on the table, and how it gets there."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import hands
from data.synthetic.clip_motion import Move, Stance
from data.synthetic.frame import Frame
from data.synthetic.placing import PlacedObject
from data.synthetic.reaching import PlacedHand
from pose_tools.types import Side

SIDEWAYS = ("cup", "bottle", "box")
"""What is taken from the side with the thumb up when it stands; everything else is taken from above."""
WIDEST_GRIP = 0.045
"""The largest radius, metres, that a hand closes around from the side."""


@dataclass(frozen=True)
class Reacher:
    """A placed hand as a start of reaches: its stance, its shape, and where its elbow is."""

    side: Side
    betas: np.ndarray
    offset: np.ndarray
    """(3,) where the wrist is before the hand is moved."""
    stance: Stance
    knuckle: np.ndarray
    """(3,) from the wrist to the middle knuckle in the model's frame."""
    elbow: np.ndarray

    @classmethod
    def of(cls, hand: PlacedHand, frame: Frame) -> Reacher:
        """The hand as it was placed."""
        rotation = hand.axes @ hands.skeleton(hand.side).axes.T
        pose, betas = (np.array(hand.mano[name]) for name in ("hand_pose", "betas"))
        elbow = frame.ray(hand.entry) * max(0.12, hand.joints[0, 2] * hand.forearm.depth)
        stance, knuckle = Stance(rotation, hand.joints[0], pose), rotation.T @ (hand.joints[9] - hand.joints[0])
        return cls(hand.side, betas, hand.joints[0] - np.array(hand.mano["transl"]), stance, knuckle, elbow)


def goal_stance(rng: np.random.Generator, hand: Reacher, thing: PlacedObject, frame: Frame) -> Stance:
    """The hand around the thing, or on it when it is flat or wide."""
    points, mesh = thing.vertices, thing.thing.mesh
    scale = float(np.linalg.norm(points - points.mean(0)) / np.linalg.norm(mesh.vertices - mesh.vertices.mean(0)))
    above = points @ frame.up + frame.height
    stands = above.max() > 0.95 * scale * float(np.ptp(mesh.vertices[:, 2]))
    middle = (points.min(0) + points.max(0)) / 2
    middle = middle - frame.up * (middle @ frame.up + frame.height)  # on the table, below the thing
    level = middle - hand.elbow
    level = level - frame.up * (level @ frame.up)
    level = Rotation.from_rotvec(frame.up * rng.normal(0, 0.12)).apply(level / np.linalg.norm(level))
    radius = mesh.grip_radius * scale
    if stands and thing.thing.name in SIDEWAYS and radius <= WIDEST_GRIP:
        forward = level - frame.up * rng.uniform(0.1, 0.35)
        grip = middle + frame.up * max(mesh.grip_height * scale, 0.04)
        return _stance(hand, forward, frame.up, grip, hands.wrap_grasp(int(round(radius * 1000))))
    forward = level - frame.up * rng.uniform(0.25, 0.6)
    nearer = 0.55 * radius if thing.thing.name in ("plate", "bowl") else 0.0
    grip = middle - nearer * level + frame.up * max(above.max() - 0.02, 0.012)
    thumbward = np.cross(forward, -frame.up) * (1 if hand.side == "right" else -1)
    return _stance(hand, forward, thumbward, grip, hands.wrap_grasp(26 if nearer else 30))


def _stance(hand: Reacher, forward: np.ndarray, thumbward: np.ndarray, grip: np.ndarray, grasp: hands.Grasp) -> Stance:
    """The stance whose fingers point `forward` (3,) and whose thumb is on the side of `thumbward` (3,), holding at `grip` (3,)."""
    forward = forward / np.linalg.norm(forward)
    thumbward = thumbward - forward * (thumbward @ forward)
    thumbward = thumbward / np.linalg.norm(thumbward)
    normal = np.cross(thumbward, forward) * (1 if hand.side == "right" else -1)
    axes = np.stack([forward, normal, thumbward], axis=1)
    rotation = axes @ hands.skeleton(hand.side).axes.T
    wrist = grip - axes @ grasp.point - rotation @ hand.knuckle
    return Stance(rotation, wrist, hands.for_side(grasp.hand_pose, hand.side))


def reach(rng: np.random.Generator, hand: Reacher, goal: Stance, start: float, frame: Frame) -> Move:
    """The move from where the hand rests to `goal`: longer ways take longer, the fingers open first, the hand is lifted a little."""
    distance = float(np.linalg.norm(goal.wrist - hand.stance.wrist))
    opened = hands.for_side(hands.wrap_grasp(55).hand_pose, hand.side) * 0.7
    opening = 0.6 * (opened - (hand.stance.pose + goal.pose) / 2)
    return Move(goal, start, duration(distance) * rng.uniform(0.97, 1.03), frame.up * distance * rng.uniform(0.04, 0.16), opening)


def duration(distance: float) -> float:
    """Seconds that a reach of `distance` metres takes."""
    return 0.7 + 1.0 * min(distance, 0.6)
