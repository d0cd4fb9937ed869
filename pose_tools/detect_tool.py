"""The tool `detect_hands`: what a language model calls to learn where the hands are."""

from __future__ import annotations

import json
from typing import Any, Literal

import numpy as np

from pose_tools import detect
from pose_tools.tool_protocol import Tool, ToolCard, ToolResult
from pose_tools.types import SIDES, Media


def detect_hands(media: Media, *, image: int = 0, hand: Literal["left", "right", "both"] = "both") -> ToolResult:
    """Finds the person's hands in a picture.

    Args:
        media: the pictures of the conversation.
        image: Number of the picture, the first is 0.
        hand: Which hand to look for.
    """
    picture = media.images[image]
    size = (picture.shape[1], picture.shape[0])
    hands = detect.detect_hands(picture)
    sides = SIDES if hand == "both" else (hand,)
    best = {side: detect.best_of_side(hands, side) for side in sides}
    return ToolResult(
        data={"image": image, "image_size": list(size), "hands": {side: _record(found) for side, found in best.items()}},
        text=hands_text({side: found.bbox_xyxy if found else None for side, found in best.items()}, size),
        tokens={"detection": detect.detection_tokens([found for found in best.values() if found])},
        confidence=min((found.score for found in best.values() if found), default=None),
    )


def hands_text(boxes: dict[str, Any], size: tuple[int, int]) -> str:
    """`{"left": [x1, y1, x2, y2], "right": null}`: whole numbers 0..1000 of the picture's width and height, `size` = (w, h)."""
    scale = 1000 / np.array([*size, *size], float)
    return json.dumps({side: None if box is None else np.clip(np.rint(box * scale), 0, 1000).astype(int).tolist() for side, box in boxes.items()})


def _record(hand: detect.HandDetection | None) -> dict[str, Any] | None:
    if hand is None:
        return None
    record: dict[str, Any] = {"bbox_xyxy": [round(float(v), 2) for v in hand.bbox_xyxy], "score": round(float(hand.score), 4)}
    if hand.object_bbox is not None:
        record["object_bbox"] = [round(float(v), 2) for v in hand.object_bbox]
    return record


TOOL = Tool(
    function=detect_hands,
    card=ToolCard(
        needs="one picture; the small detector's weights (shipped), or MediaPipe's hand models (fetched on request)",
        cost="about 20 ms a picture (small), 0.2 to 1 s (MediaPipe, several scales), one CPU core",
        licence="Apache-2.0",
        failure_modes=("gloved, cut-off or strongly blurred hands are missed", "the side of a hand seen without its arm may be swapped"),
    ),
)
