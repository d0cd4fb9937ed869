"""What must hold before a regressor is trained: the labels of a sample belong to each other and to its picture."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pose_tools.body_models import Mano
from pose_tools.geometry import project
from pose_tools.sampling import evenly
from pose_tools.types import HandSample
from pose_tools.user_error import UserError

logger = logging.getLogger(__name__)


class LabelError(UserError):
    """Labels that contradict each other; training on them would teach nothing. The message names the worst sample and what to look at."""


@dataclass(frozen=True)
class LabelReport:
    """Medians over the checked samples, None where no sample has what is needed.

    `posed_mm`: millimetres between the posed hand model and the stored joints. `projected_px`: pixels between the projected 3-D
    joints and the stored 2-D ones. `inside`: share of the joints that lie in the hand's mask (a tenth of the hand's size is allowed).
    """

    samples: int
    posed_mm: float | None
    projected_px: float | None
    inside: float | None

    def __str__(self) -> str:
        """For people: "48 checked, posed 0.000 mm off the joints, projected 0.00 px off, 0.96 of the joints inside the mask"."""
        posed = "not posed" if self.posed_mm is None else f"posed {self.posed_mm:.3f} mm off the joints"
        projected = "not projected" if self.projected_px is None else f"projected {self.projected_px:.2f} px off"
        inside = "no masks" if self.inside is None else f"{self.inside:.2f} of the joints inside the mask"
        return f"{self.samples} checked, {posed}, {projected}, {inside}"


def check_labels(
    samples: Sequence[HandSample], mano: Mano, *, count: int = 48, posed_mm: float = 1.0, projected_px: float = 0.5, inside: float = 0.95
) -> LabelReport:
    """Looks at `count` samples spread over the sequence; LabelError when a median misses its bound.

    Args:
        mano: the right hand that is trained with; a left sample's parameters are mirrored onto it.
        inside: least share of joints inside the mask. Where objects hide parts of hands, masks have holes: lower it.
    """
    numbers = evenly(len(samples), count)
    posed, projected, covered = {}, {}, {}
    for number in numbers.tolist():
        hand = samples[number]
        valid = np.ones(21, bool) if hand.joints_valid is None else np.asarray(hand.joints_valid, bool)
        if hand.pose is not None and hand.joints_3d is not None:
            posed[number] = 1000 * _median_distance(pose_joints(hand, mano), hand.joints_3d, valid)
        if hand.joints_3d is not None and hand.joints_2d is not None and hand.intrinsics is not None:
            projected[number] = _median_distance(project(np.asarray(hand.joints_3d), hand.intrinsics), hand.joints_2d, valid)
        if hand.mask is not None and hand.joints_2d is not None:
            covered[number] = _share_inside(hand, valid)
    _refuse(samples, posed, posed_mm, "mm between the posed hand model and the stored 3-D joints",
            "is it the model that the parameters were fitted with, are mean pose, tips and units those of the data set?")  # fmt: skip
    _refuse(samples, projected, projected_px, "px between the projected and the stored 2-D joints",
            "do intrinsics and joints belong together?")  # fmt: skip
    share = float(np.mean(list(covered.values()))) if covered else None
    if share is not None and share < inside:
        worst = min(covered, key=lambda number: covered[number])
        raise LabelError(
            f"only {share:.0%} of the joints lie inside the hand's mask (expected {inside:.0%}); worst is sample {worst} "
            f"({samples[worst].source}): do labels and pictures belong together? Lower `inside_mask` only if objects hide the hands"
        )
    medians = [float(np.median(list(values.values()))) if values else None for values in (posed, projected)]
    return LabelReport(len(numbers), medians[0], medians[1], share)


def pose_joints(hand: HandSample, mano: Mano) -> np.ndarray:
    """(21, 3) metres, picture's camera: what the right hand model makes of a sample's parameters, mirrored back for a left hand."""
    assert hand.pose is not None
    mirror = np.array([-1.0, 1.0, 1.0]) if hand.side == "left" else np.ones(3)
    twist = -mirror if hand.side == "left" else mirror
    pose = hand.pose
    values = (pose.global_orient * twist, (pose.hand_pose.reshape(15, 3) * twist).ravel(), pose.betas, pose.transl * mirror)
    with torch.no_grad():
        posed = mano(*(torch.tensor(np.asarray(value)[None], dtype=mano.hands_mean.dtype) for value in values))
    return posed.joints[0].double().numpy() * mirror


def _median_distance(a: np.ndarray, b: np.ndarray, valid: np.ndarray) -> float:
    distances = np.linalg.norm(np.asarray(a) - np.asarray(b), axis=-1)[valid]
    return float(np.median(distances)) if len(distances) else 0.0


def _share_inside(hand: HandSample, valid: np.ndarray) -> float:
    import cv2

    assert hand.mask is not None and hand.joints_2d is not None
    reach = max(1, round(0.05 * float(np.ptp(hand.joints_2d, axis=0).max())))
    mask = cv2.dilate(hand.mask.astype(np.uint8), np.ones((2 * reach + 1, 2 * reach + 1), np.uint8))
    x, y = np.floor(hand.joints_2d).astype(int).T
    here = valid & (x >= 0) & (y >= 0) & (x < mask.shape[1]) & (y < mask.shape[0])
    return float(mask[y[here], x[here]].mean()) if here.any() else 1.0


def _refuse(samples: Sequence[HandSample], found: dict[int, float], most: float, what: str, look: str) -> None:
    if found and not np.median(list(found.values())) <= most:
        worst = max(found, key=lambda number: found[number])
        raise LabelError(
            f"{np.median(list(found.values())):.1f} {what} (median of {len(found)} samples, at most {most} expected); worst is sample "
            f"{worst} ({samples[worst].source}) with {found[worst]:.1f}: {look}"
        )
