"""Where the hands are: one record, one function, two backends.

`small` is our own detector, trained on the synthetic world (`small_detector.py`). `mediapipe` is MediaPipe's palm and
landmark models, for photographs (`mediapipe_hands.py`); they are fetched on request and never needed elsewhere.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from pose_tools.types import Side

Backend = Literal["auto", "small", "mediapipe"]
TOKEN_WIDTH = 11


@dataclass(frozen=True)
class HandDetection:
    """One hand in a picture.

    `bbox_xyxy`: tight box of the hand without forearm, float pixels of the original picture, half-open. `side` is the
    person's own. `score` in 0..1. `keypoints_2d`: (21, 2) pixels, FreiHAND order, or None. `object_bbox`: box of the object this hand
    holds or touches, None if there is none or the backend does not say; `object_score` in 0..1.
    """

    bbox_xyxy: tuple[float, float, float, float]
    side: Side
    score: float
    keypoints_2d: np.ndarray | None = None
    object_bbox: tuple[float, float, float, float] | None = None
    object_score: float | None = None


def sort_detections(detections: Sequence[HandDetection]) -> list[HandDetection]:
    """Left before right, then by falling score."""
    return sorted(detections, key=lambda hand: (hand.side != "left", -hand.score))


def best_of_side(detections: Sequence[HandDetection], side: Side) -> HandDetection | None:
    """The detection of that side with the highest score, or None."""
    return max((hand for hand in detections if hand.side == side), key=lambda hand: hand.score, default=None)


def detection_tokens(detections: Sequence[HandDetection]) -> np.ndarray:
    """(2, 11) float32, the best left hand, then the best right one.

    Columns: x1, y1, x2, y2 (pixels of the original picture), side (-1 left, +1 right), score, then the held object's x1, y1,
    x2, y2 and its score. A missing hand is a row of NaN; a hand without object has NaN in the object's four and 0 as its score.
    """
    tokens = np.full((2, TOKEN_WIDTH), np.nan, np.float32)
    for row, side in enumerate(("left", "right")):
        hand = best_of_side(detections, side)
        if hand is not None:
            tokens[row, :6] = (*hand.bbox_xyxy, 2 * row - 1, hand.score)
            tokens[row, 10] = 0.0
            if hand.object_bbox is not None:
                tokens[row, 6:] = (*hand.object_bbox, 1.0 if hand.object_score is None else hand.object_score)
    return tokens


def detect_hands(image: np.ndarray, *, backend: Backend = "auto", threshold: float = 0.5, max_hands: int = 8) -> list[HandDetection]:
    """The hands in a picture.

    Args:
        image: RGB uint8 (H, W, 3).
        backend: "small", "mediapipe", or "auto".
        threshold: least score of a hand, 0..1.
        max_hands: the best so many are kept.

    Returns:
        Detections, left before right, then by falling score; boxes in pixels of `image`.

    Raises:
        BackendMissing: the backend's weights or runtime are not there; the text names the remedy.
        ValueError: not an RGB uint8 picture.
    """
    image = check_image(image)
    from pose_tools.small_detector import load_small_detector

    hands = [hand for hand in load_small_detector().detect(image) if hand.score >= threshold]
    return sort_detections(sorted(hands, key=lambda hand: -hand.score)[:max_hands])


def check_image(image: np.ndarray) -> np.ndarray:
    """`image` itself if it is RGB uint8 (H, W, 3) and not empty; ValueError otherwise."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the picture is {got}; expected RGB uint8 (H, W, 3), such as np.asarray(Image.open(path).convert('RGB'))")
    return image
