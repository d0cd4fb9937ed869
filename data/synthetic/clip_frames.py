"""The frames of a clip: what stands still is drawn once, wider than the picture, and warped into each frame; hands and what they hold
are drawn in every frame and put before or behind it by depth."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import lru_cache

import cv2
import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import background, draw
from data.synthetic.frame import Frame

SCALE = draw.SUPERSAMPLE


@dataclass(frozen=True)
class Stage:
    """What stands still, seen by the camera of the last frame on a canvas `pad` pixels wider on each side.

    `look` (H, W, 4) float32: RGB 0..1, and how much of the pixel objects cover; supersampled are `distance` (H, W) float32 metres along
    the viewing ray (inf on table and wall) and `owner` (H, W) number of the object, −1 where there is none.
    """

    frame: Frame
    light: draw.Light
    shadow: float
    pad: int
    look: np.ndarray
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
        covered = cv2.resize((nearest >= 0).astype(np.float32), wide.size, interpolation=cv2.INTER_AREA)
        look = np.dstack([draw.paint(layers, nearest, behind), covered]).astype(np.float32)
        distance = draw.depth_of(layers, nearest) * _ray_lengths(wide.focal, wide.size)
        return cls(frame, light, shadow, pad, look, distance, np.array([*numbers, -1], np.int16)[nearest])

    def seen(self, rotation: np.ndarray) -> np.ndarray:
        """(h, w, 4) float32, `look` as a camera turned by `rotation` (3, 3) sees it."""
        warp = _canvas_to_picture(self.frame, self.pad, rotation, 1)
        return cv2.warpPerspective(self.look, warp, self.frame.size, flags=cv2.INTER_LINEAR, borderMode=cv2.BORDER_REPLICATE)

    def depth(self, rotation: np.ndarray, window: tuple[slice, slice]) -> np.ndarray:
        """Depth in a window (rows, columns) of the supersampled picture of that camera."""
        rows, cols = window
        warp = _canvas_to_picture(self.frame, self.pad, rotation, SCALE)
        warp = np.array([[1, 0, -cols.start], [0, 1, -rows.start], [0, 0, 1.0]]) @ warp
        size = (cols.stop - cols.start, rows.stop - rows.start)
        distance = cv2.warpPerspective(self.distance, warp, size, flags=cv2.INTER_NEAREST, borderValue=float("inf"))
        return distance / _ray_lengths(self.frame.focal, self.frame.size)[window]

    def object_mask(self, ids: np.ndarray) -> np.ndarray:
        """(h, w) int16 numbers of the objects seen in the last frame, −1 elsewhere and where its `ids` (h, w) show a hand."""
        first = self.pad * SCALE + 1
        crop = self.owner[first :: SCALE, first :: SCALE][: ids.shape[0], : ids.shape[1]]
        return np.where(ids == 0, crop, -1)


@dataclass(frozen=True)
class Drawn:
    """A frame before the lens: `picture` (h, w, 3) float32 0..1; `ids` (h, w) uint8 of hands, forearms and held things, 0 elsewhere;
    `seen` id → share of that part's pixels that is seen."""

    picture: np.ndarray
    ids: np.ndarray
    seen: dict[int, float]


def draw_frame(stage: Stage, rotation: np.ndarray, parts: list[draw.Part]) -> Drawn:
    """The frame of a camera turned by `rotation` (3, 3) from the last one's; `parts` are what moves, in the last frame's camera."""
    frame = stage.frame
    light = draw.Light(rotation @ stage.light.direction, stage.light.ambient)
    turned = [replace(part, vertices=part.vertices @ rotation.T, normals=part.normals @ rotation.T) for part in parts]
    layers = [layer for part in turned if (layer := draw.draw_layer(part, frame.focal, frame.size, light)) is not None]
    look = stage.seen(rotation)
    shade = draw.shadow_cover(frame.size, turned, frame.focal, rotation @ frame.up, frame.height, light)
    shade = cv2.resize(shade, frame.size, interpolation=cv2.INTER_LINEAR) * (1 - look[..., 3])
    picture = look[..., :3] * (1 - stage.shadow * shade)[..., None]
    ids = np.zeros(picture.shape[:2], np.uint8)
    window = _window(layers, frame.size)
    if window is None:
        return Drawn(picture, ids, {})
    rows, cols = window
    layers = [replace(layer, x=layer.x - cols.start, y=layer.y - rows.start) for layer in layers]
    depth = stage.depth(rotation, window)
    owner = draw.lay_together(layers, (depth.shape[1] // SCALE, depth.shape[0] // SCALE), depth)
    small = (slice(rows.start // SCALE, rows.stop // SCALE), slice(cols.start // SCALE, cols.stop // SCALE))
    ids[small] = draw.id_mask(layers, owner)
    over = draw.paint_over(layers, owner, np.zeros((*owner.shape, 3), np.float32))
    cover = (owner >= 0).astype(np.float32)
    size = (ids[small].shape[1], ids[small].shape[0])
    over, cover = (cv2.resize(each, size, interpolation=cv2.INTER_AREA) for each in (over, cover))
    picture[small] = picture[small] * (1 - cover)[..., None] + over
    shares = draw.seen_shares(layers, owner)
    return Drawn(picture, ids, {layer.part.id: float(share) for layer, share in zip(layers, shares, strict=True)})


def _window(layers: list[draw.Layer], size: tuple[int, int]) -> tuple[slice, slice] | None:
    """Rows and columns of the supersampled picture that hold all layers, whole picture pixels; None when there are none."""
    if not layers:
        return None
    low = np.min([(layer.x, layer.y) for layer in layers], axis=0) // SCALE * SCALE
    high = -(-np.max([(layer.x + layer.mask.shape[1], layer.y + layer.mask.shape[0]) for layer in layers], axis=0) // SCALE) * SCALE
    (x1, y1), (x2, y2) = np.maximum(low, 0), np.minimum(high, np.array(size) * SCALE)
    return (slice(int(y1), int(y2)), slice(int(x1), int(x2))) if x2 > x1 and y2 > y1 else None


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


@lru_cache(maxsize=4)
def _ray_lengths(focal: float, size: tuple[int, int]) -> np.ndarray:
    """(height, width) float32, supersampled: the length of each pixel's viewing ray at depth 1."""
    x, y = (((np.arange(n * SCALE, dtype=np.float32) + 0.5) / SCALE - n / 2) / focal for n in size)
    return np.sqrt(1 + x[None, :] ** 2 + y[:, None] ** 2).astype(np.float32)


def _canvas_to_picture(frame: Frame, pad: int, rotation: np.ndarray, scale: int) -> np.ndarray:
    """(3, 3) from pixel numbers of the canvas to those of the picture, both `scale` times as fine (a pixel's number is its centre)."""
    to_units = np.array([[1 / scale, 0, 0.5 / scale - pad], [0, 1 / scale, 0.5 / scale - pad], [0, 0, 1.0]])
    from_units = np.array([[scale, 0, -0.5], [0, scale, -0.5], [0, 0, 1.0]])
    return from_units @ np.linalg.inv(homography(frame, rotation)) @ to_units
