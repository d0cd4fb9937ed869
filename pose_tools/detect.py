"""Where the hands are: one record, one function, two backends.

`small` is our own detector, trained on the synthetic world (`small_detector.py`); it also says what a hand holds. `mediapipe` is
MediaPipe's palm and landmark networks, for photographs (`mediapipe_hands.py`); they are fetched on request and never needed elsewhere.

`auto` is `small` where MediaPipe's networks are not there. Where they are, both look, and MediaPipe is the witness of whether the
small detector is at home in this picture: if it saw every hand that MediaPipe saw, on the same side, it answers, otherwise MediaPipe
does. On rendered pictures MediaPipe finds six hands in ten and invents few, so these keep their own detector nine times in ten; in
photographs the small detector mostly finds something else, and MediaPipe answers.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

import numpy as np

from pose_tools import mediapipe_models
from pose_tools.metrics import box_iou
from pose_tools.types import SIDES, Side
from pose_tools.user_error import UserError

Backend = Literal["auto", "small", "mediapipe"]
TOKEN_WIDTH = 11
THRESHOLDS = {"small": 0.5, "mediapipe": 0.4}
"""Least score of a hand, per backend."""
AGREEMENT = 0.4
"""Least IoU at which both backends mean the same hand."""


class UnknownBackend(UserError):
    """A hand detector that nobody wrote, such as a misspelt HANDVLM_HANDS."""


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
    for row, side in enumerate(SIDES):
        hand = best_of_side(detections, side)
        if hand is not None:
            tokens[row, :6] = (*hand.bbox_xyxy, 2 * row - 1, hand.score)
            tokens[row, 10] = 0.0
            if hand.object_bbox is not None:
                tokens[row, 6:] = (*hand.object_bbox, 1.0 if hand.object_score is None else hand.object_score)
    return tokens


def detect_hands(
    image: np.ndarray, *, backend: Backend = "auto", threshold: float | None = None, max_hands: int = 8
) -> list[HandDetection]:
    """The hands in a picture.

    Args:
        image: RGB uint8 (H, W, 3).
        backend: "small", "mediapipe", or "auto": $HANDVLM_HANDS if that is set, else the rule at the top of this module.
        threshold: least score of a hand, 0..1; None is the backend's own (0.5 and 0.4).
        max_hands: the best so many are kept.

    Returns:
        Detections, left before right, then by falling score; boxes in pixels of `image`.

    Raises:
        BackendMissing: the backend's weights or runtime are not there; the text names the remedy.
        ValueError: not an RGB uint8 picture.
        UnknownBackend: no such backend.
    """
    image = check_image(image)
    chosen = resolve_backend(backend)
    if chosen == "small":
        hands = _small(image, threshold)
    elif chosen == "mediapipe":
        hands = _mediapipe(image, threshold)
    else:
        hands = _trusted(_small(image, threshold), _mediapipe(image, threshold))
    return sort_detections(sorted(hands, key=lambda hand: -hand.score)[:max_hands])


def resolve_backend(backend: str = "auto") -> Backend:
    """What `backend` comes to on this machine: "auto" is $HANDVLM_HANDS if set, and stays "auto" only where both backends are there."""
    wished = os.environ.get("HANDVLM_HANDS") if backend == "auto" else None
    backend = wished or backend
    if backend not in get_args(Backend):
        where = " (from the environment's HANDVLM_HANDS)" if wished else ""
        raise UnknownBackend(f"there is no hand detector {backend!r}{where}; expected one of: {', '.join(get_args(Backend))}")
    if backend == "auto" and mediapipe_models.why_missing() is not None:
        return "small"
    if backend == "auto" and not _small_weights().is_file():
        return "mediapipe"
    return cast(Backend, backend)


def backend_version() -> str:
    """Names what `detect_hands` answers with, for caches: the backends, and the small detector's weights by size and time."""
    chosen = resolve_backend()
    weights = _small_weights()
    if chosen == "mediapipe" or not weights.is_file():
        return chosen
    facts = weights.stat()
    return f"{chosen} {facts.st_size} {facts.st_mtime_ns}"


def _small_weights() -> Path:
    from pose_tools.small_detector import DEFAULT_FOLDER

    return DEFAULT_FOLDER / "model.safetensors"


def _small(image: np.ndarray, threshold: float | None) -> list[HandDetection]:
    from pose_tools.small_detector import load_small_detector

    return load_small_detector().detect(image, least=THRESHOLDS["small"] if threshold is None else threshold)


def _mediapipe(image: np.ndarray, threshold: float | None) -> list[HandDetection]:
    from pose_tools.mediapipe_hands import find_hands, tight_box

    size = (image.shape[1], image.shape[0])
    found = find_hands(image, THRESHOLDS["mediapipe"] if threshold is None else threshold)
    return [HandDetection(tight_box(hand.landmarks, size), side, hand.score, hand.landmarks) for hand, side in found]


def _trusted(small: list[HandDetection], photo: list[HandDetection]) -> list[HandDetection]:
    """`small` where it saw, with its side, every hand that MediaPipe saw; `photo` otherwise."""
    witnessed = all(
        any(one.side == other.side and box_iou(one.bbox_xyxy, other.bbox_xyxy) >= AGREEMENT for other in small) for one in photo
    )
    return small if witnessed else photo


def check_image(image: np.ndarray) -> np.ndarray:
    """`image` itself if it is RGB uint8 (H, W, 3) and not empty; ValueError otherwise."""
    if not isinstance(image, np.ndarray) or image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or image.size == 0:
        got = f"{image.dtype} {image.shape}" if isinstance(image, np.ndarray) else type(image).__name__
        raise ValueError(f"the picture is {got}; expected RGB uint8 (H, W, 3), such as np.asarray(Image.open(path).convert('RGB'))")
    return image
