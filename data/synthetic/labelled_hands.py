"""Scenes of the synthetic world as hand data sets want them: some hands, exactly labelled, the camera, the picture as a file's bytes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np

from data.synthetic import factors, hands, world
from pose_tools.geometry import project
from pose_tools.types import Side


@dataclass(frozen=True)
class LabelledHand:
    """`side`; MANO parameters, axis-angle, absolute, camera frame, metres; `vertices` (778, 3), `joints` (21, 3) FreiHAND order,
    `joints_2d` (21, 2) pixels."""

    side: Side
    global_orient: np.ndarray
    hand_pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    vertices: np.ndarray
    joints: np.ndarray
    joints_2d: np.ndarray


@dataclass(frozen=True)
class HandPicture:
    """`picture` RGB uint8 (H, W, 3), `intrinsics` (3, 3), the hands in it: left, right."""

    picture: np.ndarray
    intrinsics: np.ndarray
    hands: tuple[LabelledHand, ...]


def hand_picture(
    seed: int, split: factors.Split, index: int, size: tuple[int, int], *, count: int | None = 1, tips: str = "freihand"
) -> HandPicture:
    """Picture `index`, `size` (width, height): the next scene with `count` hands (None: at least one), found from its number alone.

    `tips` says whose finger-tip vertices end the fingers.
    """
    for offset in range(400):
        number = index * 400 + offset
        there = len(world.draw_plan(world.picture_rng(seed, split, number, 0), split).hands)
        if there == count or (count is None and there):
            scene = world.make_scene(seed, split, number, size)
            intrinsics = np.array(scene.record["camera"]["intrinsics"])
            return HandPicture(scene.picture, intrinsics, tuple(_labelled(hand, intrinsics, tips) for hand in scene.record["hands"]))
    raise world.SceneError(f"{split} picture {index}: four hundred scenes without {'any' if count is None else count} hands")


def as_right(pictured: HandPicture, tips: str = "freihand") -> HandPicture:
    """A picture of one hand as it is, or in the mirror when that is a left hand."""
    (hand,) = pictured.hands
    if hand.side == "right":
        return pictured
    intrinsics = pictured.intrinsics.copy()
    intrinsics[0, 2] = pictured.picture.shape[1] - intrinsics[0, 2]
    parameters = {
        "global_orient": hand.global_orient * hands.MIRROR, "hand_pose": hands.for_side(hand.hand_pose, "left"),
        "betas": hand.betas, "transl": hand.transl * [-1, 1, 1],
    }  # fmt: skip
    mirrored = np.ascontiguousarray(pictured.picture[:, ::-1])
    return HandPicture(mirrored, intrinsics, (_labelled({"side": "right", "mano": parameters}, intrinsics, tips),))


def move(hand: LabelledHand, rotation: np.ndarray, shift: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Orientation (3,) and translation (3,) of the hand moved by x ↦ R x + s: how a data set in another frame writes it."""
    from scipy.spatial.transform import Rotation

    orient = (Rotation.from_matrix(rotation) * Rotation.from_rotvec(hand.global_orient)).as_rotvec()
    # The hand turns about its wrist: what the translation adds to the wrist at rest must put it where it goes.
    rest = hand.joints[0] - hand.transl
    return orient, rotation @ hand.joints[0] + shift - rest


def random_camera(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """(R (3, 3), position (3,) metres) of a camera somewhere in the world: X_c = R (X_w − position)."""
    from scipy.spatial.transform import Rotation

    return Rotation.random(random_state=int(rng.integers(2**31))).as_matrix(), rng.uniform(-1.5, 1.5, 3)


def encoded(image: np.ndarray, suffix: str) -> bytes:
    """RGB or grey uint8 as the bytes of a .jpg or .png file."""
    image = np.ascontiguousarray(image[:, :, ::-1] if image.ndim == 3 else image)
    return cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, 94] if suffix == ".jpg" else [])[1].tobytes()


def _labelled(hand: dict[str, Any], intrinsics: np.ndarray, tips: str) -> LabelledHand:
    import torch

    parameters = {key: np.array(value, float) for key, value in hand["mano"].items()}
    names = ("global_orient", "hand_pose", "betas", "transl")
    with torch.no_grad():
        output = hands.mano(hand["side"])(*(torch.from_numpy(parameters[name])[None] for name in names), tips=tips)
    vertices, joints = output.vertices[0].numpy(), output.joints[0].numpy()
    posed = {"vertices": vertices, "joints": joints, "joints_2d": project(joints, intrinsics)}
    return LabelledHand(side=hand["side"], **{name: parameters[name] for name in names}, **posed)
