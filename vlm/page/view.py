"""What is said on the page, as Gradio's chat shows it: questions, tool calls with what they found, answers in plain words."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from pose_tools.types import SIDES
from vlm.agent import Step, Turn
from vlm.answers import Answer, BoxAnswer, NoneAnswer, TrajectoryAnswer, Unparsed
from vlm.medium import Medium
from vlm.show import as_json, call_text, describe, there, valid_steps

Chat = tuple[dict[str, Any], ...]
PICTURE_QUESTIONS = (
    "Where is my left hand?",
    "Where is my right hand?",
    "Where is the object held in the right hand?",
    "Use the tool to locate both hands.",
)
CLIP_QUESTIONS = ("Where will my left hand go?", "Where will my right hand go?", "Where will my hands go next?", "Where is my right hand?")

UNSEEN = "I see no hand in any frame of the clip, so there is no path to show. Without Tools, in Settings, I show it all the same."
_MARKS = re.compile(r"([\\`*\[\]|~]|(?<!\w)_|_(?!\w)|^#)", re.M)
"""What Markdown would make emphasis, code, a link, a picture (which a browser fetches), a table or a title of."""


def plain(text: str) -> str:
    """Words that Markdown and HTML leave as they are."""
    return _MARKS.sub(r"\\\1", html.escape(text, quote=False))


def said(question: str) -> dict[str, Any]:
    """The visitor's words; shown as they are, whatever marks they hold."""
    return {"role": "user", "content": plain(question)}


def writing(text: str) -> dict[str, Any]:
    """The answer while it grows."""
    return {"role": "assistant", "content": plain(text) or "…"}


def problem(words: str) -> dict[str, Any]:
    """What went wrong, in one sentence, in the place of an answer."""
    return {"role": "assistant", "content": f"⚠️ {plain(words)}"}


def answered(turn: Turn, medium: Medium, *, alone: bool, save: Callable[[np.ndarray], str]) -> Chat:
    """The tools that were called, each with its overlay (`save` writes a picture to a file), then the answer in words."""
    calls = tuple(_call(step, save) for step in turn.trace if step.kind == "tool")
    seconds = sum(step.seconds for step in turn.trace)
    words = "\n\n".join(in_words(answer, medium) for answer in turn.answers)
    foot = f"{seconds:.1f} s" + (" · earlier turns left out: with them the model lost its thread" if alone else "")
    return (*calls, {"role": "assistant", "content": f"{words}\n\n<small>{foot}</small>"})


def _call(step: Step, save: Callable[[np.ndarray], str]) -> dict[str, Any]:
    name = "a call that cannot be read" if step.call is None else call_text(step.call)
    overlay = None if step.result is None else step.result.overlay
    return {
        "role": "assistant",
        "content": f"`{step.text}`" if overlay is None else {"path": save(overlay), "alt_text": f"what {name} found"},
        "metadata": {"title": f"Tool: {name}", "log": step.text, "duration": round(step.seconds, 3), "status": "done"},
    }


def in_words(answer: Answer, medium: Medium) -> str:
    """An answer as Markdown for people."""
    what = "clip" if medium.is_clip else "picture"
    if isinstance(answer, BoxAnswer):
        x1, y1, x2, y2 = (round(value) for value in answer.box.bbox_xyxy)
        name = plain((answer.box.label or "here").capitalize())
        return f"**{name}**: x {x1}–{x2}, y {y1}–{y2}"
    if isinstance(answer, NoneAnswer):
        return f"**None.** I see no such thing in the {what}."
    if isinstance(answer, TrajectoryAnswer):
        return _path_in_words(answer, medium)
    if isinstance(answer, Unparsed):
        text = plain(answer.text.strip()[:200])
        return (
            f"I have no clear answer to that: what I wrote, “{text}”, is no place I could draw. "
            "I know questions about hands and what they hold; try one of those below."
        )
    return plain(describe(answer, medium))


def _path_in_words(answer: TrajectoryAnswer, medium: Medium) -> str:
    valid, now = valid_steps(answer, medium), medium.now
    lines = []
    for hand in np.flatnonzero(there(answer, medium).any(1)):
        points = np.asarray(answer.points, float)[hand]
        start = now[hand] if np.isfinite(now[hand]).all() else points[0]
        places = " → ".join(f"({x:.0f}, {y:.0f})" for x, y in points)
        leaves = "" if valid[hand].all() else ", partly outside the picture"
        lines.append(f"**{SIDES[hand].capitalize()} hand** {direction(points[-1] - start)}{leaves}: {places}")
    return "\n\n".join(lines) or UNSEEN


def direction(move: np.ndarray) -> str:
    """A move (2,) in pixels, x to the right and y down, in words."""
    distance = float(np.hypot(*move))
    if distance < 4:
        return "stays where it is"
    x, y = move / distance
    names = [name for name, share in (("up", -y), ("down", y), ("left", -x), ("right", x)) if share > 0.38]
    return f"moves {distance:.0f} pixels {' and '.join(names)}"


def details(turn: Turn, medium: Medium) -> dict[str, Any]:
    """Everything about an answer as json, in pixels of the picture or the last frame."""
    return {
        "medium": {"name": medium.name, "kind": "clip" if medium.is_clip else "picture", "size": list(medium.size)},
        "text": turn.text,
        "answers": [as_json(answer, medium) for answer in turn.answers],
        "trace": [
            {
                "kind": step.kind,
                "text": step.text,
                "seconds": round(step.seconds, 3),
                **({"tool": step.call.name, "arguments": step.call.arguments} if step.call is not None else {}),
            }
            for step in turn.trace
        ],
    }


def suggestions(medium: Medium | None) -> Sequence[str]:
    """Questions that the shipped model was trained for."""
    return CLIP_QUESTIONS if medium is not None and medium.is_clip else PICTURE_QUESTIONS
