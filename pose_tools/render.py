"""Draws results on pictures for people: boxes with label plates, hand skeletons, meshes, trajectories; sheets of pictures.

    canvas = Canvas(image)                        # a small picture is enlarged for display
    canvas.boxes([Box((10, 20, 80, 90), "left hand", 0.9)])
    canvas.skeleton(joints_2d)
    canvas.array()                                # RGB uint8

Everything is given in pixels of the original picture (the centre of the top-left pixel is (0.5, 0.5)). No display and no
plotting library is needed. RGB throughout.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from pose_tools import lettering
from pose_tools.contact_sheet import contact_sheet
from pose_tools.joints import BONES
from pose_tools.lettering import Colour
from pose_tools.raster import Raster, rasterise, vertex_normals
from pose_tools.types import Box, Trajectory

__all__ = ["Canvas", "Raster", "contact_sheet", "rasterise", "vertex_normals"]

SIDE_COLOURS: dict[str, Colour] = {"left": (64, 156, 255), "right": (255, 146, 51)}
FINGER_COLOURS: tuple[Colour, ...] = ((255, 82, 82), (255, 186, 48), (94, 214, 104), (64, 190, 255), (190, 120, 255))
"""Thumb, index, middle, ring, pinky."""
PALETTE: tuple[Colour, ...] = (
    (80, 220, 120),
    (255, 99, 132),
    (255, 205, 60),
    (90, 200, 250),
    (200, 130, 255),
    (255, 150, 90),
    (120, 230, 210),
)
SKIN: Colour = (222, 178, 150)
_DARK: Colour = (18, 18, 22)
_FINE = 4  # cv2 draws to 1/16 pixel


class Canvas:
    """A picture to draw on. Its shorter side is enlarged to `least` pixels where it is smaller (no larger than `most` on the longer)."""

    def __init__(self, image: np.ndarray, *, least: int = 512, most: int = 2048) -> None:
        if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
            raise ValueError(f"image is {image.dtype} {image.shape}: expected RGB uint8 (H, W, 3)")
        height, width = image.shape[:2]
        self.scale = max(1.0, min(least / min(height, width), most / max(height, width)))
        self.size = (max(1, round(width * self.scale)), max(1, round(height * self.scale)))
        enlarged = cv2.resize(image, self.size, interpolation=cv2.INTER_CUBIC) if self.scale > 1 else image
        self._pixels = np.array(enlarged)
        self._stretch = np.array([self.size[0] / width, self.size[1] / height])
        self._taken: list[lettering.Rectangle] = []
        # Lines and letters follow the picture's size, so a print and a thumbnail both read well.
        self.line = max(2.0, min(self.size) / 220)
        self.text = max(12, round(min(self.size) / 30))

    def array(self) -> np.ndarray:
        """The picture as drawn so far, RGB uint8 (H, W, 3)."""
        return self._pixels.copy()

    def boxes(
        self,
        boxes: Sequence[Box],
        *,
        colours: Sequence[Colour] | None = None,
        dashed: bool = False,
        show_score: bool = True,
    ) -> Canvas:
        """Frames with a plate each: label and score. A box that names a side has that side's colour unless `colours` are given."""
        chosen = [colour_of(box.label, i) for i, box in enumerate(boxes)] if colours is None else list(colours)
        if len(chosen) != len(boxes):
            raise ValueError(f"{len(chosen)} colours for {len(boxes)} boxes")
        plates = []
        for box, colour in zip(boxes, chosen, strict=True):
            corners = _finite(np.array(box.bbox_xyxy, float).reshape(2, 2), f"box {box.label or ''}".strip()) * self._stretch
            (x1, y1), (x2, y2) = np.clip(corners, 0, self.size)
            if x2 - x1 < 1e-6 or y2 - y1 < 1e-6:
                continue  # wholly outside
            # The frame lies inside the box's edge pixels, so it shows at the picture's border too.
            inset = self.line / 2
            ring = np.array([[x1 + inset, y1 + inset], [x2 - inset, y1 + inset], [x2 - inset, y2 - inset], [x1 + inset, y2 - inset]])
            for thickness, ink in ((2.2, _DARK), (1.0, colour)):
                self._path(np.vstack([ring, ring[:1]]), ink, self.line * thickness, dash=4.5 * self.line if dashed else 0.0)
            words = " ".join([box.label or ""] + ([f"{box.score:.2f}"] if box.score is not None and show_score else [])).strip()
            if words:
                plates.append(((x1, y1, x2, y2), words, colour))
        for frame, words, colour in plates:
            self._plate(frame, words, colour)
        return self

    def skeleton(
        self, joints_2d: np.ndarray, *, valid: np.ndarray | None = None, side: str | None = None, colour: Colour | None = None
    ) -> Canvas:
        """A hand of 21 joints (21, 2), FreiHAND order, each finger in its colour; `valid` (21,) bool leaves joints out.
        `side` colours the wrist. With `colour` thin lines of that colour alone: a second hand to compare with."""
        points = np.asarray(joints_2d, float)
        if points.shape != (21, 2):
            raise ValueError(f"joints_2d has shape {points.shape}: expected (21, 2) in FreiHAND order")
        shown = np.isfinite(points).all(1) & (np.ones(21, bool) if valid is None else np.asarray(valid, bool))
        points = np.where(shown[:, None], points, 0.0) * self._stretch
        extent = np.ptp(points[shown], axis=0).max() if shown.any() else 0.0
        width = float(np.clip(extent / 45, 1.5, 2.4 * self.line))
        bones = [(a, b, colour or FINGER_COLOURS[(b - 1) // 4]) for a, b in BONES if shown[a] and shown[b]]
        if colour:
            for thickness, ink in ((width * 0.5 + 2, _DARK), (width * 0.5, colour)):
                for a, b, _ in bones:
                    self._path(points[[a, b]], ink, thickness)
            return self
        for a, b, _ in bones:
            self._path(points[[a, b]], _DARK, width + 2)
        for a, b, colour in bones:
            self._path(points[[a, b]], colour, width)
        for k in np.flatnonzero(shown):
            colour = FINGER_COLOURS[(k - 1) // 4] if k else SIDE_COLOURS.get(side or "", (255, 255, 255))
            radius = width * (1.5 if k == 0 else 1.05)
            self._disc(points[k], radius + 1.2, _DARK)
            self._disc(points[k], radius, colour)
        return self

    def points(self, points: np.ndarray, *, colour: Colour, valid: np.ndarray | None = None) -> Canvas:
        """A dot at each of the points (n, 2); `valid` (n,) bool leaves some out."""
        points = np.asarray(points, float)
        shown = np.isfinite(points).all(1) & (True if valid is None else np.asarray(valid, bool))
        for point in points[shown] * self._stretch:
            self._disc(point, 1.2 * self.line + 1.2, _DARK)
            self._disc(point, 1.2 * self.line, colour)
        return self

    def mesh(
        self,
        vertices: np.ndarray,
        faces: np.ndarray,
        intrinsics: np.ndarray,
        *,
        colour: Colour = SKIN,
        opacity: float = 0.85,
        backend: str = "auto",
    ) -> Canvas:
        """A shaded mesh laid over the picture: `vertices` (V, 3) camera frame, metres; `intrinsics` (3, 3) of the original picture."""
        vertices = np.asarray(vertices, float)
        camera = np.diag([*self._stretch, 1.0]) @ np.asarray(intrinsics, float)
        left, top, right, bottom = self._window(vertices, camera)
        if right <= left or bottom <= top:
            return self
        # Drawn at twice the size and averaged, for smooth edges; only the part of the picture it covers.
        size = (right - left, bottom - top)
        camera = np.diag([2.0, 2.0, 1.0]) @ np.array([[1, 0, -left], [0, 1, -top], [0, 0, 1]]) @ camera
        colours = np.tile(np.array(colour, float) / 255, (len(vertices), 1))
        drawn = rasterise(vertices, faces, camera, (2 * size[0], 2 * size[1]), colours=colours, light=(-0.3, -0.5, -0.8), backend=backend)
        assert drawn.colour is not None
        layer = cv2.resize(np.dstack([drawn.colour, (drawn.face_ids >= 0).astype(np.float32)]), size, interpolation=cv2.INTER_AREA)
        # Colours are averaged together with the empty pixels round them: divide by the cover to undo it.
        cover = layer[:, :, 3:]
        shade = layer[:, :, :3] / np.maximum(cover, 1e-6) * 255
        under = self._pixels[top:bottom, left:right]
        under[:] = np.clip(under + (shade - under) * (cover * opacity), 0, 255).round().astype(np.uint8)
        return self

    def _window(self, vertices: np.ndarray, camera: np.ndarray) -> tuple[int, int, int, int]:
        """The part of the display (x1, y1, x2, y2) the vertices may cover; all of it when some lie near or behind the camera."""
        if not len(vertices) or vertices[:, 2].max() <= 0.01:
            return 0, 0, 0, 0
        if vertices[:, 2].min() <= 0.01:
            return 0, 0, *self.size
        image = vertices @ camera.T
        image = np.clip(image[:, :2] / image[:, 2:], -1, np.array(self.size) + 1)
        low, high = np.floor(image.min(0)).astype(int) - 1, np.ceil(image.max(0)).astype(int) + 1
        return max(0, low[0]), max(0, low[1]), min(self.size[0], high[0]), min(self.size[1], high[1])

    def trajectory(
        self,
        path: Trajectory | np.ndarray,
        *,
        spread: np.ndarray | None = None,
        samples: np.ndarray | None = None,
        colour: Colour | None = None,
        label: str | None = None,
        dashed: bool = False,
    ) -> Canvas:
        """A path of one hand, growing from its start (ring) to its end (arrow).

        Args:
            path: a Trajectory, or points (T, 2).
            spread: (T,) standard deviation in pixels, drawn as a band of one deviation. samples: (S, T, 2) other futures, drawn thin.
        """
        if isinstance(path, Trajectory):
            points, valid = np.asarray(path.points, float), np.asarray(path.valid, bool)
            colour, label = colour or SIDE_COLOURS[path.side], label
        else:
            points, valid = np.asarray(path, float), None
        if points.ndim != 2 or points.shape[1] != 2:
            raise ValueError(f"a trajectory has points of shape {points.shape}: expected (T, 2)")
        colour = colour or PALETTE[0]
        valid = np.isfinite(points).all(1) & (True if valid is None else valid)
        points = np.where(valid[:, None], points, 0.0) * self._stretch
        if samples is not None:
            for sample in np.asarray(samples, float):
                self._layer(lambda s=sample * self._stretch: self._path(s[valid], colour, max(1.0, self.line * 0.6)), 0.35)
        if spread is not None:
            radius = np.asarray(spread, float) * self._stretch.mean()
            self._layer(lambda: self._band(points[valid], radius[valid], colour), 0.32)
        kept, dash = points[valid], 4.5 * self.line if dashed else 0.0
        self._path(kept, _DARK, self.line * 2.2, dash)
        self._path(kept, colour, self.line * 1.2, dash)
        for i, point in enumerate(kept[1:-1], start=1):
            self._disc(point, self.line * (1.1 + 0.8 * i / len(kept)), _DARK)
            self._disc(point, self.line * (1.1 + 0.8 * i / len(kept)) - 1, _mix(colour, (255, 255, 255), 0.35))
        if len(kept):
            self._disc(kept[0], self.line * 2.2, _DARK)
            self._disc(kept[0], self.line * 1.6, (255, 255, 255))
        if len(kept) > 1:
            self._arrow(kept, colour)
        if label and len(kept):
            x, y = kept[-1]
            self._plate((x - 1, y - 3 * self.line, x + 1, y + 3 * self.line), label, colour)
        return self

    def trails(self, paths: np.ndarray, *, colour: Colour = (235, 235, 240)) -> Canvas:
        """Where things were: `paths` (n, T, 2), thin lines that grow clear towards their end; a point of NaN is left out."""
        for path in np.asarray(paths, float):
            known = path[np.isfinite(path).all(1)] * self._stretch
            for i, piece in enumerate(zip(known[:-1], known[1:], strict=True), start=1):
                width, points = max(1.0, self.line * 0.8), np.array(piece)
                self._layer(lambda p=points, w=width: self._path(p, colour, w), 0.25 + 0.65 * i / len(known))
        return self

    def trail(self, points: np.ndarray, *, colour: Colour, seen: np.ndarray | None = None) -> Canvas:
        """Where one thing was: `points` (T, 2), faint where long ago and clear at the end; NaN interrupts the path. Moments that were
        not `seen` (T,) bool but filled in are drawn without a dot."""
        points = np.asarray(points, float) * self._stretch
        shown = np.isfinite(points).all(1)
        seen = shown if seen is None else shown & np.asarray(seen, bool)
        for i in range(len(points)):
            share = 0.2 + 0.8 * (i + 1) / len(points)
            if i and shown[i - 1] and shown[i]:
                self._layer(lambda i=i: self._path(points[i - 1 : i + 1], colour, self.line * 1.2), share)
            if seen[i]:
                self._layer(lambda i=i: self._disc(points[i], self.line * 1.3, colour), share)
        return self

    def caption(self, words: str, *, colour: Colour = _DARK) -> Canvas:
        """A plate with `words` at the top left, below earlier ones."""
        self._plate((0, 0, self.size[0], self.size[1]), words, colour)
        return self

    def _plate(self, frame: lettering.Rectangle, words: str, colour: Colour) -> None:
        words = lettering.shorten(words, self.text, self.size[0] - self.text)
        plate = (
            min(self.size[0], math.ceil(lettering.width_of(words, self.text) + 0.8 * self.text)),
            min(self.size[1], round(1.45 * self.text)),
        )
        place = lettering.plate_place(frame, plate, self.size, self._taken)
        self._taken.append(place)
        lettering.draw_plate(self._pixels, place, words, colour, self.text)

    def _path(self, points: np.ndarray, colour: Colour, width: float, dash: float = 0.0) -> None:
        if len(points) < 2:
            return
        if dash:
            for a, b in zip(points[:-1], points[1:], strict=True):
                count = max(1, round(float(np.linalg.norm(b - a)) / dash)) | 1  # odd: a dash at both ends
                cuts = [a + (b - a) * i / count for i in range(count + 1)]
                for i in range(0, count, 2):
                    self._path(np.array([cuts[i], cuts[i + 1]]), colour, width)
            return
        cv2.polylines(self._pixels, [_fine(points)], False, colour, max(1, round(width)), cv2.LINE_AA, _FINE)

    def _disc(self, point: np.ndarray, radius: float, colour: Colour) -> None:
        x, y = _fine(point[None])[0]
        cv2.circle(self._pixels, (int(x), int(y)), max(1, round(radius * 2**_FINE)), colour, -1, cv2.LINE_AA, _FINE)

    def _band(self, points: np.ndarray, radius: np.ndarray, colour: Colour) -> None:
        for point, r in zip(points, radius, strict=True):
            self._disc(point, max(r, 0.5), colour)
        for a, b, ra, rb in zip(points[:-1], points[1:], radius[:-1], radius[1:], strict=True):
            length = float(np.linalg.norm(b - a))
            if length > 1e-6:
                side = np.array([a[1] - b[1], b[0] - a[0]]) / length
                cv2.fillConvexPoly(
                    self._pixels, _fine(np.array([a + side * ra, b + side * rb, b - side * rb, a - side * ra])), colour, cv2.LINE_AA, _FINE
                )

    def _arrow(self, points: np.ndarray, colour: Colour) -> None:
        tip = points[-1]
        behind = points[:-1][np.linalg.norm(points[:-1] - tip, axis=1) > 1e-6]
        if len(behind) == 0:
            return
        ahead = (tip - behind[-1]) / np.linalg.norm(tip - behind[-1])
        side = np.array([-ahead[1], ahead[0]])
        for size, ink in ((5.2, _DARK), (4.0, colour)):
            wing = self.line * size
            head = np.array(
                [tip + ahead * wing * 0.9, tip - ahead * wing * 0.6 + side * wing * 0.75, tip - ahead * wing * 0.6 - side * wing * 0.75]
            )
            cv2.fillConvexPoly(self._pixels, _fine(head), ink, cv2.LINE_AA, _FINE)

    def _layer(self, draw, opacity: float) -> None:
        """What `draw` adds, at `opacity`."""
        before = self._pixels.copy()
        draw()
        cv2.addWeighted(self._pixels, opacity, before, 1 - opacity, 0, dst=self._pixels)


def colour_of(label: str | None, number: int = 0) -> Colour:
    """The colour of a box: its side's where the label names one hand, else one of the palette by `number`."""
    words = (label or "").lower().split()
    named = [side for side in SIDE_COLOURS if side in words]
    return SIDE_COLOURS[named[0]] if len(named) == 1 else PALETTE[number % len(PALETTE)]


def _fine(points: np.ndarray) -> np.ndarray:
    # cv2 puts a pixel's centre at whole numbers; far-away points are kept within what it can hold.
    return np.round(np.clip(points - 0.5, -(2**14), 2**14) * 2**_FINE).astype(np.int32)


def _finite(points: np.ndarray, name: str) -> np.ndarray:
    if not np.isfinite(points).all():
        raise ValueError(f"{name}: {points.tolist()} is not finite")
    return points


def _mix(a: Colour, b: Colour, share: float) -> Colour:
    return tuple(round(x * (1 - share) + y * share) for x, y in zip(a, b, strict=True))  # type: ignore[return-value]
