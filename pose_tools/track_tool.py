"""The tool `track_hands`: what a language model calls to learn where the hands of a clip came from and where they are heading."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from pose_tools import detect, track
from pose_tools.forecast import constant_velocity
from pose_tools.grounding import format_box
from pose_tools.tool_protocol import Tool, ToolCard, ToolResult
from pose_tools.types import SIDES, Box, Media
from pose_tools.views import View

MOMENTS = 10
"""A path is told as so many points at most."""
AHEAD = 1.0
"""Seconds of the forecast."""
FITTED = 0.5
"""Seconds of the path that the forecast's line is fitted to."""

SHORTEST_ARROW = 0.06
"""A hand that moves by less than this share of the picture in the forecast's time has no arrow: it would be all tip."""


def track_hands(media: Media, *, hand: Literal["left", "right", "both"] = "both", smooth: bool = True) -> ToolResult:
    """Follows the person's hands through the clip.

    Args:
        media: the clip of the conversation.
        hand: Which hand to follow.
        smooth: Whether to repair and smooth what was detected.
    """
    assert media.fps is not None  # the arguments' check has seen to it
    tracks = track.track_hands(media.frames, media.fps, smooth=smooth)
    height, width = media.frames[-1].shape[:2]
    return describe(tracks, len(media.frames), media.fps, (width, height), hand=hand)


def describe(
    tracks: Sequence[track.HandTrack],
    count: int,
    fps: float,
    size: tuple[int, int],
    *,
    hand: Literal["left", "right", "both"] = "both",
) -> ToolResult:
    """The tool's result for tracks that are there already, of a clip of `count` frames of `size` (width, height) at `fps`."""
    wanted = SIDES if hand == "both" else (hand,)
    told = [one for one in tracks if one.side in wanted]
    records = {side: next((_record(one, fps) for one in told if one.side == side), None) for side in wanted}
    data = {"image_size": list(size), "frames": count, "fps": fps, "seconds": round((count - 1) / fps, 3), "hands": records}
    return ToolResult(
        data=data,
        text=_text(data, size, lambda box: box, lambda points: points),
        tokens={"track": track.track_tokens(told, count)},
        confidence=min((float(one.score[one.seen].mean()) for one in told), default=None),
    )


def write(result: ToolResult, views: Sequence[View]) -> str:
    """The result's text in the grid of the clip's view, which all frames share."""
    view = views[-1]
    return _text(result.data, view.out, view.box_to_grid, view.to_grid)


def draw(media: Media, result: ToolResult) -> np.ndarray:
    """The last frame with each hand's path, faint where long ago, its box if it is in that frame, and dashed where an even motion takes
    it in a second."""
    from pose_tools.render import SIDE_COLOURS, Canvas  # loads the rasteriser, which only people need

    canvas = Canvas(media.frames[-1])
    hands = {side: one for side, one in result.data["hands"].items() if one is not None}
    for side, one in hands.items():
        boxes = np.array([[np.nan] * 4 if box is None else box for box in one["bbox_xyxy"]])
        centres = (boxes[:, :2] + boxes[:, 2:]) / 2
        ahead = None if one["forecast"] is None else np.array([centres[-1], one["forecast"]])
        if ahead is not None and np.linalg.norm(np.diff(ahead, axis=0)) > SHORTEST_ARROW * min(media.frames[-1].shape[:2]):
            canvas.trajectory(ahead, colour=SIDE_COLOURS[side], dashed=True)
        canvas.trail(centres, colour=SIDE_COLOURS[side], seen=np.array(one["seen"]))
    last = {side: one["bbox_xyxy"][-1] for side, one in hands.items()}
    canvas.boxes([Box(tuple(box), f"{side} hand", hands[side]["score"][-1]) for side, box in last.items() if box is not None])
    gone = [side for side in result.data["hands"] if last.get(side) is None]
    if gone:
        canvas.caption(f"not in the last frame: {' and '.join(gone)} hand" if hands else "no hands found")
    return canvas.array()


def _record(one: track.HandTrack, fps: float) -> dict[str, Any]:
    forecast = None
    if one.present[-1]:
        count = max(3, round(FITTED * fps) + 1)
        end = one.times[-1]
        forecast = constant_velocity(one.points, one.present, one.times, [end + AHEAD], count=count)[0].round(2).tolist()
    boxes = [box.round(2).tolist() if there else None for box, there in zip(one.bbox_xyxy, one.present, strict=True)]
    return {"bbox_xyxy": boxes, "score": one.score.round(4).tolist(), "seen": one.seen.tolist(), "forecast": forecast}


def _text(
    data: dict[str, Any], size: tuple[int, int], box_to_grid: Callable[[Any], Any], to_grid: Callable[[Any], Any]
) -> str:
    """`{"seconds": 2.2, "left": {"box": [x1, y1, x2, y2], "path": [[x, y], …], "in 1 s": [x, y]}, "right": null}`.

    Whole numbers 0..1000 of `size` (width, height), as the model writes places itself. `box` and `in 1 s` are null for a hand that is
    not in the last frame; the path goes from its first to its last moment in the clip.
    """

    def place(point: Any) -> list[int]:
        return [round(v) for v in np.clip(np.asarray(to_grid(np.asarray(point, float))) / size, 0, 1) * 1000]

    def told(one: dict[str, Any] | None) -> str:
        if one is None:
            return "null"
        there = [box for box in one["bbox_xyxy"] if box is not None]
        chosen = sorted({round(i) for i in np.linspace(0, len(there) - 1, min(MOMENTS, len(there)))})
        path = [place([(there[i][0] + there[i][2]) / 2, (there[i][1] + there[i][3]) / 2]) for i in chosen]
        box = "null" if one["bbox_xyxy"][-1] is None else format_box(np.asarray(box_to_grid(one["bbox_xyxy"][-1])).tolist(), size)
        ahead = "null" if one["forecast"] is None else json.dumps(place(one["forecast"]))
        return f'{{"box": {box}, "path": {json.dumps(path)}, "in {AHEAD:g} s": {ahead}}}'

    hands = ", ".join(f'"{side}": {told(one)}' for side, one in data["hands"].items())
    return f'{{"seconds": {data["seconds"]:g}, {hands}}}'


def _version() -> str:
    return f"{detect.backend_version()} tracks {track.VERSION}"


TOOL = Tool(
    function=track_hands,
    card=ToolCard(
        needs="a clip of two frames or more with its frame rate; what detect_hands needs",
        cost="what detect_hands costs for each different frame, on one CPU core 20 ms (small detector), and 5 ms for the clip",
        licence="Apache-2.0, code and weights",
        failure_modes=(
            "each box lies in its own frame: where the camera turns, the path shows the hand's motion and the camera's together",
            "a wrong side in three frames or more in a row is taken for the other hand",
            "hands that cross while both are hidden may come out exchanged",
            "the place in a second is where an even motion leads, not where the person wants to go",
        ),
    ),
    write=write,
    draw=draw,
    version=_version,
    looks_at="clip",
    by_default=False,  # its tokens say the same to the shipped model, which was never taught to call it, and answers worse beside an offer
)
