"""Sample: one conversation about pictures, with its truth. What every reader yields and everything else consumes.

`messages` are in the Hugging Face chat format; `content` is always a list of typed parts:

    {"type": "text", "text": str}
    {"type": "image", "image": path | PIL image | RGB uint8 (H, W, 3)}
    {"type": "video", "video": [frame, ...], "times": [seconds, ...]?}          frames like pictures, of one size, in order; may repeat
    {"type": "pose", "encoder": str, "tokens": (n, d) float array | None}      None: the specialist found nothing
    {"type": "box", "bbox_xyxy": [x1, y1, x2, y2], "label": str?}               answers only, original pixels of image 0
    {"type": "none"}                                                            answers only: there is no such thing
    {"type": "trajectory", "points": (2, T, 2), "valid": (2, T) bool?}          answers only: left, right; pixels of the last frame
    {"type": "time", "seconds": float, "duration": float}                       answers only: a moment of a clip, from its start
    {"type": "tool_call", "name": str, "arguments": dict}                       answers only

A geometric part that was read from a file as text may carry `"verbatim": str, "dialect": str`: a renderer of the same
dialect passes that text through unchanged, and with it the `"gap": str` that stood before it, or before the text behind it.
Tool results are turns of role "tool" with one text part, and a pose part for each encoder that the tool made tokens for.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from numbers import Real
from typing import Any

import numpy as np

from pose_tools.user_error import UserError

ROLES = ("system", "user", "assistant", "tool")
ANYWHERE = ("text",)
QUESTION_PARTS = ("image", "video", "pose")
ANSWER_PARTS = ("box", "point", "trajectory", "time", "none", "tool_call")
PARTS_OF = {"user": QUESTION_PARTS, "assistant": ANSWER_PARTS, "tool": ("pose",)}


class SampleError(UserError):
    """A sample that cannot be used; the message names the sample, what was got and what was expected."""


@dataclass(frozen=True)
class Source:
    """Where a sample comes from. `video_id` is the cluster for confidence intervals; `frame` the frame number in it."""

    dataset: str
    video_id: str = ""
    frame: int | str | None = None
    licence: str = "unknown"


@dataclass(frozen=True)
class Sample:
    """A conversation with its truth; geometry in ORIGINAL pixels / metres.

    `targets` is what an evaluator scores against, beside what the answer says: `kind` (question type), `boxes`
    (list of [x1, y1, x2, y2]), `labels`, `text`, … . `tools` are the names of the tools on offer, or None.
    """

    id: str
    messages: list[dict[str, Any]]
    source: Source
    targets: dict[str, Any] = field(default_factory=dict)
    tools: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        validate_messages(self.messages, where=f"sample {self.id!r}")


def validate_messages(messages: Sequence[dict[str, Any]], where: str = "conversation") -> None:
    """Raises SampleError unless `messages` is a conversation of typed parts as described at the top of this module."""
    if not messages:
        raise SampleError(f"{where}: no messages")
    for number, message in enumerate(messages):
        place = f"{where}, message {number}"
        if not isinstance(message, dict):
            raise SampleError(f"{place}: a message is {{'role': ..., 'content': [parts]}}, got {type(message).__name__}")
        role = message.get("role")
        if role not in ROLES:
            raise SampleError(f"{place}: role is {role!r}, expected one of {', '.join(ROLES)}")
        content = message.get("content")
        if not isinstance(content, list):
            raise SampleError(
                f"{place}: content is {type(content).__name__}, expected a list of parts such as {{'type': 'text', 'text': ...}}"
            )
        allowed = ANYWHERE + PARTS_OF.get(role, ())
        for part in content:
            _validate_part(part, allowed, f"{place} ({role})")


def _validate_part(part: Any, allowed: tuple[str, ...], place: str) -> None:
    kind = part.get("type") if isinstance(part, dict) else None
    if kind not in allowed:
        raise SampleError(f"{place}: part of type {kind!r}, expected one of {', '.join(allowed)}")
    if kind == "text" and not isinstance(part.get("text"), str):
        raise SampleError(f"{place}: a text part needs a string under 'text', got {type(part.get('text')).__name__}")
    if kind == "image" and part.get("image") is None:
        raise SampleError(f"{place}: an image part needs a path, a PIL image or an array under 'image', got the keys {', '.join(part)}")
    if kind == "video":
        _validate_video(part, place)
    if kind == "trajectory":
        _validate_trajectory(part, place)
    if kind == "pose" and not isinstance(part.get("encoder"), str):
        raise SampleError(f"{place}: a pose part needs its encoder's name under 'encoder', got {part.get('encoder')!r}")
    if kind == "box":
        try:
            box = np.asarray(part.get("bbox_xyxy", ()), dtype=float)
        except (TypeError, ValueError):
            box = np.zeros(0)
        if box.shape != (4,) or not np.isfinite(box).all() or box[2] < box[0] or box[3] < box[1]:
            raise SampleError(f"{place}: bbox_xyxy is {part.get('bbox_xyxy')!r}, expected four finite numbers with x1 <= x2 and y1 <= y2")
    if kind == "time":
        _validate_time(part, place)
    if kind == "tool_call" and not (isinstance(part.get("name"), str) and isinstance(part.get("arguments"), dict)):
        raise SampleError(f"{place}: a tool_call part needs 'name' (str) and 'arguments' (dict), got {part!r}")


def _validate_video(part: dict[str, Any], place: str) -> None:
    frames = part.get("video")
    if not isinstance(frames, Sequence) or isinstance(frames, (str, bytes)) or not frames:
        got = "0 frames" if isinstance(frames, Sequence) and not len(frames) else type(frames).__name__
        raise SampleError(f"{place}: a video part needs a list of frames under 'video', got {got}; pose_tools.video reads files")
    if part.get("times") is not None and len(part["times"]) != len(frames):
        raise SampleError(f"{place}: a video part of {len(frames)} frames has {len(part['times'])} times")


def _validate_trajectory(part: dict[str, Any], place: str) -> None:
    try:
        points = np.asarray(part.get("points", ()), dtype=float)
        valid = np.ones(points.shape[:2], bool) if part.get("valid") is None else np.asarray(part["valid"], dtype=bool)
    except (TypeError, ValueError):
        points, valid = np.zeros(0), np.zeros(0, bool)
    if points.ndim != 3 or points.shape[0] != 2 or points.shape[1] < 1 or points.shape[2] != 2 or valid.shape != points.shape[:2]:
        raise SampleError(
            f"{place}: a trajectory needs points (2, T, 2), hands left, right, and valid (2, T), got {points.shape} and {valid.shape}"
        )
    if not np.isfinite(points[valid]).all():
        raise SampleError(f"{place}: a valid step of the trajectory is not a finite point; mark it as not valid, or leave the sample out")


def _validate_time(part: dict[str, Any], place: str) -> None:
    seconds, duration = part.get("seconds"), part.get("duration")
    if not (isinstance(seconds, Real) and isinstance(duration, Real) and math.isfinite(seconds) and 0 < float(duration) < math.inf):
        raise SampleError(f"{place}: a time part needs 'seconds' and a positive 'duration', got {seconds!r} and {duration!r}")


def text(value: str) -> dict[str, Any]:
    """A text part."""
    return {"type": "text", "text": value}


def user(*parts: dict[str, Any] | str) -> dict[str, Any]:
    """A user turn; strings become text parts."""
    return {"role": "user", "content": [text(p) if isinstance(p, str) else p for p in parts]}


def assistant(*parts: dict[str, Any] | str) -> dict[str, Any]:
    """An assistant turn; strings become text parts."""
    return {"role": "assistant", "content": [text(p) if isinstance(p, str) else p for p in parts]}
