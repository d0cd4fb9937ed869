"""A batch of one from a user's own picture, person's box, intrinsics and scanned scene, all in the camera's frame."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from pose_tools.egohmr.camera import FOCAL_UNIT
from pose_tools.egohmr.scene import TARGET, SceneError, crop_stage1, crop_stage2
from pose_tools.views import crop

BOX_SCALE = 1.2
"""The square crop's side over the box's longer one, as in training."""

SIDE = 224
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def prepare_scene(
    image: np.ndarray,
    bbox_xyxy: Any,
    intrinsics: Any,
    scene: Any,
    keypoints_2d: Any = None,
    *,
    side: int = SIDE,
    target: int = TARGET,
) -> tuple[dict[str, Tensor], list[str]]:
    """What both stages take, and in words what had to be assumed.

    Args:
        image: (H, W, 3) uint8 RGB, any size. bbox_xyxy: (4,) pixels, around the person. intrinsics: (3, 3) pixels.
        scene: (N, 3) points in metres, the camera's frame (x right, y down, z forward), any number; those behind the camera are left out.
        keypoints_2d: (25, 3) BODY_25 pixels and confidence; None: every joint counts as visible.

    Raises ValueError for a box outside the picture, for missing or unusable intrinsics, and SceneError for a scene without a point
    in front of the camera.
    """
    image, assumed = np.asarray(image), []
    if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8:
        raise ValueError(f"the picture must be RGB uint8 (H, W, 3), got {image.dtype} {image.shape}")
    height, width = image.shape[:2]
    box = np.asarray(bbox_xyxy, dtype=np.float64)
    view = crop(box, side, scale=BOX_SCALE, size=(width, height))
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise ValueError(f"the person's box {box.tolist()} lies outside the picture of {width} x {height} pixels")
    focal, principal = _camera(intrinsics)
    if keypoints_2d is None:
        assumed.append("no key points: every joint counts as visible")
        points = np.concatenate([np.zeros((25, 2)), np.ones((25, 1))], 1)
    else:
        points = np.asarray(keypoints_2d, dtype=np.float64)
        if points.shape != (25, 3):
            raise ValueError(f"key points are BODY_25 pixels and confidence (25, 3), got {points.shape}")
        # a point that is not a number was not seen
        points = np.where(np.isfinite(points).all(1, keepdims=True), points, 0.0) / [width, height, 1] - [0.5, 0.5, 0]
    if scene is None:
        raise SceneError("a scanned scene is needed: points (N, 3) in metres in the camera's frame, e.g. of the depth picture")
    cloud = crop_stage1(scene, np.eye(4), np.eye(4), target=target)
    pixels = (view.warp(image).astype(np.float32) / 255 - np.asarray(MEAN, np.float32)) / np.asarray(STD, np.float32)
    batch = {
        "img": pixels.transpose(2, 0, 1), "orig_keypoints_2d": points, "scene_pcd_verts_full": cloud, "image_size": (width, height),
        "fx": focal / FOCAL_UNIT, "cam_cx": principal[0], "cam_cy": principal[1], "box_center": (box[:2] + box[2:]) / 2,
        "box_size": BOX_SCALE * (box[2:] - box[:2]).max(),
    }  # fmt: skip
    return {name: torch.tensor(np.asarray(value, dtype=np.float32))[None] for name, value in batch.items()}, assumed


def around_person(scene: Any, transl: Any, *, up: Any = (0.0, -1.0, 0.0), size: float = 2.0, target: int = TARGET) -> Tensor:
    """Stage 2's cloud (1, target, 3): the upright cube of `scene` (N, 3) around the person at `transl` (3,), camera frame.

    `up` is the upward direction in the camera's frame: the default takes the camera as level.
    """
    to_upright = _upright(np.asarray(up, dtype=np.float64))
    cloud = crop_stage2(np.asarray(scene, dtype=np.float64) @ to_upright.T, to_upright @ np.asarray(transl, dtype=np.float64), angle=0.0,
                        size=size, target=target)  # fmt: skip
    return torch.as_tensor(cloud @ to_upright, dtype=torch.float32)[None]


def _camera(intrinsics: Any) -> tuple[float, np.ndarray]:
    if intrinsics is None:
        raise ValueError("intrinsics (3, 3) in pixels are needed: without the focal length a body has no metric distance")
    matrix = np.asarray(intrinsics, dtype=np.float64)
    if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or matrix[0, 0] <= 0 or matrix[1, 1] <= 0:
        raise ValueError(f"intrinsics must be a finite (3, 3) matrix in pixels with positive focal lengths, got {matrix.tolist()}")
    if abs(matrix[0, 0] / matrix[1, 1] - 1) > 0.02:
        raise ValueError(f"focal lengths {matrix[0, 0]:.1f} and {matrix[1, 1]:.1f} differ: stretch the picture to square pixels first")
    return float(matrix[0, 0]), matrix[:2, 2]


def _upright(up: np.ndarray) -> np.ndarray:
    """The rotation (3, 3) into a frame whose y axis is `up`."""
    length = np.linalg.norm(up) if up.shape == (3,) else 0.0
    if not np.isfinite(length) or length == 0:
        raise ValueError(f"up must be a direction (3,), got {up.tolist()}")
    y = up / length
    x = np.cross(y, np.eye(3)[np.argmin(np.abs(y))])
    x /= np.linalg.norm(x)
    return np.stack([x, y, np.cross(x, y)])
