"""What happened to a picture's pixels on the way to a model: one affine map, one warp, an exact inverse.

Coordinates are continuous: x to the right, y down, (0, 0) is the outer corner of the top-left pixel and (0.5, 0.5) its
centre, so a resize is a pure scaling. Every rule (letterbox, centre crop, squash, crop) returns a View; nothing else in the
repository resizes a picture for a model.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import cv2
import numpy as np
from PIL import Image

Interpolation = Literal["bilinear", "bicubic", "nearest"]
_PIL = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC, "nearest": Image.Resampling.NEAREST}
_CV2 = {"bilinear": cv2.INTER_LINEAR, "bicubic": cv2.INTER_CUBIC, "nearest": cv2.INTER_NEAREST}


@dataclass(frozen=True, eq=False)
class View:
    """The affine map from an original picture to a model's pixel grid.

    `matrix` (3, 3) float64: original pixels → grid pixels. `size` (width, height) of the original, or None where any
    picture may be warped. `out` (width, height) of the grid.
    """

    matrix: np.ndarray
    size: tuple[int, int] | None
    out: tuple[int, int]

    def __post_init__(self) -> None:
        matrix = np.array(self.matrix, dtype=np.float64)
        if matrix.shape == (2, 3):
            matrix = np.vstack([matrix, [0.0, 0.0, 1.0]])
        if matrix.shape != (3, 3) or not np.isfinite(matrix).all() or not np.allclose(matrix[2], [0, 0, 1]):
            raise ValueError(f"View: matrix must be a finite affine map (2, 3) or (3, 3), got\n{matrix}")
        if not np.linalg.cond(matrix[:2, :2]) < 1e12:
            raise ValueError(f"View: the map flattens the picture (determinant 0) and has no inverse, got\n{matrix}")
        matrix.setflags(write=False)
        object.__setattr__(self, "matrix", matrix)
        object.__setattr__(self, "size", None if self.size is None else _size(self.size, "size"))
        object.__setattr__(self, "out", _size(self.out, "out"))

    @classmethod
    def identity(cls, size: tuple[int, int]) -> View:
        """The view that changes nothing; `size` (width, height)."""
        return cls(np.eye(3), size, size)

    @property
    def inverse(self) -> np.ndarray:
        """(3, 3) float64: grid pixels → original pixels."""
        return np.linalg.inv(self.matrix)

    def to_grid(self, xy: Any) -> np.ndarray:
        """Points (…, 2) in original pixels → (…, 2) float64 in grid pixels."""
        return _apply(self.matrix, xy)

    def to_original(self, xy: Any) -> np.ndarray:
        """Points (…, 2) in grid pixels → (…, 2) float64 in original pixels."""
        return _apply(self.inverse, xy)

    def box_to_grid(self, bbox_xyxy: Any) -> np.ndarray:
        """Boxes (…, 4) xyxy, original → grid pixels: the tight box of the four moved corners (exact without rotation)."""
        return _apply_to_boxes(self.matrix, bbox_xyxy)

    def box_to_original(self, bbox_xyxy: Any) -> np.ndarray:
        """Boxes (…, 4) xyxy, grid → original pixels: the tight box of the four moved corners (exact without rotation)."""
        return _apply_to_boxes(self.inverse, bbox_xyxy)

    def then(self, other: View) -> View:
        """This view followed by `other`, as one warp of the original."""
        if other.size not in (None, self.out):
            raise ValueError(f"View.then: the second view starts from {other.size}, the first one ends at {self.out}")
        return View(other.matrix @ self.matrix, self.size, other.out)

    def warp(self, image: np.ndarray, *, fill: float | Sequence[float] = 0, interpolation: Interpolation = "bilinear") -> np.ndarray:
        """The picture on the grid: (H, W) or (H, W, C) → (out height, out width[, C]), same dtype.

        Shrinking is antialiased (not for "nearest", which is for masks). Grid pixels whose centre falls outside the original
        get `fill` (a number, or one per channel).
        """
        image = np.asarray(image)
        if image.ndim not in (2, 3) or image.size == 0:
            raise ValueError(f"View.warp: expected a picture (H, W) or (H, W, C), got shape {image.shape}")
        height, width = image.shape[:2]
        if self.size is not None and (width, height) != self.size:
            raise ValueError(f"View.warp: this view was made for a {self.size[0]}x{self.size[1]} picture, got {width}x{height}")
        if self.out == (width, height) and np.array_equal(self.matrix, np.eye(3)):
            return image.copy()
        canvas = np.empty((self.out[1], self.out[0], *image.shape[2:]), dtype=image.dtype)
        canvas[...] = np.asarray(fill).astype(image.dtype)
        if self.matrix[0, 1] == 0 and self.matrix[1, 0] == 0:
            _paste_scaled(image, canvas, self.inverse, interpolation)
        else:
            _paste_turned(image, canvas, self.matrix, interpolation)
        return canvas

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON values; `View.from_dict` reads them back exactly."""
        return {"matrix": self.matrix.tolist(), "size": None if self.size is None else list(self.size), "out": list(self.out)}

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> View:
        """The view that `to_dict` wrote."""
        size = record["size"]
        return cls(np.array(record["matrix"]), None if size is None else tuple(size), tuple(record["out"]))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, View) and (self.size, self.out) == (other.size, other.out) and np.array_equal(self.matrix, other.matrix)

    def __hash__(self) -> int:
        return hash((self.matrix.tobytes(), self.size, self.out))


def letterbox(size: tuple[int, int], out: int | tuple[int, int]) -> View:
    """The whole picture, aspect ratio kept, centred, with borders; `size` and `out` (width, height), an int is a square.

    The picture lands on whole grid pixels, so its edges stay sharp.
    """
    (width, height), out = _size(size, "size"), _size(out, "out")
    scale = min(out[0] / width, out[1] / height)
    new = tuple(min(max(1, round(side * scale)), limit) for side, limit in zip((width, height), out, strict=True))
    left, top = (out[0] - new[0]) // 2, (out[1] - new[1]) // 2
    return View(_scale_shift(new[0] / width, new[1] / height, left, top), (width, height), out)


def center_crop(size: tuple[int, int], out: int | tuple[int, int]) -> View:
    """The largest centred part with the grid's aspect ratio: short side resized to the grid, the rest cut, as CLIP does.

    The long side is rounded down and the cut is a whole number of pixels, like CLIP's image processor.
    """
    (width, height), out = _size(size, "size"), _size(out, "out")
    if out[0] * height >= out[1] * width:  # width is the side that just fits
        new = (out[0], max(out[1], int(out[0] * height / width)))
    else:
        new = (max(out[0], int(out[1] * width / height)), out[1])
    left, top = (new[0] - out[0]) // 2, (new[1] - out[1]) // 2
    return View(_scale_shift(new[0] / width, new[1] / height, -left, -top), (width, height), out)


def squash(size: tuple[int, int], out: int | tuple[int, int]) -> View:
    """The whole picture stretched to the grid, aspect ratio not kept."""
    (width, height), out = _size(size, "size"), _size(out, "out")
    return View(_scale_shift(out[0] / width, out[1] / height, 0, 0), (width, height), out)


def crop(
    bbox_xyxy: Any,
    out: int | tuple[int, int],
    *,
    scale: float = 1.0,
    rotation: float = 0.0,
    keep_aspect: bool = True,
    flip: bool = False,
    size: tuple[int, int] | None = None,
) -> View:
    """The part of a picture around a box (4,) xyxy original pixels; it may reach outside the picture.

    `scale` widens the box about its centre. `keep_aspect` grows the shorter side until the box has the grid's aspect ratio
    (otherwise it is stretched). `rotation` in degrees turns the content from x towards y (clockwise on the screen); `flip`
    then mirrors the grid left to right. `size` (width, height) of the original, if warp shall check it.
    """
    box, out = np.asarray(bbox_xyxy, dtype=np.float64), _size(out, "out")
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
        raise ValueError(f"crop: bbox_xyxy must be four finite numbers with x1 < x2 and y1 < y2, got {bbox_xyxy!r}")
    if not (np.isfinite(scale) and scale > 0 and np.isfinite(rotation)):
        raise ValueError(f"crop: scale must be positive and rotation finite, got scale={scale}, rotation={rotation}")
    factors = np.array(out) / ((box[2:] - box[:2]) * scale)
    if keep_aspect:
        factors[:] = factors.min()
    centre = (box[:2] + box[2:]) / 2
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]]) if rotation else np.eye(2)
    linear = np.diag(factors * ([-1, 1] if flip else [1, 1])) @ turn
    matrix = np.eye(3)
    matrix[:2, :2] = linear
    matrix[:2, 2] = np.array(out) / 2 - linear @ centre
    return View(matrix, size, out)


def _size(value: Any, name: str) -> tuple[int, int]:
    pair = (value, value) if np.isscalar(value) else tuple(value)
    if len(pair) != 2 or any(int(side) != side or side < 1 for side in pair):
        raise ValueError(f"{name} must be (width, height), whole numbers of at least 1, got {value!r}")
    return int(pair[0]), int(pair[1])


def _scale_shift(scale_x: float, scale_y: float, shift_x: float, shift_y: float) -> np.ndarray:
    return np.array([[scale_x, 0.0, shift_x], [0.0, scale_y, shift_y], [0.0, 0.0, 1.0]])


def _apply(matrix: np.ndarray, xy: Any) -> np.ndarray:
    xy = np.asarray(xy, dtype=np.float64)
    if xy.shape[-1:] != (2,):
        raise ValueError(f"expected points (…, 2), got shape {xy.shape}")
    return xy @ matrix[:2, :2].T + matrix[:2, 2]


def _apply_to_boxes(matrix: np.ndarray, bbox_xyxy: Any) -> np.ndarray:
    boxes = np.asarray(bbox_xyxy, dtype=np.float64)
    if boxes.shape[-1:] != (4,):
        raise ValueError(f"expected boxes (…, 4), got shape {boxes.shape}")
    corners = _apply(matrix, boxes[..., [0, 1, 2, 1, 2, 3, 0, 3]].reshape(*boxes.shape[:-1], 4, 2))
    return np.concatenate([corners.min(-2), corners.max(-2)], axis=-1)


def _paste_scaled(image: np.ndarray, canvas: np.ndarray, inverse: np.ndarray, interpolation: Interpolation) -> None:
    """Fills the canvas by a separable resize, for views without rotation; mirrored axes are resized, then flipped."""
    edges = _whole_edges(inverse, canvas.shape, image.shape)
    if edges is not None:
        left, top, right, bottom = edges
        canvas[:] = _resize(image, (right - left, bottom - top), (0, 0, *image.shape[1::-1]), interpolation)[
            -top : canvas.shape[0] - top, -left : canvas.shape[1] - left
        ]
        return
    spans = [_axis_span(inverse[i, i], inverse[i, 2], canvas.shape[1 - i], image.shape[1 - i]) for i in (0, 1)]
    if any(first == last for first, last, _, _ in spans):
        return  # no grid pixel's centre lies inside the picture
    (left, right, x0, x1), (top, bottom, y0, y1) = spans
    resized = _resize(image, (right - left, bottom - top), (min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1)), interpolation)
    canvas[top:bottom, left:right] = resized[:: -1 if y1 < y0 else 1, :: -1 if x1 < x0 else 1]


def _whole_edges(inverse: np.ndarray, canvas: tuple[int, ...], source: tuple[int, ...]) -> tuple[int, int, int, int] | None:
    """The picture's edges (x0, y0, x1, y1) on the grid, where the picture covers it and they lie on whole pixels; else None.

    Such a part, a centre crop above all, is cut from the resized picture: Pillow rounds the sides of a part to be resized to float32, and
    some of its pixels would be a grey level off. None also for a small part of a picture that is very large on the grid.
    """
    edges = [(side - inverse[i, 2]) / inverse[i, i] for side, i in ((0, 0), (0, 1), (source[1], 0), (source[0], 1))]
    whole = [round(edge) for edge in edges]
    x0, y0, x1, y1 = whole
    covers = x0 <= 0 and y0 <= 0 and x1 >= canvas[1] and y1 >= canvas[0]
    small = (x1 - x0) * (y1 - y0) <= 16 * canvas[0] * canvas[1]
    return (x0, y0, x1, y1) if covers and small and np.allclose(edges, whole, rtol=0, atol=1e-6) else None


def _axis_span(step: float, start: float, length: int, source: int) -> tuple[int, int, float, float]:
    """The run of grid pixels [first, last) whose centres fall inside [0, source), and the source range of that run."""
    centres = start + step * (np.arange(length) + 0.5)
    # A hair of tolerance: the map's rounding must not lose a border pixel of a picture that just fits.
    inside = np.flatnonzero((centres > -1e-9 * source) & (centres < source * (1 + 1e-9)))
    if inside.size == 0:
        return 0, 0, 0.0, 0.0
    first, last = int(inside[0]), int(inside[-1]) + 1
    return first, last, start + step * first, start + step * last


def _resize(image: np.ndarray, out: tuple[int, int], box: tuple[float, ...], interpolation: Interpolation) -> np.ndarray:
    """Antialiased resize of the float box (x0, y0, x1, y1) to `out` (width, height); pixels past the border repeat the border's."""
    height, width = image.shape[:2]
    # A grid pixel may be far wider than the picture; beyond twice its size nothing changes but the memory.
    box = tuple(min(max(v, -2.0 * side), 3.0 * side) for v, side in zip(box, (width, height) * 2, strict=True))
    margin = [max(0, int(np.ceil(v - 1e-6))) for v in (-box[0], -box[1], box[2] - width, box[3] - height)]
    # Only the part that the filter can reach is touched: a tight crop of a huge picture stays cheap.
    reach = [2 * np.ceil(max(1.0, (box[2 + i] - box[i]) / out[i])) + 1 for i in (0, 1)]
    x0, y0 = (max(0, int(box[i] - reach[i])) for i in (0, 1))
    x1, y1 = (min(side, int(np.ceil(box[2 + i] + reach[i]))) for i, side in ((0, width), (1, height)))
    part = image[y0:y1, x0:x1]
    if any(margin):
        part = np.pad(part, [(margin[1], margin[3]), (margin[0], margin[2])] + [(0, 0)] * (image.ndim - 2), mode="edge")
    shifted = [box[0] - x0 + margin[0], box[1] - y0 + margin[1], box[2] - x0 + margin[0], box[3] - y0 + margin[1]]
    limits = [part.shape[1], part.shape[0]] * 2
    shifted = [min(max(v, 0.0), limit) for v, limit in zip(shifted, limits, strict=True)]
    if part.dtype == np.uint8 and (part.ndim == 2 or part.shape[2] == 3):
        return np.asarray(Image.fromarray(part).resize(out, _PIL[interpolation], box=tuple(shifted)))
    # Everything else (bool masks, id maps, depth, more channels) goes through float32, one channel at a time.
    planes = part.reshape(*part.shape[:2], -1).astype(np.float32)
    resized = [
        np.asarray(Image.fromarray(np.ascontiguousarray(planes[..., c])).resize(out, _PIL[interpolation], box=tuple(shifted)))
        for c in range(planes.shape[2])
    ]
    return _cast(np.stack(resized, axis=-1), image.dtype).reshape(out[1], out[0], *image.shape[2:])


def _paste_turned(image: np.ndarray, canvas: np.ndarray, matrix: np.ndarray, interpolation: Interpolation) -> None:
    """Fills the canvas through a rotated or sheared map: antialiased shrink to the grid's scale first, then one bilinear warp."""
    height, width = image.shape[:2]
    out = (canvas.shape[1], canvas.shape[0])
    centres = np.stack(np.meshgrid(np.arange(out[0]) + 0.5, np.arange(out[1]) + 0.5), axis=-1)
    back = _apply(np.linalg.inv(matrix), centres)
    inside = ((back >= 0) & (back < [width, height])).all(-1)
    if not inside.any():
        return
    scale = min(1.0, float(np.linalg.svd(matrix[:2, :2], compute_uv=False).max()))
    reach = 2 * np.ceil(1 / scale) + 2
    x0, y0 = np.maximum(back[inside].min(0) - reach, 0).astype(int)
    x1, y1 = np.minimum(back[inside].max(0) + reach + 1, [width, height]).astype(int)
    image, matrix = image[y0:y1, x0:x1], matrix @ _scale_shift(1, 1, x0, y0)
    height, width = image.shape[:2]
    if scale < 1.0 and interpolation != "nearest":
        small = (max(1, round(width * scale)), max(1, round(height * scale)))
        source = _resize(image, small, (0, 0, width, height), "bilinear")
        matrix_small = matrix @ np.diag([width / small[0], height / small[1], 1.0])
    else:
        source, matrix_small = image, matrix
    half = np.array([[1, 0, 0.5], [0, 1, 0.5], [0, 0, 1.0]])  # OpenCV puts the centre of the first pixel at (0, 0)
    affine = (np.linalg.inv(half) @ matrix_small @ half)[:2]
    work = source if source.dtype == np.uint8 else source.astype(np.float32)
    warped = cv2.warpAffine(work, affine, out, flags=_CV2[interpolation], borderMode=cv2.BORDER_REPLICATE)
    canvas[inside] = _cast(warped.reshape(canvas.shape), canvas.dtype)[inside]


def _cast(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    if np.issubdtype(dtype, np.bool_):
        return values > 0.5
    if np.issubdtype(dtype, np.integer):
        limits = np.iinfo(dtype)
        return np.clip(np.rint(values), limits.min, limits.max).astype(dtype)
    return values.astype(dtype)
