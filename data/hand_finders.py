"""What finds hands with 21 key points in the frames of a video: MediaPipe, our small networks, or a published annotation file."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import PurePosixPath
from typing import Literal

import numpy as np

from data.hand_annotations import AnnotationError, HandAnnotations, read_hand_annotations
from pose_tools import detect
from pose_tools.detect import HandDetection
from pose_tools.simhand.views import hand_crop_box
from pose_tools.tool_protocol import BackendMissing

Finders = Literal["mediapipe", "small", "annotations"]
Finder = Callable[[str, int, np.ndarray], Sequence[HandDetection]]
"""(video id, frame number, picture) → the hands there, with 21 key points in pixels of the picture."""


@lru_cache(maxsize=1)
def finder(kind: Finders, annotations: str | None = None) -> Finder:
    """What finds the hands.

    Args:
        kind: "mediapipe" for photographs; "small", the shipped detector and hand regressor, which know the synthetic world only;
            "annotations", what the published file says about that video and frame.
        annotations: that file.

    Raises BackendMissing, with the remedy, when the models are not there, AnnotationError for the file.
    """
    if kind == "annotations":
        if annotations is None:
            raise AnnotationError("hands from annotations need the annotation file")
        return _annotated(read_hand_annotations(annotations))
    if kind == "small":
        from pose_tools.mano.loading import load_regressor

        load_regressor()
        return _by_regressor
    from pose_tools.mediapipe_models import why_missing

    if (reason := why_missing()) is not None:
        raise BackendMissing(
            f"{reason}\n(without them: --hands small for pictures of the synthetic world, "
            "or --annotations FILE with key points that were published)"
        )
    return lambda video, number, picture: detect.detect_hands(picture, backend="mediapipe")


def _by_regressor(video: str, number: int, picture: np.ndarray) -> list[HandDetection]:
    """The small detector's hands with the key points of the small hand regressor."""
    from pose_tools.hand_pose_tool import FIELD_OF_VIEW
    from pose_tools.mano.crops import assumed_intrinsics
    from pose_tools.mano.estimate import HandInPicture, estimate, joints_box
    from pose_tools.mano.loading import load_regressor

    found = detect.detect_hands(picture, backend="small")
    camera = assumed_intrinsics((picture.shape[1], picture.shape[0]), FIELD_OF_VIEW)
    places = [HandInPicture(picture, joints_box(np.asarray(hand.bbox_xyxy)), hand.side, camera) for hand in found]
    estimates = estimate(load_regressor(), places)
    return [replace(hand, keypoints_2d=one.key_points) for hand, one in zip(found, estimates, strict=True)]


def _annotated(hands: HandAnnotations) -> Finder:
    """The hands of an annotation file by video and frame; their key points are stored relative to the published crop."""
    rows: dict[tuple[str, int], list[int]] = {}
    for row, name in enumerate(hands.file_names):
        path = PurePosixPath(name)
        digits = re.search(r"(\d+)$", path.stem)
        rows.setdefault((path.parent.as_posix(), int(digits[1]) if digits else 0), []).append(row)

    def find(video: str, number: int, picture: np.ndarray) -> list[HandDetection]:
        found = []
        for row in rows.get((video, number), ()):
            points = None
            try:
                x0, y0, x1, y1 = hand_crop_box((picture.shape[1], picture.shape[0]), hands.boxes[row])
                points = hands.keypoints[row, :, :2].astype(np.float64) * [x1 - x0, y1 - y0] + [x0, y0]
            except ValueError:  # a box outside the picture: who cuts it out will say so
                pass
            found.append(HandDetection(tuple(hands.boxes[row].tolist()), "left" if hands.left[row] else "right", 1.0, points))
        return found

    return find
