"""The predictors that look at no picture: one hand for all. Whoever does not beat them has learnt nothing."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pose_tools.geometry import similarity
from pose_tools.mano.evaluate import PredictedHand
from pose_tools.types import HandSample


@dataclass(frozen=True)
class ConstantHand:
    """The same right hand for every sample, mirrored for left ones: `joints` (21, 3) and `vertices` (778, 3) or None, metres."""

    joints: np.ndarray
    vertices: np.ndarray | None

    def __call__(self, samples: Sequence[HandSample]) -> list[PredictedHand | None]:
        answers: list[PredictedHand | None] = []
        for sample in samples:
            flip = np.array([-1.0, 1.0, 1.0]) if sample.side == "left" else np.ones(3)
            answers.append(PredictedHand(self.joints * flip, None if self.vertices is None else self.vertices * flip))
        return answers


def mean_joints(labels: Sequence[HandSample]) -> ConstantHand:
    """Each point at its mean place from the wrist in the training labels: the least MPJPE (squared) of any constant; no real hand."""
    joints, vertices, wrist = _right_hands(labels)
    return ConstantHand(joints.mean(0) + wrist, None if vertices is None else vertices.mean(0) + wrist)


def mean_pose(labels: Sequence[HandSample], rounds: int = 5) -> ConstantHand:
    """The mean shape of the training labels after alignment with each other, of mean size, turned as they are in the mean.

    Generalised Procrustes analysis (Gower 1975): about the least PA-MPJPE of any constant.
    """
    joints, vertices, wrist = _right_hands(labels)
    size = float(np.mean([np.linalg.norm(x - x.mean(0)) for x in joints]))
    mean = joints.mean(0)
    if np.linalg.norm(mean - mean.mean(0)) < 0.1 * size:  # turned every way: their mean is a point
        mean = joints[0]
    for _ in range(rounds):
        aligned = similarity(joints, np.broadcast_to(mean, joints.shape))
        mean = aligned.apply(joints).mean(0)
        mean = mean * (size / np.linalg.norm(mean - mean.mean(0)))
    moved = similarity(joints, np.broadcast_to(mean, joints.shape))
    points = np.concatenate([moved.apply(x).mean(0) for x in (joints, vertices) if x is not None])
    points = points * (size / np.linalg.norm(points[:21] - points[:21].mean(0)))
    points = similarity(points[:21], joints.mean(0), with_scale=False).apply(points)
    points = points - points[0] + wrist
    return ConstantHand(points[:21], None if vertices is None else points[21:])


def _right_hands(labels: Sequence[HandSample]) -> tuple[np.ndarray, np.ndarray | None, np.ndarray]:
    """Joints (N, 21, 3) and vertices (N, 778, 3) from the wrist, left hands mirrored, and the wrist's mean place (3,)."""
    whole = [x for x in labels if x.joints_3d is not None and (x.joints_valid is None or np.all(x.joints_valid))]
    if not whole:
        raise ValueError(f"none of {len(labels)} training labels has all its joints: no constant hand can be made of them")
    flips = np.array([[-1.0 if x.side == "left" else 1.0, 1.0, 1.0] for x in whole])[:, None]
    joints = np.stack([np.asarray(x.joints_3d, np.float64) for x in whole]) * flips
    wrists = joints[:, :1]
    vertices = None
    if all(x.vertices is not None for x in whole):
        vertices = np.stack([np.asarray(x.vertices, np.float64) for x in whole]) * flips - wrists
    return joints - wrists, vertices, wrists.mean((0, 1))
