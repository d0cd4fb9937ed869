"""Scene → picture and id mask: every part is rasterised once on a patch of its own, the patches are laid together by depth,
and a camera looks at the result."""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np

from pose_tools.raster import rasterise

SUPERSAMPLE = 2
MARGIN = 0.5
"""How far beyond the border, in picture widths, a part is still drawn to know how much of it the border hides."""


@dataclass(frozen=True)
class Part:
    """The closed surface of one thing: `vertices` (V, 3) metres and `normals` (V, 3), camera frame, `faces` (F, 3) anticlockwise
    from outside, `colours` (V, 3) 0..1, and the `id` it has in the mask."""

    id: int
    vertices: np.ndarray
    normals: np.ndarray
    faces: np.ndarray
    colours: np.ndarray
    whole: bool = True
    """Whether how much of it the border hides is of interest."""


@dataclass(frozen=True)
class Layer:
    """A part as drawn alone: where its patch lies (`x`, `y`, supersampled pixels) and the pixels it covers with depth and colour."""

    part: Part
    x: int
    y: int
    mask: np.ndarray
    depth: np.ndarray
    rgb: np.ndarray

    @property
    def area(self) -> int:
        """How many supersampled pixels the part would cover if nothing hid it."""
        return int(self.mask.sum())

    @property
    def box(self) -> tuple[float, float, float, float]:
        """The patch (x1, y1, x2, y2) in picture pixels; parts of it may lie beyond the border."""
        h, w = self.mask.shape
        return self.x / SUPERSAMPLE, self.y / SUPERSAMPLE, (self.x + w) / SUPERSAMPLE, (self.y + h) / SUPERSAMPLE


@dataclass(frozen=True)
class Light:
    """`direction` (3,) towards the light, camera frame; the `ambient` share of light that comes from everywhere."""

    direction: np.ndarray
    ambient: float


def draw_layer(part: Part, focal: float, size: tuple[int, int], light: Light) -> Layer | None:
    """The part alone, at SUPERSAMPLE times `size` (width, height) with a focal length in picture pixels.

    None when it lies off the picture."""
    full = np.array(size) * SUPERSAMPLE
    points = part.vertices[:, :2] / np.maximum(part.vertices[:, 2:], 0.05) * (focal * SUPERSAMPLE) + full / 2
    margin = (MARGIN * full).astype(int) if part.whole else 0
    low, high = -margin, full + margin
    x1, y1 = (int(v) for v in np.clip(np.floor(points.min(0)), low, high))
    x2, y2 = (int(v) for v in np.clip(np.ceil(points.max(0)), low, high))
    if x2 - x1 < 2 or y2 - y1 < 2:
        return None
    intrinsics = np.array([[focal * SUPERSAMPLE, 0, full[0] / 2 - x1], [0, focal * SUPERSAMPLE, full[1] / 2 - y1], [0, 0, 1.0]])
    drawn = rasterise(
        part.vertices, part.faces, intrinsics, (x2 - x1, y2 - y1),
        colours=part.colours, normals=part.normals, light=light.direction, ambient=light.ambient, cull=True, near=0.05,
    )  # fmt: skip
    mask = drawn.face_ids >= 0
    return Layer(part, x1, y1, mask, drawn.depth, np.asarray(drawn.colour)) if mask.any() else None


def lay_together(layers: list[Layer], size: tuple[int, int], behind: np.ndarray | None = None) -> np.ndarray:
    """(height, width) int16, supersampled: the number of the nearest layer, −1 where there is none.

    `behind`: supersampled depth (height, width) float32 of what is already drawn there, which the layers must be nearer than."""
    owner = np.full((size[1] * SUPERSAMPLE, size[0] * SUPERSAMPLE), -1, dtype=np.int16)
    depth = np.full(owner.shape, np.inf, dtype=np.float32) if behind is None else behind.copy()
    for number, layer in enumerate(layers):
        (rows, cols), (from_rows, from_cols) = _overlap(layer, owner.shape)
        there, mine = depth[rows, cols], layer.depth[from_rows, from_cols]
        nearer = mine < there
        np.copyto(there, mine, where=nearer)
        owner[rows, cols][nearer] = number
    return owner


def seen_shares(layers: list[Layer], owner: np.ndarray) -> np.ndarray:
    """(layers,) share of each layer's pixels that is seen: occlusion and the border both count."""
    counts = np.bincount(owner[owner >= 0].ravel(), minlength=len(layers))
    return counts / np.array([max(layer.area, 1) for layer in layers])


def depth_of(layers: list[Layer], owner: np.ndarray) -> np.ndarray:
    """(height, width) float32, supersampled: the depth of what is nearest, inf where there is nothing."""
    depth = np.full(owner.shape, np.inf, dtype=np.float32)
    for number, layer in enumerate(layers):
        (rows, cols), (from_rows, from_cols) = _overlap(layer, owner.shape)
        np.copyto(depth[rows, cols], layer.depth[from_rows, from_cols], where=owner[rows, cols] == number)
    return depth


def _overlap(layer: Layer, shape: tuple[int, ...]) -> tuple[tuple[slice, slice], tuple[slice, slice]]:
    h, w = layer.mask.shape
    x1, y1, x2, y2 = max(layer.x, 0), max(layer.y, 0), min(layer.x + w, shape[1]), min(layer.y + h, shape[0])
    x2, y2 = max(x1, x2), max(y1, y2)
    return (slice(y1, y2), slice(x1, x2)), (slice(y1 - layer.y, y2 - layer.y), slice(x1 - layer.x, x2 - layer.x))


def id_mask(layers: list[Layer], owner: np.ndarray) -> np.ndarray:
    """(height, width) uint8 ids of the picture's pixels, taken at one sample of each."""
    ids = np.array([layer.part.id for layer in layers] + [0], dtype=np.uint8)
    # owner −1 picks the last entry: the background
    return ids[owner[1::SUPERSAMPLE, 1::SUPERSAMPLE]]


def paint(layers: list[Layer], owner: np.ndarray, behind: np.ndarray) -> np.ndarray:
    """The picture (height, width, 3) float32 RGB 0..1: the nearest layers over `behind` (height, width, 3)."""
    canvas = paint_over(layers, owner, cv2.resize(behind, owner.shape[::-1], interpolation=cv2.INTER_LINEAR))
    return cv2.resize(canvas, behind.shape[1::-1], interpolation=cv2.INTER_AREA)


def paint_over(layers: list[Layer], owner: np.ndarray, canvas: np.ndarray) -> np.ndarray:
    """`canvas` (height, width, 3), supersampled, with the nearest layers painted on it; changed in place."""
    for number, layer in enumerate(layers):
        (rows, cols), (from_rows, from_cols) = _overlap(layer, owner.shape)
        mine = owner[rows, cols] == number
        np.copyto(canvas[rows, cols], layer.rgb[from_rows, from_cols], where=mine[..., None])
    return canvas


def cast_shadows(
    behind: np.ndarray, parts: list[Part], focal: float, up: np.ndarray, height: float, light: Light, strength: float
) -> np.ndarray:
    """`behind` darkened where parts keep the light from the plane `point · up = −height`: soft hulls of their shadows."""
    cover = shadow_cover((behind.shape[1], behind.shape[0]), parts, focal, up, height, light)
    cover = cv2.resize(cover, behind.shape[1::-1], interpolation=cv2.INTER_LINEAR)
    return behind * (1 - strength * cover)[..., None]


def shadow_cover(size: tuple[int, int], parts: list[Part], focal: float, up: np.ndarray, height: float, light: Light) -> np.ndarray:
    """Where the parts' shadows fall on the plane, 0..1 float32, at half of `size` (width, height)."""
    small = np.array(size) // 2
    cover = np.zeros(tuple(small[::-1]), dtype=np.float32)
    fall = -light.direction / max(float(light.direction @ up), 0.35)
    for part in parts:
        above = part.vertices @ up + height
        ground = part.vertices + np.maximum(above, 0)[:, None] * fall
        ground = ground[ground[:, 2] > 0.05]
        if len(ground) < 3:
            continue
        points = ground[:, :2] / ground[:, 2:] * (focal / 2) + small / 2
        hull = cv2.convexHull(np.clip(points, -3 * small, 4 * small).astype(np.float32))
        cv2.fillConvexPoly(cover, hull.astype(np.int32), 1.0)
    return cv2.GaussianBlur(cover, (0, 0), 2.2)


@dataclass(frozen=True)
class Lens:
    """What a camera makes of a picture: blur (a kernel of motion, or the sigma of a soft lens), gain with tint (3,), gamma, vignette,
    noise."""

    kernel: np.ndarray | None
    sigma: float
    gain: np.ndarray
    gamma: float
    vignette: float
    noise: float

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Lens:
        """A lens; a seventh of them was moved during the exposure."""
        kernel, sigma = None, 0.0
        if rng.random() < 0.15:
            length, angle = int(rng.integers(3, 7)), rng.uniform(0, np.pi)
            kernel = np.zeros((length, length), dtype=np.float32)
            middle, reach = (length - 1) / 2, np.array([np.cos(angle), np.sin(angle)]) * length / 2
            start, end = ([int(round(v)) for v in middle + s * reach] for s in (-1, 1))
            cv2.line(kernel, start, end, (1.0,))
            kernel = kernel / kernel.sum()
        elif rng.random() < 0.6:
            sigma = rng.uniform(0.3, 0.95)
        gain = rng.uniform(0.82, 1.15) * (1 + rng.uniform(-0.05, 0.05, 3))
        gamma = rng.uniform(0.85, 1.18)
        vignette = rng.uniform(0.1, 0.3) if rng.random() < 0.3 else 0.0
        return cls(kernel, sigma, gain, gamma, vignette, rng.uniform(0.002, 0.028) if rng.random() < 0.8 else 0.0)

    def see(self, picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The picture (H, W, 3) float 0..1 as uint8; only the noise is drawn."""
        if self.kernel is not None:
            picture = cv2.filter2D(picture, -1, self.kernel, borderType=cv2.BORDER_REPLICATE)
        elif self.sigma:
            picture = cv2.GaussianBlur(picture, (0, 0), self.sigma)
        picture = picture * self.gain.astype(np.float32)
        np.power(np.clip(picture, 0, 1, out=picture), np.float32(self.gamma), out=picture)
        if self.vignette:
            down, across = (np.linspace(-1, 1, n, dtype=np.float32) ** 2 for n in picture.shape[:2])
            picture = picture * (1 - self.vignette * (down[:, None] + across[None, :]) / 2)[..., None]
        picture = picture + self.noise * rng.standard_normal(picture.shape, dtype=np.float32)
        np.clip(picture, 0, 1, out=picture)
        picture *= 255
        picture += 0.5
        return picture.astype(np.uint8)


def look(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """A picture (H, W, 3) float 0..1 through a lens of its own; uint8."""
    return Lens.draw(rng).see(picture, rng)


def renumbered(layer: Layer, id: int) -> Layer:
    """The same layer under another id."""
    return replace(layer, part=replace(layer.part, id=id))
