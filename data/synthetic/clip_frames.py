"""The frames of a clip: what stands still is drawn once, wider than the picture, and warped into each frame; hands and what they hold
are drawn in every frame and put before or behind it by depth."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import background, draw
from data.synthetic.frame import Frame

SIDE = draw.SUPERSAMPLE


@dataclass(frozen=True)
class Stage:
    """What stands still, seen by the camera of the last frame on a canvas `pad` pixels wider on each side; all supersampled.

    `rgb` (H, W, 3) float32 0..1, `distance` (H, W) float32 metres along the viewing ray (inf on table and wall), `owner` (H, W)
    number of the object, −1 where there is none.
    """

    frame: Frame
    light: draw.Light
    shadow: float
    pad: int
    rgb: np.ndarray
    distance: np.ndarray
    owner: np.ndarray

    @classmethod
    def build(cls, room: int, frame: Frame, parts: list[draw.Part], light: draw.Light, shadow: float) -> Stage:
        """The table and wall of background seed `room` with `parts` on it; `shadow` 0..1 is how dark shadows are."""
        pad = pad_of(frame)
        wide = replace(frame, size=(frame.size[0] + 2 * pad, frame.size[1] + 2 * pad))
        behind = background.draw(room, wide.size, wide.focal, wide.up, wide.height)
        behind = draw.cast_shadows(behind, parts, wide.focal, wide.up, wide.height, light, shadow)
        drawn = [draw.draw_layer(part, wide.focal, wide.size, light) for part in parts]
        numbers = [number for number, layer in enumerate(drawn) if layer is not None]
        layers = [layer for layer in drawn if layer is not None]
        nearest = draw.lay_together(layers, wide.size)
        canvas = draw.paint_over(layers, nearest, cv2.resize(behind, nearest.shape[::-1], interpolation=cv2.INTER_LINEAR))
        distance = draw.depth_of(layers, nearest) * _ray_lengths(wide)
        return cls(frame, light, shadow, pad, canvas, distance, np.array([*numbers, -1], np.int16)[nearest])

    def seen(self, rotation: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """`(rgb, depth)` of the stage as a camera turned by `rotation` (3, 3) sees it, supersampled picture size."""
        size = (self.frame.size[0] * SIDE, self.frame.size[1] * SIDE)
        warp = _canvas_to_picture(self.frame, self.pad, rotation)
        rgb = cv2.warpPerspective(self.rgb, warp, size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)
        distance = cv2.warpPerspective(self.distance, warp, size, flags=cv2.INTER_NEAREST, borderValue=float("inf"))
        return rgb, distance / _ray_lengths(self.frame)

    def object_mask(self, owner: np.ndarray) -> np.ndarray:
        """(height, width) int16 numbers of the objects seen in the last frame, −1 elsewhere; `owner` as `draw_frame` gives it."""
        crop = self.owner[self.pad * SIDE : self.pad * SIDE + owner.shape[0], self.pad * SIDE : self.pad * SIDE + owner.shape[1]]
        return np.where(owner < 0, crop, -1)[1::SIDE, 1::SIDE]


def draw_frame(stage: Stage, rotation: np.ndarray, parts: list[draw.Part]) -> tuple[np.ndarray, list[draw.Layer], np.ndarray]:
    """`(picture (h, w, 3) float32 0..1, layers, owner)` of a frame whose camera is turned by `rotation` (3, 3) from the last one's.

    `parts` are given in the last frame's camera; the layers' are in this frame's.
    """
    frame = stage.frame
    light = draw.Light(rotation @ stage.light.direction, stage.light.ambient)
    turned = [replace(part, vertices=part.vertices @ rotation.T, normals=part.normals @ rotation.T) for part in parts]
    layers = [layer for part in turned if (layer := draw.draw_layer(part, frame.focal, frame.size, light)) is not None]
    canvas, depth = stage.seen(rotation)
    owner = draw.lay_together(layers, frame.size, depth)
    shade = draw.shadow_cover(frame.size, turned, frame.focal, rotation @ frame.up, frame.height, light)
    shade = cv2.resize(shade, canvas.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    shade[np.isfinite(depth)] = 0
    canvas *= (1 - stage.shadow * shade)[..., None]
    draw.paint_over(layers, owner, canvas)
    return cv2.resize(canvas, frame.size, interpolation=cv2.INTER_AREA), layers, owner


def homography(frame: Frame, rotation: np.ndarray) -> np.ndarray:
    """(3, 3) from pixels of the frame whose camera is turned by `rotation` to pixels of the last frame, exact at every depth."""
    return frame.intrinsics @ rotation.T @ np.linalg.inv(frame.intrinsics)


def within_canvas(frame: Frame, rotations: np.ndarray) -> np.ndarray:
    """The rotations (N, 3, 3), made smaller together until every frame lies on the canvas."""
    w, h = frame.size
    corners = np.array([[0, 0, 1], [w, 0, 1], [w, h, 1], [0, h, 1.0]])
    pad, turns = pad_of(frame) - 1, Rotation.from_matrix(rotations).as_rotvec()
    while True:
        rotations = Rotation.from_rotvec(turns).as_matrix()
        moved = np.stack([corners @ homography(frame, rotation).T for rotation in rotations])
        moved = moved[..., :2] / moved[..., 2:]
        if (moved > -pad).all() and (moved < np.array([w, h]) + pad).all():
            return rotations
        turns = turns * 0.85


def pad_of(frame: Frame) -> int:
    """By how many pixels the canvas is wider than the picture on each side."""
    return frame.short // 4


def _ray_lengths(frame: Frame) -> np.ndarray:
    """(height, width) float32, supersampled: the length of each pixel's viewing ray at depth 1."""
    x, y = (((np.arange(n * SIDE, dtype=np.float32) + 0.5) / SIDE - n / 2) / frame.focal for n in frame.size)
    return np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2).astype(np.float32)


def _canvas_to_picture(frame: Frame, pad: int, rotation: np.ndarray) -> np.ndarray:
    """(3, 3) from pixel numbers of the supersampled canvas to those of the supersampled picture (a pixel's number is its centre)."""
    to_units = np.array([[1 / SIDE, 0, 0.5 / SIDE - pad], [0, 1 / SIDE, 0.5 / SIDE - pad], [0, 0, 1.0]])
    from_units = np.array([[SIDE, 0, -0.5], [0, SIDE, -0.5], [0, 0, 1.0]])
    return from_units @ np.linalg.inv(homography(frame, rotation)) @ to_units
