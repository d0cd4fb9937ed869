"""The records every floor of the house passes around: frozen, with unit, frame and order in the docstring.

Images are RGB uint8 arrays `(H, W, 3)`. Pixels are those of the original picture: x to the right, y down, the centre of
the top-left pixel at (0.5, 0.5). Cameras look along +z with y down; lengths are metres. Hands are ordered left, right.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

Side = Literal["left", "right"]
SIDES: tuple[Side, Side] = ("left", "right")


@dataclass(frozen=True)
class Box:
    """An axis-aligned box: `bbox_xyxy` = (x1, y1, x2, y2), float pixels of the original picture, half-open."""

    bbox_xyxy: tuple[float, float, float, float]
    label: str | None = None
    score: float | None = None

    @property
    def area(self) -> float:
        x1, y1, x2, y2 = self.bbox_xyxy
        return max(0.0, x2 - x1) * max(0.0, y2 - y1)


@dataclass(frozen=True)
class Point:
    """A point `xy`, float pixels of the original picture."""

    xy: tuple[float, float]
    label: str | None = None


@dataclass(frozen=True)
class Trajectory:
    """A path of one hand: `points` (T, 2) pixels of the original (last observed) frame, `valid` (T,) bool, `rate` in Hz."""

    points: np.ndarray
    valid: np.ndarray
    side: Side
    rate: float


@dataclass(frozen=True)
class Camera:
    """A pinhole camera: `intrinsics` (3, 3) in pixels; `extrinsics` (4, 4) world → camera in metres, or None."""

    intrinsics: np.ndarray
    extrinsics: np.ndarray | None = None
    image_size: tuple[int, int] | None = None
    """(width, height) in pixels."""


@dataclass(frozen=True)
class HandPose:
    """One hand in MANO's parameters, camera frame, metres.

    `global_orient` (3,) and `hand_pose` (45,) are axis-angle; `hand_pose` is absolute (mean pose already added,
    `flat_hand_mean=True`). `betas` (10,), `transl` (3,). `joints_3d` (21, 3) in FreiHAND order.
    """

    side: Side
    global_orient: np.ndarray
    hand_pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    joints_3d: np.ndarray | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class BodyPose:
    """One body in SMPL's parameters, camera frame, metres.

    `global_orient` (3,) and `body_pose` (69,) are axis-angle; `betas` (10,), `transl` (3,). `joints_3d` (24, 3) in SMPL order.
    """

    global_orient: np.ndarray
    body_pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    joints_3d: np.ndarray | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class Media:
    """What a tool may look at. Never filled in by a language model.

    `images`: RGB uint8 (H, W, 3). `frames`: the frames of a clip, in order, with `fps`. `intrinsics`: one (3, 3) per image or None.
    `keypoints_2d`: (J, 3) pixels and confidence per image or None. `scene`: (N, 3) points in metres, camera frame, or None.
    """

    images: tuple[np.ndarray, ...] = ()
    frames: tuple[np.ndarray, ...] = ()
    fps: float | None = None
    intrinsics: tuple[np.ndarray | None, ...] = ()
    keypoints_2d: tuple[np.ndarray | None, ...] = ()
    scene: np.ndarray | None = None


@dataclass(frozen=True)
class HandSample:
    """The canonical record of one annotated hand; readers resolve every convention of their data set before they yield it.

    `image` RGB uint8 (H, W, 3); `side`; `bbox_xyxy` (4,) pixels; `intrinsics` (3, 3);
    `joints_2d` (21, 2) pixels, `joints_3d` (21, 3) metres, camera frame, FreiHAND order, with `joints_valid` (21,) bool;
    `vertices` (778, 3) metres or None; `pose` the MANO parameters or None; `mask` (H, W) bool or None.
    `annotation` numbers the annotation (several images may share one); `source` says where the record comes from.
    """

    image: np.ndarray
    side: Side
    bbox_xyxy: np.ndarray
    intrinsics: np.ndarray | None = None
    joints_2d: np.ndarray | None = None
    joints_3d: np.ndarray | None = None
    joints_valid: np.ndarray | None = None
    vertices: np.ndarray | None = None
    pose: HandPose | None = None
    mask: np.ndarray | None = None
    annotation: int = 0
    source: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class BodySample:
    """The canonical record of one annotated body in a scene: image, box, intrinsics, 2-D key points (J, 3) with confidence,
    scene points (N, 3) metres in the camera frame, parameters and per-joint visibility (24,) bool."""

    image: np.ndarray
    bbox_xyxy: np.ndarray
    intrinsics: np.ndarray
    keypoints_2d: np.ndarray | None = None
    scene: np.ndarray | None = None
    pose: BodyPose | None = None
    joints_visible: np.ndarray | None = None
    source: dict[str, Any] = field(default_factory=dict)
