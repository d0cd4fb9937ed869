"""Cameras of EgoHMR: what the networks are told of them, weak-perspective camera → translation, projection into the whole picture.

A batch's `fx` (B,) is the focal length in pixels / 1500; `cam_cx`, `cam_cy`, `box_center` (B, 2), `box_size` (B,) are pixels of the whole
picture; `image_size` (B, 2), where given, its width and height (1920 × 1080 otherwise). One focal length serves both axes.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

FOCAL_UNIT = 1500.0
IMAGE_SIZE = (1920.0, 1080.0)


def focal_length(batch: Mapping[str, Tensor]) -> Tensor:
    """(B,) pixels. Raises ValueError where the batch has no camera."""
    missing = [name for name in ("fx", "cam_cx", "cam_cy", "box_center", "box_size") if name not in batch]
    if missing:
        raise ValueError(
            f"the batch has no {', '.join(missing)}: EgoHMR needs the camera's intrinsics and the person's box, both in pixels"
        )
    return batch["fx"] * FOCAL_UNIT


def camera_features(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, 6): principal point 2, box centre 2 and box side 1, all over the focal length, and the focal length / 1500."""
    focal = focal_length(batch)
    pixels = [batch["cam_cx"], batch["cam_cy"], batch["box_center"][:, 0], batch["box_center"][:, 1], batch["box_size"]]
    return torch.stack([*(value / focal for value in pixels), batch["fx"]], 1)


def full_translation(cam: Tensor, box_center: Tensor, box_size: Tensor, focal: Tensor, principal: Tensor) -> Tensor:
    """Weak-perspective cameras on the box (B, …, 3) = (s, tx, ty) → translations (B, …, 3) metres in the whole picture's camera frame.

    `box_center` (B, 2), `box_size` (B,), `focal` (B,), `principal` (B, 2): pixels. z = 2 f / (side · s) (Kocabas et al., SPEC, 2021).
    """
    ones = [1] * (cam.dim() - 2)
    scale = (cam[..., 0] * box_size.view(-1, *ones))[..., None]
    shift = (box_center - principal).view(-1, *ones, 2)
    return torch.cat([cam[..., 1:] + 2 * shift / scale, 2 * focal.view(-1, *ones, 1) / scale], -1)


def batch_translation(cam: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """`full_translation` with a batch's camera."""
    return full_translation(cam, batch["box_center"], batch["box_size"], focal_length(batch), principal_point(batch))


def principal_point(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, 2) pixels."""
    return torch.stack([batch["cam_cx"], batch["cam_cy"]], 1)


def image_size(batch: Mapping[str, Tensor]) -> Tensor:
    """(B, 2) width, height."""
    return batch["image_size"].to(batch["fx"]) if "image_size" in batch else batch["fx"].new_tensor(IMAGE_SIZE).expand(len(batch["fx"]), 2)


def project_pixels(points: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Points (B, …, 3) metres in the camera frame → (B, …, 2) pixels."""
    shape = (-1, *([1] * (points.dim() - 2)))
    depth = points[..., 2:]
    # no point is exactly in the camera's plane, but a half-trained network's may come close
    depth = torch.where(depth.abs() < 1e-6, torch.full_like(depth, 1e-6), depth)
    return points[..., :2] / depth * focal_length(batch).view(*shape, 1) + principal_point(batch).view(*shape, 2)


def project_normalised(points: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """The same in units of the picture: (u / width − 0.5, v / height − 0.5)."""
    size = image_size(batch).view(-1, *([1] * (points.dim() - 2)), 2)
    return project_pixels(points, batch) / size - 0.5
