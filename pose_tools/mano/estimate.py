"""Hands in pictures → `HandPose`s in the picture's camera, by a regressor; and the way back of its crop's camera."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from pose_tools.body_models import Mano
from pose_tools.geometry import matrix_to_axis_angle
from pose_tools.mano.crops import MIRROR, crop_camera, hand_view, warp
from pose_tools.mano.networks import HandRegressor
from pose_tools.mano.prediction import HandPrediction
from pose_tools.types import HandPose, Side
from pose_tools.views import View

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class HandInPicture:
    """A hand's place in a picture: RGB uint8 (H, W, 3), box of the joints (4,) xyxy pixels, side, and the camera (3, 3) pixels."""

    image: np.ndarray
    bbox_xyxy: np.ndarray
    side: Side
    intrinsics: np.ndarray


@dataclass(frozen=True)
class EstimatedHand:
    """`pose` in the picture's camera, metres, with joints and confidence; `vertices` (778, 3) in the same frame.

    `key_points` (21, 2): where the network saw the joints, pixels of the picture. `expected_mm`: the error of a joint that the network
    expects of itself, relative to the wrist.
    """

    pose: HandPose
    vertices: np.ndarray
    key_points: np.ndarray
    expected_mm: float


OUTLINE = 1.19
"""A hand's outline is so many times as large as the box of its joints (mean of 1,000 synthetic hands)."""


def joints_box(outline_xyxy: np.ndarray) -> np.ndarray:
    """The box of the joints (4,), which regressors are trained with, from that of the whole hand, which detectors give: xyxy pixels."""
    low, high = np.asarray(outline_xyxy, float).reshape(2, 2)
    return np.concatenate([(low + high) / 2 - (high - low) / (2 * OUTLINE), (low + high) / 2 + (high - low) / (2 * OUTLINE)])


@torch.inference_mode()
def estimate(model: HandRegressor, hands: Sequence[HandInPicture]) -> list[EstimatedHand]:
    """The regressor's answer for each hand, in order. Left hands are looked at in a mirror, so left and right are treated alike.

    CropError for a box that is none. A hand partly or wholly outside the picture is answered from the picture's border.
    """
    if not hands:
        return []
    config = model.config
    views = [hand_view(hand.bbox_xyxy, config.image_size, scale=config.crop_scale, mirror=hand.side == "left") for hand in hands]
    cameras = [crop_camera(view, hand.intrinsics, hand.side == "left") for view, hand in zip(views, hands, strict=True)]
    pixels = torch.from_numpy(np.stack([warp(view, hand.image) for view, hand in zip(views, hands, strict=True)])).permute(0, 3, 1, 2)
    prediction = model(pixels.float().contiguous())
    wrists = prediction.wrist(torch.tensor(np.stack([projection for projection, _ in cameras]), dtype=torch.float32))
    parts = zip(hands, views, cameras, strict=True)
    return [_in_picture(model, prediction, i, wrists[i].double().numpy(), *part) for i, part in enumerate(parts)]


def _in_picture(
    model: HandRegressor, prediction: HandPrediction, number: int, wrist: np.ndarray, hand: HandInPicture, view: View, camera
) -> EstimatedHand:
    """One hand of the batch, out of its crop's camera."""
    turn = camera[1]
    joints, vertices = (
        (value[number].double().numpy() + wrist) @ turn for value in (prediction.joints_3d, prediction.vertices)
    )  # turn is orthonormal: rows times it undo it
    flip = np.diag(MIRROR) if hand.side == "left" else np.eye(3)
    rotations = prediction.rotations[number].double().numpy()
    rotations = np.concatenate([(turn.T @ rotations[0] @ flip)[None], flip @ rotations[1:] @ flip])
    angles = matrix_to_axis_angle(torch.from_numpy(np.ascontiguousarray(rotations))).numpy()
    betas = prediction.betas[number].double().numpy()
    # the root turns about the wrist joint of the shaped rest hand, which is where the hand of zero translation has its wrist
    rest = model.mano(torch.zeros(1, 3), torch.zeros(1, 45), prediction.betas[number : number + 1]).joints[0, 0].double().numpy()
    transl = joints[0] - flip @ rest
    pose = HandPose(
        hand.side, angles[0], angles[1:].reshape(45), betas, transl, joints, confidence=float(prediction.confidence[number])
    )
    key_points = view.to_original((prediction.joints_2d[number].double().numpy() + 0.5) * view.out[0])
    return EstimatedHand(pose, vertices, key_points, float(1000 * prediction.log_scale_3d[number].exp().mean()))


def fit_landmarks(place: HandInPicture, landmarks: np.ndarray, mano: Mano, network: EstimatedHand | None = None) -> EstimatedHand | None:
    """A hand fitted to `landmarks` (21, 2) pixels by inverse kinematics, or None where no hand can have them.

    `mano` is the hand of that side; `network` is a second place to start from and gives the confidence. Depth follows from the hand's
    mean size, so it is assumed.
    """
    from pose_tools.mano import ik

    start = None
    if network is not None:
        parameters = {name: np.asarray(getattr(network.pose, name))[None] for name in ("global_orient", "hand_pose", "transl")}
        start = {name: torch.tensor(value, dtype=torch.float32) for name, value in parameters.items()}
    pixels = torch.tensor(landmarks[None], dtype=torch.float32)
    try:
        found = ik.fit(pixels, mano=mano, intrinsics=torch.tensor(place.intrinsics, dtype=torch.float32), init=start)
    except ValueError as error:
        logger.warning("no hand fits these landmarks: %s", error)
        return None
    with torch.no_grad():
        posed = mano(found.global_orient, found.hand_pose, found.betas, found.transl)
    orient, pose, betas, transl, joints = (value[0].double().numpy() for value in (*found[:4], posed.joints))
    confidence = network.pose.confidence if network else None
    pose = HandPose(place.side, orient, pose, betas, transl, joints, confidence)
    return EstimatedHand(pose, posed.vertices[0].double().numpy(), landmarks, network.expected_mm if network else float("nan"))
