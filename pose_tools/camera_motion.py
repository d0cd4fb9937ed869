"""How the camera turned between the frames of a clip: homographies, from what stands still.

A homography is exact for a camera that turns on the spot and for a flat scene; for a camera that moves it is that of the plane most
features lie on. Hands are left out. What cannot be trusted (too few features, a picture folded over) is said, not guessed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

FEATURES, CONTRAST = 1500, 0.005
"""At most so many, and how little they may stand out (SIFT's own 0.04 leaves plain tables and walls without any)."""
RATIO = 0.8
"""Lowe's: a match counts where the next best is this much worse."""
TOLERANCE = 1.0 / 250
"""How far a match may lie off, in longer sides of the picture (1.8 px of 456)."""
LEAST_MATCHES, LEAST_SHARE = 12, 0.25
"""Matches that must agree, and their share of all."""
LEAST_SPREAD = 0.04
"""Of the matches that agree, along their narrower direction, in longer sides: those of one small thing say nothing about the rest."""
LARGEST_CHANGE = 4.0
"""By which the picture's area may grow or shrink."""
MIDDLE = 0.5
"""OpenCV counts from the middle of the first pixel, boxes from its corner."""
HAND_MARGIN = 0.25
"""By which a hand's box is grown on each side before its features are left out."""


@dataclass(frozen=True, eq=False)
class Registration:
    """Of T frames to the first: `homographies` (T, 3, 3) float64 take pixels of a frame to pixels of the first, NaN where there is none;
    `matches` (T,) how many features agreed."""

    homographies: np.ndarray
    matches: np.ndarray

    @property
    def found(self) -> np.ndarray:
        """(T,) bool."""
        return np.isfinite(self.homographies[:, 0, 0])


def register(frames: Sequence[np.ndarray], hands: Sequence[np.ndarray] | None = None) -> Registration:
    """The homography of every frame to the first.

    Directly where the two share enough, otherwise through the last frame that was found.

    Args:
        frames: RGB uint8 (H, W, 3) of one size, in order.
        hands: boxes (N, 4) of each frame, pixels; what lies in them moves by itself and is left out. NaN rows are passed over.

    Raises ValueError for frames of several sizes or another number of boxes.
    """
    if len({frame.shape for frame in frames}) > 1:
        raise ValueError(f"register: frames have the sizes {sorted({frame.shape for frame in frames})}, expected one")
    if hands is not None and len(hands) != len(frames):
        raise ValueError(f"register: boxes of {len(hands)} frames for {len(frames)} frames")
    homographies, matches = np.full((len(frames), 3, 3), np.nan), np.zeros(len(frames), int)
    if not len(frames):
        return Registration(homographies, matches)
    sift = cv2.SIFT.create(nfeatures=FEATURES, contrastThreshold=CONTRAST)
    seen = [_features(sift, frame, None if hands is None else hands[number]) for number, frame in enumerate(frames)]
    size = (frames[0].shape[1], frames[0].shape[0])
    homographies[0], matches[0] = np.eye(3), len(seen[0][0])
    last = 0
    for number in range(1, len(frames)):
        for anchor in dict.fromkeys((0, last)):
            between, agreed = _homography(seen[number], seen[anchor], size)
            if between is not None:
                whole = homographies[anchor] @ between
                homographies[number], matches[number], last = whole / whole[2, 2], agreed, number
                break
    return Registration(homographies, matches)


def move(points: np.ndarray, homography: np.ndarray) -> np.ndarray:
    """`points` (…, 2) pixels through a homography (3, 3); NaN for what lies behind the camera then."""
    moved = np.concatenate([points, np.ones_like(points[..., :1])], axis=-1) @ homography.T
    depth = moved[..., 2:]
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(depth > 1e-9, moved[..., :2] / depth, np.nan)


Features = tuple[np.ndarray, np.ndarray]
"""Places (N, 2) and descriptors (N, 128)."""


def _features(sift: cv2.SIFT, frame: np.ndarray, boxes: np.ndarray | None) -> Features:
    mask = np.full(frame.shape[:2], 255, np.uint8)
    for box in () if boxes is None else np.asarray(boxes, float).reshape(-1, 4):
        if np.isfinite(box).all():
            margin = HAND_MARGIN * (box[2:] - box[:2])
            x1, y1 = np.maximum(np.floor(box[:2] - margin), 0).astype(int)
            x2, y2 = np.maximum(np.ceil(box[2:] + margin), 0).astype(int)
            mask[y1:y2, x1:x2] = 0
    places, descriptors = sift.detectAndCompute(cv2.cvtColor(frame, cv2.COLOR_RGB2GRAY), mask)
    if descriptors is None:
        return np.zeros((0, 2), np.float32), np.zeros((0, 128), np.float32)
    return np.array([place.pt for place in places], np.float32) + MIDDLE, descriptors


def _homography(source: Features, target: Features, size: tuple[int, int]) -> tuple[np.ndarray | None, int]:
    """From `source` to `target`, None where it cannot be trusted, and how many matches agree."""
    if min(len(source[0]), len(target[0])) < LEAST_MATCHES:
        return None, 0
    pairs = cv2.BFMatcher(cv2.NORM_L2).knnMatch(source[1], target[1], k=2)
    good = [best for best, second in (pair for pair in pairs if len(pair) == 2) if best.distance < RATIO * second.distance]
    if len(good) < LEAST_MATCHES:
        return None, 0
    a, b = source[0][[m.queryIdx for m in good]], target[0][[m.trainIdx for m in good]]
    found, agree = cv2.findHomography(a, b, cv2.USAC_MAGSAC, TOLERANCE * max(size), maxIters=3000, confidence=0.9999)
    if found is None:
        return None, 0
    inside = agree.reshape(-1).astype(bool)
    if inside.sum() < max(LEAST_MATCHES, LEAST_SHARE * len(good)) or not _spread(a[inside], size) or not _sane(found, size):
        return None, int(inside.sum())
    return found, int(inside.sum())


def _spread(points: np.ndarray, size: tuple[int, int]) -> bool:
    return float(np.sqrt(max(np.linalg.eigvalsh(np.cov(points.T))[0], 0.0))) >= LEAST_SPREAD * max(size)


def _sane(homography: np.ndarray, size: tuple[int, int]) -> bool:
    """Whether the picture stays a convex quadrilateral of the same handedness, and of about its area."""
    width, height = size
    corners = move(np.array([[0, 0], [width, 0], [width, height], [0, height]], float), homography)
    if not np.isfinite(corners).all():
        return False
    sides = np.roll(corners, -1, axis=0) - corners
    turns = sides[:, 0] * np.roll(sides[:, 1], -1) - sides[:, 1] * np.roll(sides[:, 0], -1)
    area = 0.5 * float(np.sum(corners[:, 0] * np.roll(corners[:, 1], -1) - np.roll(corners[:, 0], -1) * corners[:, 1]))
    return bool((turns > 0).all()) and 1 / LARGEST_CHANGE < area / (width * height) < LARGEST_CHANGE
