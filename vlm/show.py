"""Answers for people: in words, as json, and drawn on the picture or the clip they are about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np

from pose_tools.render import Canvas
from pose_tools.render_path import CLIP_FPS, FramePaths, draw_paths, path_clip
from pose_tools.types import SIDES, Box
from vlm.answers import Answer, BoxAnswer, NoneAnswer, TextAnswer, TimeAnswer, ToolCallAnswer, TrajectoryAnswer, Unparsed
from vlm.medium import Medium

UNSEEN = "a path, but of no hand that is seen; --tools off tells it without looking for hands"


def describe(answer: Answer, medium: Medium | None = None) -> str:
    """An answer as one line for people; places in whole pixels. With `medium`, a path tells only of hands that are seen in it, and a
    moment is told in seconds from the first frame that was looked at."""
    if isinstance(answer, BoxAnswer):
        x1, y1, x2, y2 = (round(value) for value in answer.box.bbox_xyxy)
        return f"{answer.box.label or 'box'}: x {x1} to {x2}, y {y1} to {y2}"
    if isinstance(answer, NoneAnswer):
        return "there is none"
    if isinstance(answer, TextAnswer):
        return answer.text
    if isinstance(answer, TrajectoryAnswer):
        hands = np.flatnonzero(there(answer, medium).any(1))
        return "; ".join(_path_words(answer, hand) for hand in map(int, hands)) or UNSEEN
    if isinstance(answer, TimeAnswer):
        share = f"{100 * answer.fraction:.0f} % of the clip"
        return f"at {answer.fraction * medium.seconds:.1f} s, {share}" if medium is not None and medium.is_clip else f"at {share}"
    return f"not understood: {answer.text!r} ({answer.reason})" if isinstance(answer, Unparsed) else f"asks for the tool {answer.name}"


def call_text(call: ToolCallAnswer) -> str:
    """A tool call as one writes it: name(argument=value, …)."""
    return f"{call.name}({', '.join(f'{name}={value!r}' for name, value in call.arguments.items())})"


def as_json(answer: Answer, medium: Medium | None = None) -> dict[str, Any]:
    """An answer as json: pixels of the picture or last observed frame, unrounded.

    A trajectory has `points` (2, T, 2), `spread` (2, T) and `samples` (S, 2, T, 2) or null, `hands` (left, right), and `valid` (2, T):
    inside the frame, of a hand that is there (see `valid_steps`).
    """
    if isinstance(answer, BoxAnswer):
        return {"type": "box", "bbox_xyxy": [float(value) for value in answer.box.bbox_xyxy], "label": answer.box.label}
    if isinstance(answer, NoneAnswer):
        return {"type": "none"}
    if isinstance(answer, TextAnswer):
        return {"type": "text", "text": answer.text}
    if isinstance(answer, Unparsed):
        return {"type": "unparsed", "text": answer.text, "reason": answer.reason}
    if isinstance(answer, TimeAnswer):
        seconds = {} if medium is None or not medium.is_clip else {"seconds": answer.fraction * medium.seconds}
        return {"type": "time", "fraction": answer.fraction} | seconds
    if isinstance(answer, ToolCallAnswer):
        return {"type": "tool_call", "name": answer.name, "arguments": answer.arguments}
    return {
        "type": "trajectory",
        "hands": list(SIDES),
        "points": np.asarray(answer.points, float).tolist(),
        "spread": None if answer.spread is None else answer.spread.tolist(),
        "samples": None if answer.samples is None else answer.samples.tolist(),
        "valid": valid_steps(answer, medium).tolist(),
    }


def drawn(
    image: np.ndarray | Medium, answers: Sequence[Answer], truth: Sequence[Box] = (), *, true_paths: FramePaths | None = None
) -> np.ndarray:
    """A copy of a picture, RGB uint8 (H, W, 3), or of a clip's last frame, with the answer's boxes and paths in colour and those of the
    truth dashed in white; a small picture is enlarged. An answer without a place is written at the top."""
    medium = image if isinstance(image, Medium) else Medium((image,))
    canvas = Canvas(medium.last)
    canvas.boxes([Box(box.bbox_xyxy) for box in truth], colours=[(255, 255, 255)] * len(truth), dashed=True)
    canvas.boxes([answer.box for answer in answers if isinstance(answer, BoxAnswer)])
    for answer in answers:
        if isinstance(answer, TrajectoryAnswer):
            draw_paths(canvas, paths_of(answer, medium), truth=true_paths)
    for answer in answers:
        if not isinstance(answer, (BoxAnswer, TrajectoryAnswer)):
            canvas.caption(describe(answer, medium))
    return canvas.array()


def drawn_clip(medium: Medium, answers: Sequence[Answer]) -> list[np.ndarray]:
    """The observed frames, then the last one with the path growing on it, or with another answer drawn on it: RGB uint8 frames for
    `render_path.CLIP_FPS`."""
    paths = next((paths_of(answer, medium) for answer in answers if isinstance(answer, TrajectoryAnswer)), None)
    frames = path_clip(medium.frames, paths or FramePaths(np.full((2, 1, 2), np.nan)), rate=medium.rate)
    if paths is not None or not answers:
        return frames
    still = cv2.resize(drawn(medium, answers), frames[-1].shape[1::-1], interpolation=cv2.INTER_AREA)
    growing = round(CLIP_FPS * FramePaths.seconds)
    return [*frames[:-growing], *[still] * growing]


def paths_of(answer: TrajectoryAnswer, medium: Medium) -> FramePaths:
    """What is drawn of a trajectory: the hands that are there, from where they are now."""
    return FramePaths(answer.points, there(answer, medium), medium.now, answer.spread, answer.samples)


def valid_steps(answer: TrajectoryAnswer, medium: Medium | None) -> np.ndarray:
    """(2, T) bool: points inside the frame, of a hand that is there."""
    valid = there(answer, medium)
    return valid if medium is None else valid & ((answer.points >= 0) & (answer.points < medium.size)).all(-1)


def there(answer: TrajectoryAnswer, medium: Medium | None) -> np.ndarray:
    """(2, T) bool: steps of a hand that is seen in some frame of the clip, and that the model rather thinks is there then, both as far
    as anybody tells."""
    valid = np.isfinite(answer.points).all(-1)
    if answer.presence is not None:
        valid &= ~(answer.presence < 0.5)  # NaN: the head does not tell
    return valid if medium is None or not medium.is_clip else valid & medium.seen[:, None]


def _path_words(answer: TrajectoryAnswer, hand: int) -> str:
    places = " → ".join(f"{x:.0f}, {y:.0f}" for x, y in np.asarray(answer.points, float)[hand])
    return f"{SIDES[hand]} hand goes to (x, y): {places}"
