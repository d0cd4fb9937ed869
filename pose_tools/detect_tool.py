"""The tool `detect_hands`: what a language model calls to learn where the hands are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np

from pose_tools import detect
from pose_tools.grounding import format_box
from pose_tools.tool_protocol import Tool, ToolCard, ToolResult
from pose_tools.types import SIDES, Box, Media
from pose_tools.views import View


def detect_hands(media: Media, *, image: int = 0, hand: Literal["left", "right", "both"] = "both") -> ToolResult:
    """Finds the person's hands in a picture.

    Args:
        media: the pictures of the conversation.
        image: Number of the picture, the first is 0.
        hand: Which hand to look for.
    """
    picture = media.images[image]
    return describe(detect.detect_hands(picture), (picture.shape[1], picture.shape[0]), image=image, hand=hand)


def describe(
    hands: Sequence[detect.HandDetection], size: tuple[int, int], *, image: int = 0, hand: Literal["left", "right", "both"] = "both"
) -> ToolResult:
    """The tool's result for detections that are there already, in picture number `image` of `size` (width, height)."""
    best = {side: detect.best_of_side(hands, side) for side in (SIDES if hand == "both" else (hand,))}
    found = [one for one in best.values() if one is not None]
    records = {side: _record(one) for side, one in best.items()}
    return ToolResult(
        data={"image": image, "image_size": list(size), "hands": records},
        text=_text({side: one["bbox_xyxy"] if one else None for side, one in records.items()}, size),
        tokens={"detection": detect.detection_tokens(found)},
        confidence=min((one.score for one in found), default=None),
    )


def write(result: ToolResult, views: Sequence[View]) -> str:
    """The result's text in the grid of its picture's view; a hand outside of that is null."""
    view = views[result.data["image"]]
    return _text({side: _on_grid(one["bbox_xyxy"], view) if one else None for side, one in result.data["hands"].items()}, view.out)


def draw(media: Media, result: ToolResult) -> np.ndarray:
    """The picture with the hands' boxes and scores and, dashed, the boxes of what they hold; small pictures are enlarged."""
    from pose_tools.render import Canvas  # loads the rasteriser, which only people need

    hands = {side: one for side, one in result.data["hands"].items() if one is not None}
    held = {side: one["object_bbox"] for side, one in hands.items() if "object_bbox" in one}
    canvas = Canvas(media.images[result.data["image"]])
    canvas.boxes([Box(tuple(box), f"held by {side}") for side, box in held.items()], dashed=True)
    canvas.boxes([Box(tuple(one["bbox_xyxy"]), f"{side} hand", one["score"]) for side, one in hands.items()])
    return (canvas if hands else canvas.caption("no hands found")).array()


def _on_grid(bbox_xyxy: Sequence[float], view: View) -> tuple[float, ...] | None:
    box = np.clip(view.box_to_grid(bbox_xyxy), 0, [*view.out, *view.out])
    return tuple(box.tolist()) if (box[2:] > box[:2]).all() else None


def _text(boxes: Mapping[str, Sequence[float] | None], size: tuple[int, int]) -> str:
    """`{"left": [x1, y1, x2, y2], "right": null}`: whole numbers 0..1000 of `size` (width, height), as the model writes boxes itself."""
    return "{" + ", ".join(f'"{side}": {"null" if box is None else format_box(box, size)}' for side, box in boxes.items()) + "}"


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
        needs="one picture; the small detector's weights (shipped) and, for photographs, MediaPipe's hand models (fetched on request)",
        cost="on one CPU core 20 ms a picture (small detector), 0.2 to 1 s with MediaPipe, more for a crowd",
        licence="Apache-2.0, code and both sets of weights",
        failure_modes=(
            "gloved hands, hands cut off by the picture's edge and strongly blurred hands are missed in photographs",
            "a hand may get the wrong side where its fingers are hidden; of several people's hands the surest left and right are told",
            "what a hand holds is known in synthetic pictures only",
        ),
    ),
    write=write,
    draw=draw,
    version=detect.backend_version,
)
