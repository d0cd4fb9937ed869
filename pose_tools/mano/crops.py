"""Annotated hands as training samples: a square crop, and every label in the crop's own camera.

Left hands are mirrored, picture and labels. Turning, scaling and shifting the crop moves its camera, and the labels with it: what a
sample's `projection` makes of its 3-D joints are its 2-D joints, exactly.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import torch
from scipy.spatial.transform import Rotation

from pose_tools.types import HandSample
from pose_tools.user_error import UserError
from pose_tools.views import View, crop

MIRROR = np.array([-1.0, 1.0, 1.0])
"""What a mirror does to a point; to an axis-angle vector it does the opposite."""


class CropError(UserError):
    """A hand that cannot be cropped or a label that cannot be used; the message names the sample and what is wrong."""


@dataclass(frozen=True)
class Augmentation:
    """How far a crop may differ from the plain one. Mirroring is not among it: a mirrored hand is one of the other side.

    `scale`: largest change of size, a factor 1 ± scale. `shift`: in crop widths. `rotation`: degrees, with `rotation_share` of the
    crops turned. `colour`: largest change of each channel's gain. `erase`: share of crops with a patch painted over.
    """

    scale: float = 0.25
    shift: float = 0.06
    rotation: float = 30.0
    rotation_share: float = 0.6
    colour: float = 0.2
    erase: float = 0.15

    def draw(self, rng: np.random.Generator) -> dict[str, Any]:
        """The random numbers of one crop: keywords of `hand_view`."""
        turned = rng.random() < self.rotation_share
        return {
            "grow": float(1 + self.scale * rng.uniform(-1, 1)),
            "shift": tuple(self.shift * rng.uniform(-1, 1, 2)),
            "rotation": float(self.rotation * np.clip(rng.normal(0, 0.5), -1, 1)) if turned else 0.0,
        }


def hand_view(
    bbox_xyxy: Any,
    size: int,
    *,
    scale: float,
    mirror: bool,
    grow: float = 1.0,
    shift: tuple[float, float] = (0.0, 0.0),
    rotation: float = 0.0,
) -> View:
    """The square view of `size` pixels whose side is `scale` · `grow` times the longer side of the box (xyxy pixels); `mirror` for a left
    hand. CropError for a box that is none."""
    box = np.asarray(bbox_xyxy, np.float64)
    if box.shape != (4,) or not np.isfinite(box).all() or not (box[2:] - box[:2] > 1e-3).all():
        raise CropError(f"the hand's box is {np.asarray(bbox_xyxy).tolist()}: expected finite x1 < x2 and y1 < y2 in pixels")
    side = float((box[2:] - box[:2]).max()) * scale * grow
    x, y = (box[:2] + box[2:]) / 2 + np.asarray(shift) * side
    return crop((x - side / 2, y - side / 2, x + side / 2, y + side / 2), size, rotation=rotation, flip=mirror)


def assumed_intrinsics(size: tuple[int, int], degrees: float = 60.0) -> np.ndarray:
    """(3, 3) pixels of a camera of that field of view across the longer side of a picture `size` (width, height)."""
    focal = max(size) / 2 / np.tan(np.radians(degrees) / 2)
    return np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1.0]])


def crop_camera(view: View, intrinsics: np.ndarray, mirror: bool) -> tuple[np.ndarray, np.ndarray]:
    """The camera that looks through the middle of a crop.

    Returns `projection` (3, 3): its frame → crop units, and `turn` (3, 3): picture's camera frame → its frame, of determinant −1 for a
    mirrored crop. The pixels are not resampled for the new direction: `projection` holds the remaining perspective.
    """
    width, height = view.out
    units = np.array([[1 / width, 0, -0.5], [0, 1 / height, -0.5], [0, 0, 1]])
    flip = np.diag(MIRROR if mirror else np.ones(3))
    whole = units @ view.matrix @ np.asarray(intrinsics, np.float64) @ flip
    inverse = np.linalg.inv(whole)
    forward = inverse @ [0, 0, 1]
    forward *= np.sign((flip @ forward)[2]) / np.linalg.norm(forward)
    across = inverse @ [1e-3, 0, 1]
    across = across / (across @ forward) - forward
    across /= np.linalg.norm(across)
    turn = np.stack([across, np.cross(forward, across), forward])
    return whole @ turn.T, turn @ flip


class HandCrops:
    """A sequence of HandSamples as samples of a training task: `sample(index, epoch)` and `collate`.

    A sample is a dict of numpy arrays: `pixels` (3, S, S) uint8, the targets and, with the prefix "has_", the masks that
    `pose_tools.mano.losses` takes. `augmentation=None` is the plain crop. Everything random is a function of (seed, index, epoch).
    `targets` replaces `labels` for networks that learn other forms of them.
    """

    def __init__(
        self,
        samples: Sequence[HandSample],
        size: int,
        *,
        scale: float = 1.3,
        augmentation: Augmentation | None = None,
        seed: int = 0,
        targets: Callable[[HandSample, View], dict[str, np.ndarray]] | None = None,
    ) -> None:
        self.samples, self.size, self.scale, self.augmentation, self.seed = samples, size, scale, augmentation, seed
        self.targets = labels if targets is None else targets

    def __len__(self) -> int:
        return len(self.samples)

    def sample(self, index: int, epoch: int = 0) -> dict[str, np.ndarray]:
        hand, rng = self.samples[index], np.random.default_rng([self.seed, epoch, index])
        changes = self.augmentation.draw(rng) if self.augmentation else {}
        try:
            view = hand_view(hand.bbox_xyxy, self.size, scale=self.scale, mirror=hand.side == "left", **changes)
            pixels = warp(view, hand.image)
            if self.augmentation:
                pixels = repaint(pixels, rng, self.augmentation)
            return {"pixels": np.ascontiguousarray(pixels.transpose(2, 0, 1))} | self.targets(hand, view)
        except ValueError as error:
            raise CropError(f"sample {index} ({hand.source or 'no source'}): {error}") from error

    @staticmethod
    def collate(samples: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Stacks samples into a batch of tensors; vertices only where every sample has them."""
        names = [name for name in samples[0] if all(name in sample for sample in samples)]
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in names}


def warp(view: View, image: np.ndarray) -> np.ndarray:
    """The crop (S, S, 3) uint8; the picture's border goes on outside of it, since a black frame would be a cue.

    A small reduction is sampled with plain bilinear weights, a large one antialiased by `View.warp`.
    """
    height, width = image.shape[:2]
    reduction = 1 / np.sqrt(abs(np.linalg.det(view.matrix[:2, :2])))
    if reduction > 2.0:
        factor = 1 / int(reduction)
        small = View(np.diag([factor, factor, 1.0]), None, (max(1, round(width * factor)), max(1, round(height * factor))))
        image, view = small.warp(image), View(view.matrix @ small.inverse, None, view.out)
    # cv2 has pixel centres at whole numbers
    centre = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1]])
    matrix = np.linalg.inv(centre) @ view.matrix @ centre
    return cv2.warpAffine(image, matrix[:2], view.out, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)


def repaint(pixels: np.ndarray, rng: np.random.Generator, augmentation: Augmentation) -> np.ndarray:
    """Other light on a crop (S, S, 3) uint8, and now and then a patch of one colour, as an object before the hand."""
    gain = (1 + augmentation.colour * rng.uniform(-1, 1)) * (1 + augmentation.colour / 3 * rng.uniform(-1, 1, 3))
    contrast = 1 + augmentation.colour * rng.uniform(-1, 1)
    levels = (np.arange(256)[:, None] * gain - 110) * contrast + 110
    pixels = cv2.LUT(pixels, np.clip(levels + 0.5, 0, 255).astype(np.uint8).reshape(1, 256, 3))
    if rng.random() < augmentation.erase:
        size = len(pixels)
        x, y = (rng.random(2) * size).astype(int)
        w, h = (rng.uniform(0.1, 0.35, 2) * size).astype(int)
        pixels[y : y + h, x : x + w] = rng.integers(0, 256, 3)
    return pixels


def labels(hand: HandSample, view: View) -> dict[str, np.ndarray]:
    """Targets and masks of a hand seen through `view`, float32, without the batch axis."""
    mirror = hand.side == "left"
    known = hand.intrinsics is not None
    height, width = hand.image.shape[:2]
    intrinsics = hand.intrinsics if hand.intrinsics is not None else assumed_intrinsics((width, height))
    projection, turn = crop_camera(view, intrinsics, mirror)
    out: dict[str, np.ndarray] = {"projection": projection}
    _add_joints(out, hand, view, turn, known)
    pose = hand.pose
    out["has_pose"] = out["has_betas"] = np.array(float(pose is not None))
    out["rotations"], out["betas"] = np.tile(np.eye(3), (16, 1, 1)), np.zeros(10)
    if pose is not None:
        angles = np.concatenate([pose.global_orient, pose.hand_pose]).reshape(16, 3)
        out["rotations"] = Rotation.from_rotvec(-MIRROR * angles if mirror else angles).as_matrix()
        out["rotations"][0] = turn @ np.diag(MIRROR if mirror else np.ones(3)) @ out["rotations"][0]
        out["betas"] = pose.betas
    if hand.vertices is not None:
        out["vertices"], out["has_vertices"] = hand.vertices @ turn.T, np.array(1.0)
    return {name: np.asarray(value, np.float32) for name, value in out.items()}


def _add_joints(out: dict[str, np.ndarray], hand: HandSample, view: View, turn: np.ndarray, camera_known: bool) -> None:
    valid = np.ones(21, bool) if hand.joints_valid is None else np.asarray(hand.joints_valid, bool)
    for name, value, width in (("joints_3d", hand.joints_3d, 3), ("joints_2d", hand.joints_2d, 2)):
        there = valid if value is not None else np.zeros(21, bool)
        value = np.zeros((21, width)) if value is None else np.asarray(value, np.float64)
        if value.shape != (21, width):
            raise CropError(f"{name} has shape {value.shape}: expected (21, {width}) in FreiHAND order")
        if not np.isfinite(value[there]).all():
            raise CropError(f"{name} is not finite where joints_valid says it is there")
        if name == "joints_3d" and there.any() and np.ptp(value[there], axis=0).max() > 1.0:
            span = np.ptp(value[there], axis=0).max()
            raise CropError(f"joints_3d span {span:.3g} m: expected a hand in metres (are these millimetres?)")
        value = np.where(there[:, None], value, 0.0)
        out[name] = value @ turn.T if width == 3 else view.to_grid(value) / view.out[0] - 0.5
        out[f"has_{name}"] = there.astype(np.float64)
    # a point outside the crop cannot be seen in it
    out["has_joints_2d"] = out["has_joints_2d"] * (np.abs(out["joints_2d"]) < 0.5).all(1)
