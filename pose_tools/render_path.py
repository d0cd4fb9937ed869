"""Draws where hands will go: on the last observed frame, and as a clip in which the paths grow out of it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from pose_tools.render import SIDE_COLOURS, Canvas
from pose_tools.types import SIDES

CLIP_FPS = 20
WHITE = (255, 255, 255)


@dataclass(frozen=True, eq=False)
class FramePaths:
    """Future paths of both hands in pixels of the last observed frame, hands left, right.

    `points` (2, T, 2); `valid` (2, T) bool or None for all; `now` (2, 2): where the hands are in that frame, NaN if unknown;
    `spread` (2, T): standard deviation, pixels; `samples` (S, 2, T, 2): other futures. `seconds`: from that frame to the last point.
    """

    points: np.ndarray
    valid: np.ndarray | None = None
    now: np.ndarray | None = None
    spread: np.ndarray | None = None
    samples: np.ndarray | None = None
    seconds: float = 1.0

    def scaled(self, factor: float) -> FramePaths:
        """The same paths on a frame `factor` times as large."""
        now, spread, samples = (None if value is None else value * factor for value in (self.now, self.spread, self.samples))
        return replace(self, points=self.points * factor, now=now, spread=spread, samples=samples)

    def until(self, share: float) -> FramePaths:
        """The first `share` (0–1) of the time, the last point between two steps where need be."""
        steps = self.points.shape[1]
        at = share * steps  # step k is reached at (k + 1) / steps
        whole, rest = int(at), at - int(at)
        if whole >= steps:
            return self
        first = self.points[:, 0] if self.now is None else np.where(np.isfinite(self.now), self.now, self.points[:, 0])

        def cut(values: np.ndarray, before: np.ndarray) -> np.ndarray:
            """`values` (2, T, …) up to the present; `before` (2, …) is their value at time 0."""
            start = before if whole == 0 else values[:, whole - 1]
            tip = start + (values[:, whole] - start) * rest
            return np.concatenate([values[:, :whole], tip[:, None]], axis=1)

        return replace(
            self,
            points=cut(self.points, first),
            valid=None if self.valid is None else self.valid[:, : whole + 1],
            spread=None if self.spread is None else cut(self.spread, np.zeros(2)),
            samples=None if self.samples is None else np.stack([cut(sample, first) for sample in self.samples]),
        )


def draw_paths(canvas: Canvas, paths: FramePaths, *, truth: FramePaths | None = None, labels: bool = True) -> Canvas:
    """Both hands' paths in the colours of the hands, from a ring (now) to an arrow; those of `truth` dashed in white below them."""
    for one, dashed in ((truth, True), (paths, False)):
        if one is None:
            continue
        for hand, side in enumerate(SIDES):
            points, valid = _from_now(one, hand)
            if not valid.any():
                continue
            canvas.trajectory(
                np.where(valid[:, None], points, np.nan),
                spread=None if one.spread is None else np.concatenate([[0.0], one.spread[hand]]),
                samples=None if one.samples is None else np.stack([_from_now(one, hand, sample)[0] for sample in one.samples]),
                colour=WHITE if dashed else SIDE_COLOURS[side],
                label=f"{side} hand" if labels and not dashed else None,
                dashed=dashed,
            )
    return canvas


def path_clip(frames: Sequence[np.ndarray], paths: FramePaths, *, rate: float, hold: float = 1.2, most: int = 960) -> list[np.ndarray]:
    """The observed frames at their `rate` (Hz), then the last of them with the paths growing in their own time, held for `hold` seconds.

    RGB uint8 frames for `CLIP_FPS`, longer side between 512 and `most` pixels or so; equal neighbours are the same array.
    """
    factor = min(1.0, most / max(frames[-1].shape[:2]))
    small = [_shrink(frame, factor) for frame in frames]
    paths = paths.scaled(factor)
    result: list[np.ndarray] = []
    for frame in small[:-1]:
        result += [Canvas(frame).array()] * max(1, round(CLIP_FPS / rate))
    steps = max(1, round(CLIP_FPS * paths.seconds))
    for step in range(steps + 1):
        result.append(draw_paths(Canvas(small[-1]), paths.until(step / steps), labels=step == steps).array())
    return result + [result[-1]] * round(CLIP_FPS * hold)


def _from_now(paths: FramePaths, hand: int, sample: np.ndarray | None = None) -> tuple[np.ndarray, np.ndarray]:
    """One hand's points (T + 1, 2) with the present place before them, and which of them are known (T + 1,)."""
    points = np.asarray(paths.points if sample is None else sample, float)[hand]
    valid = np.ones(len(points), bool) if paths.valid is None else np.asarray(paths.valid, bool)[hand]
    now = np.full(2, np.nan) if paths.now is None else np.asarray(paths.now, float)[hand]
    valid = valid & np.isfinite(points).all(1)
    return np.vstack([now, points]), np.concatenate([[bool(np.isfinite(now).all()) and bool(valid.any())], valid])


def _shrink(frame: np.ndarray, factor: float) -> np.ndarray:
    if factor == 1.0:
        return frame
    height, width = frame.shape[:2]
    return cv2.resize(frame, (max(1, round(width * factor)), max(1, round(height * factor))), interpolation=cv2.INTER_AREA)
