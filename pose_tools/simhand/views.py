"""Augmented views of a hand crop: turn → crop around the key points → 128 px → colour jitter, as one warp.

The geometry (integers included), the matrix and the order of the random draws are those of the published pipeline; the pixels are
resampled once instead of three times, and lie where the matrix says. `compat.make_view_in_steps` resamples as published.
Coordinates: x right, y down, (0, 0) the outer corner of the top-left pixel.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Collection, Mapping
from typing import Any

import cv2
import numpy as np

from pose_tools.types import Side

OUT = 128
"""Width and height of a view in pixels."""
SIMHAND_STEPS = ("rotate", "random_crop", "crop", "color_jitter")
SIMCLR_STEPS = ("crop", "color_jitter")
STEPS = (*SIMHAND_STEPS, "gaussian_blur", "color_drop", "resize")
MARGIN = 1.25
MEAN, STD = np.array([0.485, 0.456, 0.406], np.float32), np.array([0.229, 0.224, 0.225], np.float32)

Parameters = dict[str, Any]
"""angle (degrees, counter-clockwise), jitter [x, y] px drawn, jitter_x, jitter_y (minus the crop's effective shift, px before the
resize: what `undo_view` takes), crop_margin, h s a b (colour), blurred, sigma, color_dropped. None where a step was off."""


def draw_parameters(seed: int | random.Random | None = None, steps: Collection[str] = SIMHAND_STEPS) -> Parameters:
    """What a view's random draws give, from Python's generator in the published order; jitter_x and jitter_y follow in `make_view`."""
    if unknown := set(steps) - set(STEPS):
        raise ValueError(f"unknown steps {sorted(unknown)}, expected some of {', '.join(STEPS)}")
    rng = seed if isinstance(seed, random.Random) else random.Random(seed)
    found: Parameters = dict.fromkeys(("angle", "h", "s", "a", "b", "sigma"))
    found["blurred"] = "gaussian_blur" in steps and bool(rng.getrandbits(1))
    if found["blurred"]:
        found["sigma"] = rng.uniform(0.1, 2.0)
    if "rotate" in steps:
        found["angle"] = rng.uniform(45, -45) // 1
    found["crop_margin"] = rng.uniform(0.9, 1.5) if "random_crop" in steps else MARGIN
    found["jitter"] = [int(rng.uniform(0, 15)), int(rng.uniform(0, 15))] if "crop" in steps else [0, 0]
    if "color_jitter" in steps:
        for name, low, high in (("h", 0.01, 1), ("s", 0.01, 1), ("a", 0.5, 1), ("b", 5, 20)):
            found[name] = rng.uniform(low, high)
    found["color_dropped"] = "color_drop" in steps and bool(rng.getrandbits(1))
    return found


def rotation(joints: np.ndarray, angle: float) -> np.ndarray:
    """(2, 3) float64: the turn by `angle` degrees about the whole-pixel mean of the key points (21, 2)."""
    centre = [int(v) for v in joints.mean(0, dtype=np.float32)]
    return cv2.getRotationMatrix2D(centre, angle, 1.0)


def crop_region(
    joints: np.ndarray, parameters: Mapping[str, Any], size: tuple[int, int]
) -> tuple[tuple[int, int, int, int], tuple[int, int]]:
    """Whole pixels of the turned picture of `size` (width, height): crop (x0, y0, x1, y1), cut off at the border; (jitter_x, jitter_y)."""
    centre = [int(v) for v in joints.mean(0, dtype=np.float32)]
    offsets = joints - np.array(centre, np.float32)
    side = int(np.float32((offsets[:, 1] ** 2 + offsets[:, 0] ** 2).max()) ** 0.5 * parameters["crop_margin"])
    wanted = [c - side for c in centre]
    x0, y0 = (max(w + int(j), 0) for w, j in zip(wanted, parameters["jitter"], strict=True))
    x1, y1 = min(x0 + 2 * side, size[0]), min(y0 + 2 * side, size[1])
    if x1 <= x0 or y1 <= y0:
        raise ValueError(f"the crop x {x0}…{x0 + 2 * side}, y {y0}…{y0 + 2 * side} has no pixel of the {size[0]}x{size[1]} picture: "
                         "the key points lie outside it or in one spot")  # fmt: skip
    return (x0, y0, x1, y1), (wanted[0] - x0, wanted[1] - y0)


def view_geometry(joints: np.ndarray, parameters: Mapping[str, Any], size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, Parameters]:
    """Key points (21, 2) float32 in the view, matrix (3, 3) float64 from the picture to the view, parameters with jitter_x, jitter_y."""
    matrix = np.eye(3)
    if parameters.get("angle") is not None:
        matrix[:2] = rotation(joints, parameters["angle"])
        joints = (joints.astype(np.float64) @ matrix[:2, :2].T + matrix[:2, 2]).astype(np.float32)
    (x0, y0, x1, y1), (jitter_x, jitter_y) = crop_region(joints, parameters, size)
    matrix[:2, 2] -= (x0, y0)
    factor = np.array([OUT / (x1 - x0), OUT / (y1 - y0)])
    matrix[:2] *= factor[:, None]
    moved = (joints - np.array([x0, y0], np.float32)) * factor.astype(np.float32)
    return moved, matrix, dict(parameters) | {"jitter_x": jitter_x, "jitter_y": jitter_y}


def make_view(
    image: np.ndarray,
    joints: np.ndarray,
    *,
    parameters: Mapping[str, Any] | None = None,
    seed: int | None = None,
    steps: Collection[str] = SIMHAND_STEPS,
    resample: Callable[[np.ndarray, np.ndarray, Parameters], np.ndarray] | None = None,
) -> tuple[np.ndarray, np.ndarray, np.ndarray, Parameters]:
    """One view of a hand: picture uint8 (H, W, 3), key points (21, 2) or (21, 3) pixels →

    (view (128, 128, 3) uint8, key points of the same shape in the view's pixels (a third column stays), matrix (3, 3) float64
    from the picture to the view, parameters). `parameters` of another call make the same view again; else `seed` and `steps` draw
    them (`draw_parameters`). What the turned and cropped picture lacks is black; a crop that the border cuts off is
    stretched, as published. `resample(picture, key points (21, 2), parameters)` may turn and cut the picture in another way than our one
    warp. Raises ValueError for key points that are not finite or leave nothing to crop.
    """
    image, joints = check_picture(image, joints)
    given = complete(parameters) if parameters is not None else draw_parameters(seed, steps)
    moved, matrix, found = view_geometry(joints[:, :2], given, image.shape[1::-1])
    if found["blurred"]:
        image = blur(image, found["sigma"])
    view = _warp(image, matrix) if resample is None else resample(image, joints[:, :2], found)
    if found["h"] is not None:
        view = color_jitter(view, found)
    if found["color_dropped"]:
        view = grey(view)
    return view, np.concatenate([moved, joints[:, 2:]], axis=1), matrix, found


def check_picture(image: np.ndarray, joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The picture as it is, the key points as float32; ValueError for other shapes, types and numbers that are not finite."""
    image, joints = np.asarray(image), np.asarray(joints, dtype=np.float32)
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        raise ValueError(f"expected a picture uint8 (H, W, 3), got {image.dtype} {image.shape}")
    if joints.ndim != 2 or joints.shape[1] not in (2, 3) or len(joints) == 0:
        raise ValueError(f"expected key points (21, 2) or (21, 3), got {joints.shape}")
    if not np.isfinite(joints).all():
        raise ValueError(f"key points {np.flatnonzero(~np.isfinite(joints).all(1)).tolist()} are not finite: leave such hands out")
    return image, joints


def complete(parameters: Mapping[str, Any]) -> Parameters:
    """Parameters with everything that was left out switched off."""
    off: Parameters = dict.fromkeys(("angle", "h", "s", "a", "b", "sigma"))
    return off | {"crop_margin": MARGIN, "jitter": [0, 0], "blurred": False, "color_dropped": False} | dict(parameters)


def _warp(image: np.ndarray, matrix: np.ndarray) -> np.ndarray:
    """Bilinear, on a grid as many times finer as the picture is shrunk, then averaged: no aliasing, and far cheaper than a filter."""
    shrink = 1 / np.sqrt(abs(np.linalg.det(matrix[:2, :2])))
    fine = min(8, max(1, round(float(shrink))))
    affine = matrix[:2] * fine
    affine[:, 2] += 0.5 * affine[:, 0] + 0.5 * affine[:, 1] - 0.5  # OpenCV puts the centre of the first pixel at (0, 0)
    view = cv2.warpAffine(image, affine, (OUT * fine, OUT * fine), flags=cv2.INTER_LINEAR)
    return view if fine == 1 else cv2.resize(view, (OUT, OUT), interpolation=cv2.INTER_AREA)


def color_jitter(image: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    """Hue·h, saturation·s, value·a + b in OpenCV's 8-bit HSV, clipped to 0…255 and cut to whole numbers.

    As published, the RGB picture is read as BGR (orange skin has a blue's hue number, so h sweeps the colours) and hue is not wrapped.
    """
    values = np.arange(256.0)
    table = np.stack([values * parameters["h"], values * parameters["s"], values * parameters["a"] + parameters["b"]], axis=-1)
    table = np.clip(table, 0, 255).astype(np.uint8)[None]
    return cv2.cvtColor(cv2.LUT(cv2.cvtColor(image, cv2.COLOR_BGR2HSV), table), cv2.COLOR_HSV2BGR)


def grey(image: np.ndarray) -> np.ndarray:
    """Luminance on three channels (weights of BGR on an RGB picture, as published)."""
    return cv2.merge([cv2.cvtColor(image, cv2.COLOR_BGR2GRAY)] * 3)


def blur(image: np.ndarray, sigma: float) -> np.ndarray:
    """Gaussian blur, kernel a tenth of the picture's height and width, made odd."""
    kernel = [int(side * 0.1) + (int(side * 0.1) % 2 == 0) for side in image.shape[:2]]
    return cv2.GaussianBlur(image, kernel, sigma)


def normalise(view: np.ndarray) -> np.ndarray:
    """uint8 (H, W, 3) → float32 (3, H, W), ImageNet's mean and deviation."""
    return np.ascontiguousarray(((view.astype(np.float32) / 255 - MEAN) / STD).transpose(2, 0, 1))


def hand_crop_box(size: tuple[int, int], bbox_xyxy: Any, scale: float = 1.3) -> tuple[int, int, int, int]:
    """What `hand_crop` shows of a picture of `size` (width, height): xyxy, whole pixels, cut off at the border. ValueError for nothing."""
    x0, y0, x1, y1 = (int(v) for v in bbox_xyxy)
    dx, dy = int((int(scale * (x1 - x0)) - (x1 - x0)) / 2), int((int(scale * (y1 - y0)) - (y1 - y0)) / 2)
    x0, y0, x1, y1 = x0 - dx, y0 - dy, x1 + dx, y1 + dy
    centre, half = ((x0 + x1) / 2, (y0 + y1) / 2), max(x1 - x0, y1 - y0) // 2
    left, top = (max(0, int(c - half)) for c in centre)
    right, bottom = (min(side, int(c + half)) for side, c in zip(size, centre, strict=True))
    if right <= left or bottom <= top:
        raise ValueError(f"hand_crop: box {[float(v) for v in bbox_xyxy]} leaves nothing of the {size[0]}x{size[1]} picture")
    return left, top, right, bottom


def hand_crop(
    image: np.ndarray, bbox_xyxy: Any, *, side: Side = "right", scale: float = 1.3, size: int = 224
) -> tuple[np.ndarray, np.ndarray]:
    """The square crop of a hand → (uint8 (size, size, 3), matrix (3, 3) float64 from the picture to the crop), left hands mirrored.

    The published rule: a box `scale` times as large, its longer side halved without remainder, around its centre; cut off at the
    border and stretched there. `scale` 1.3 in pre-training, 1.5 in the fine-tuning package.
    """
    left, top, right, bottom = hand_crop_box((image.shape[1], image.shape[0]), bbox_xyxy, scale)
    crop = cv2.resize(image[top:bottom, left:right], (size, size), interpolation=cv2.INTER_LINEAR)
    fx, fy = size / (right - left), size / (bottom - top)
    matrix = np.array([[fx, 0, -left * fx], [0, fy, -top * fy], [0, 0, 1]])
    if side == "left":
        crop, matrix = np.ascontiguousarray(crop[:, ::-1]), np.array([[-1, 0, size], [0, 1, 0], [0, 0, 1.0]]) @ matrix
    return crop, matrix
