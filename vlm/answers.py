"""Typed answers ↔ the text a model writes. Numbers in the text are places in the View's grid; answers are in original pixels.

norm1000   `[x1, y1, x2, y2]`; several joined by ", "; a labelled one is `left hand [x1, y1, x2, y2]`
minigpt    `{<x1><y1><x2><y2>}`; a labelled one is `<p>left hand</p> {...}`; boxes of one label are joined by `<delim>`
both       `none`, and `<tool_call>{"name": ..., "arguments": {...}}</tool_call>`;
           `<hand_traj>` once per future step (the points come beside the text), `<t0>` … `<t99>` for a moment of a clip

`write` and `parse` are inverse, but that words right before a box read as its label. What cannot be read becomes an
`Unparsed` with its reason; nothing is dropped.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, cast

import numpy as np

from pose_tools.grounding import DIALECTS, DialectName, FoundBox, find_boxes, format_numbers
from pose_tools.types import Box
from pose_tools.views import View, squash

NONE = "none"
TRAJECTORY_TOKEN = "<hand_traj>"
TIME_STEPS = 99  # <t99> is the end of the clip
LONGEST_LABEL = 60
CALL_OPEN, CALL_CLOSE = "<tool_call>", "</tool_call>"

_BREAKS_LABEL = re.compile(r"[\[\]{}<>,.;:!?\s]+")
_CALL = re.compile(rf"{CALL_OPEN}(.*?)(?:({CALL_CLOSE})|\Z)", re.DOTALL)
_MARK = re.compile(rf"((?:{TRAJECTORY_TOKEN})+)|<t([0-9]{{1,3}})>")
_NOTHING = re.compile(rf"\s*{NONE}\s*\.?\s*", re.IGNORECASE)
_LIST_GAP = re.compile(rf"[\s,]*+(?:and\b\s*+)?([^\[\]{{}}<>,.;:!?]{{0,{LONGEST_LABEL}}})")
_PHRASE = re.compile(rf"<p>([^<>]{{0,{LONGEST_LABEL}}})</p>\s*\Z")
_SEPARATORS = " \t\r\n,.;"


@dataclass(frozen=True)
class BoxAnswer:
    """A place: `box.bbox_xyxy` in pixels of the original picture, `box.label` as the answer names it, or None."""

    box: Box


@dataclass(frozen=True)
class NoneAnswer:
    """There is no such thing in the picture."""


@dataclass(frozen=True)
class TextAnswer:
    """Words, without blanks around them."""

    text: str


@dataclass(frozen=True)
class ToolCallAnswer:
    """The model asks for a tool."""

    name: str
    arguments: dict[str, Any]


@dataclass(frozen=True, eq=False)
class TrajectoryAnswer:
    """Where the hands go: `points` (2, T, 2) pixels of the original (last observed) frame, hands left, right.

    `spread` (2, T) pixels, one standard deviation (the root mean square of both axes), or None where the model does not tell;
    `presence` (2, T), the probability that there is such a hand, or None. `samples` (S, 2, T, 2): further futures, in the same pixels, or
    None where one was asked for.
    """

    points: np.ndarray
    spread: np.ndarray | None = None
    presence: np.ndarray | None = None
    samples: np.ndarray | None = None


@dataclass(frozen=True)
class TimeAnswer:
    """A moment of the clip, as a fraction 0–1 of its length."""

    fraction: float


@dataclass(frozen=True)
class Unparsed:
    """What could not be read, and why."""

    text: str
    reason: str


Answer = BoxAnswer | NoneAnswer | TextAnswer | ToolCallAnswer | TrajectoryAnswer | TimeAnswer | Unparsed


def write(parts: Sequence[dict[str, Any]], view: View | None, dialect: str) -> str:
    """The text of an assistant turn's parts (see `data.sample`); `view` is that of the picture their boxes are in.

    A part that was read from a file as text passes through unchanged if its dialect is this one and the view keeps the picture's sides,
    so that its numbers still mean the same place. Characters that would end a label are blanks in the text.
    Raises ValueError for a box without a view and for a part that has no text.
    """
    text, dialect = "", _known(dialect)
    for number, part in enumerate(parts):
        before = parts[number - 1] if number else None
        same = dialect == "minigpt" and before is not None and before["type"] == part["type"] == "box" and _label(before) == _label(part)
        piece = _write_part(part, view, dialect, with_label=not same)
        if text and piece:
            as_read = any(_passes(one, view, dialect) for one in (before, part)) and part.get("gap") is not None
            text += part["gap"] if as_read else _between(text, before, part, piece, "<delim>" if same else dialect)
        text += piece
    return text


def _known(dialect: str) -> DialectName:
    if dialect not in DIALECTS:
        raise ValueError(f"unknown dialect {dialect!r}, expected one of {', '.join(DIALECTS)}")
    return cast(DialectName, dialect)


def _write_part(part: dict[str, Any], view: View | None, dialect: DialectName, with_label: bool) -> str:
    kind = part["type"]
    if kind == "text":
        return part["text"]
    if kind == "none":
        return NONE
    if kind == "tool_call":
        # "<" is written as its escape, so that no argument can end the call.
        call = json.dumps({"name": part["name"], "arguments": part["arguments"]}, ensure_ascii=False).replace("<", r"\u003c")
        return f"{CALL_OPEN}{call}{CALL_CLOSE}"
    if _passes(part, view, dialect):
        return part["verbatim"]
    if kind == "box":
        if view is None:
            raise ValueError(f"the box {part['bbox_xyxy']!r} needs the View of its picture; the conversation has no picture")
        numbers = format_numbers((view.box_to_grid(part["bbox_xyxy"]) / (*view.out, *view.out)).tolist(), dialect)
        label = _label(part) if with_label else None
        return numbers if not label else f"<p>{label}</p> {numbers}" if dialect == "minigpt" else f"{label} {numbers}"
    if kind == "trajectory":
        return TRAJECTORY_TOKEN * np.shape(part["points"])[-2]
    if kind == "time":
        return f"<t{round(TIME_STEPS * min(max(part['seconds'] / part['duration'], 0.0), 1.0))}>"
    raise ValueError(f"a part of type {kind!r} has no text in an answer")


def _passes(part: dict[str, Any] | None, view: View | None, dialect: DialectName) -> bool:
    """Whether the text that a part was read from still means the same place."""
    return part is not None and part.get("verbatim") is not None and part.get("dialect") == dialect and (view is None or _keeps_sides(view))


def _label(part: dict[str, Any]) -> str | None:
    return _BREAKS_LABEL.sub(" ", part.get("label") or "").strip()[:LONGEST_LABEL].rstrip() or None


def _keeps_sides(view: View) -> bool:
    """Whether the picture fills the grid unturned, so that a fraction of its sides is the same fraction of the grid's."""
    upright = view.matrix[0, 0] > 0 and view.matrix[1, 1] > 0
    return view.size is not None and bool(upright) and np.allclose(view.box_to_grid((0, 0, *view.size)), (0, 0, *view.out), atol=1e-6)


def _between(text: str, before: dict[str, Any] | None, part: dict[str, Any], piece: str, style: str) -> str:
    """What stands between two parts: boxes form a list, others are parted by a blank unless they bring one or punctuation."""
    if before is not None and before["type"] == part["type"] == "box":
        return {"norm1000": ", ", "<delim>": "<delim>"}.get(style, " ")
    apart = not text[-1].isspace() and not piece[0].isspace() and (part["type"] != "text" or piece[0].isalnum())
    return " " if apart else ""


@dataclass(frozen=True, eq=False)
class Paths:
    """What a path head gave for an answer: `points` (2, T, 2) and `spread` (2, T, 2) in units of the grid, `presence` (2, T); NaN rows at
    the end where it wrote fewer path tokens. `steps`: tokens that make one path; another number of them is no answer. `samples`
    (S, 2, T, 2): the points of further futures. `space`: "grid", or "frame" where units are the whole frame's sides."""

    points: np.ndarray
    spread: np.ndarray | None = None
    presence: np.ndarray | None = None
    steps: int | None = None
    samples: np.ndarray | None = None
    space: str = "grid"

    @classmethod
    def of(cls, output: Any, row: int = 0, steps: int | None = None) -> Paths | None:
        """Those of one row of `model.generate`'s output, the first future and the others as `samples`; None without a path head."""
        if getattr(output, "trajectories", None) is None:
            return None
        found = (getattr(output, name)[row, 0] for name in ("trajectories", "trajectory_spread", "trajectory_presence"))
        points, spread, presence = (value.float().cpu().numpy() for value in found)
        others = output.trajectories[row, 1:].float().cpu().numpy()
        space = getattr(output, "trajectory_space", "grid")
        return cls(points, None if np.isnan(spread).all() else spread, presence, steps, others if len(others) else None, space)


def parse(text: str, view: View | None, dialect: str, trajectories: np.ndarray | Paths | None = None) -> list[Answer]:
    """The answers in a model's text, in order, at least one. No text makes it raise.

    `view`: the View of the picture that the numbers are about; boxes are clipped to the picture. `trajectories`: (2, T, 2) fractions of
    the grid's sides, hands left, right, one step per `<hand_traj>` of the text, or with all that the head says, Paths. Raises
    ValueError for an unknown dialect.
    """
    given = trajectories is None or isinstance(trajectories, Paths)
    paths = cast(Paths | None, trajectories) if given else Paths(np.asarray(trajectories, dtype=float))
    reader = _Reader(view, _known(dialect), paths)
    if _NOTHING.fullmatch(text):
        return [NoneAnswer()]
    answers: list[Answer] = []
    start = 0
    for call in _CALL.finditer(text):
        answers += reader.plain(text[start : call.start()])
        answers.append(_read_call(call))
        start = call.end()
    answers += reader.plain(text[start:])
    return answers or [Unparsed(text, "an empty answer")]


def _read_call(call: re.Match[str]) -> ToolCallAnswer | Unparsed:
    if call[2] is None:
        return Unparsed(call[0], "a tool call that does not end")
    try:
        content = json.loads(call[1], parse_constant=_refuse)
        json.dumps(content, ensure_ascii=False).encode()  # half a surrogate pair is legal JSON but no text
    except (ValueError, RecursionError) as error:
        return Unparsed(call[0], f"a tool call that is not JSON: {error}")
    if not isinstance(content, dict):
        return Unparsed(call[0], f"a tool call must be a JSON object, got {type(content).__name__}")
    name, arguments = content.get("name"), content.get("arguments", {})
    if not isinstance(name, str) or not isinstance(arguments, dict):
        return Unparsed(call[0], 'a tool call needs "name", a string, and "arguments", an object')
    return ToolCallAnswer(name, arguments)


def _refuse(constant: str) -> None:
    raise ValueError(f"{constant} is not a number")


class _Reader:
    """Reads text between tool calls; remembers how many steps of the trajectories were used."""

    def __init__(self, view: View | None, dialect: DialectName, paths: Paths | None) -> None:
        self.view, self.dialect, self.paths, self.step = view, dialect, paths, 0

    def plain(self, text: str) -> list[Answer]:
        if CALL_CLOSE in text:
            return [Unparsed(text, "the end of a tool call without its beginning")]
        found = find_boxes(text, self.dialect)
        ends = [0, *(one.span[1] for one in found)]
        gaps = [text[end : one.span[0]] for end, one in zip(ends, found)]
        tail = text[ends[-1] :]
        labels = self._list_labels(gaps, tail) if self.dialect == "norm1000" else None
        answers: list[Answer] = []
        label: str | None = None
        for number, (gap, one, bbox) in enumerate(zip(gaps, found, self._to_original(found))):
            if labels is not None:
                label = labels[number]
            else:
                gap, label = self._phrase(gap, label)
                answers += self._words(gap)
            answers.append(self._box(text, one, bbox, label))
        return answers + self._words(tail)

    @staticmethod
    def _list_labels(gaps: list[str], tail: str) -> list[str | None] | None:
        """The labels, if the text is nothing but a list of boxes; else None."""
        matches = [_LIST_GAP.fullmatch(gap) for gap in gaps]
        if tail.strip(_SEPARATORS) or not all(matches):
            return None
        return [match[1].strip() or None for match in matches if match]

    def _phrase(self, gap: str, previous: str | None) -> tuple[str, str | None]:
        """What stands before a box without its label, and the label."""
        if self.dialect != "minigpt":
            return gap, None
        if gap.strip() == "<delim>":
            return "", previous
        phrase = _PHRASE.search(gap)
        return (gap[: phrase.start()], phrase[1].strip() or None) if phrase else (gap, None)

    def _to_original(self, found: list[FoundBox]) -> np.ndarray:
        """(n, 4) boxes in original pixels, clipped to the picture; rows of malformed ones mean nothing."""
        boxes = np.array([one.box or (0, 0, 0, 0) for one in found], dtype=float).reshape(-1, 4)
        if self.view is None:
            return boxes
        boxes = self.view.box_to_original(boxes * (*self.view.out, *self.view.out))
        return boxes if self.view.size is None else boxes.clip(0, (*self.view.size, *self.view.size))

    def _box(self, text: str, one: FoundBox, bbox: np.ndarray, label: str | None) -> BoxAnswer | Unparsed:
        if one.box is None or self.view is None:
            raw = text[slice(*one.span)]
            return Unparsed(f"{label} {raw}" if label else raw, one.problem or "a box, but the conversation has no picture")
        x1, y1, x2, y2 = bbox.tolist()
        return BoxAnswer(Box((x1, y1, x2, y2), label))

    def _words(self, text: str) -> list[Answer]:
        """Text without boxes: words, trajectory and time marks."""
        answers: list[Answer] = []
        start = 0
        for mark in _MARK.finditer(text):
            answers += _text(text[start : mark.start()])
            answers.append(self._trajectory(mark[1]) if mark[1] else _time(mark))
            start = mark.end()
        return answers + _text(text[start:])

    def _trajectory(self, tokens: str) -> TrajectoryAnswer | Unparsed:
        steps, start = len(tokens) // len(TRAJECTORY_TOKEN), self.step
        self.step += steps
        if self.paths is not None and self.paths.steps not in (None, steps):
            return Unparsed(tokens, f"a trajectory of {steps} steps, expected {self.paths.steps}")
        there = 0 if self.paths is None else self.paths.points.shape[1] - start
        if self.paths is None or self.view is None or there < steps:
            lacking = f"there are points for {max(there, 0)}" if self.view is not None else "the conversation has no picture"
            return Unparsed(tokens, f"a trajectory of {steps} steps, but {lacking}")
        points = np.asarray(self.paths.points, dtype=float)[:, start : start + steps]
        if not np.isfinite(points).all():
            return Unparsed(tokens, f"a trajectory of {steps} steps with points that are no numbers")
        presence = None if self.paths.presence is None else np.asarray(self.paths.presence[:, start : start + steps], dtype=float)
        others = None if self.paths.samples is None else np.asarray(self.paths.samples[:, :, start : start + steps], dtype=float)
        view = whole_frame(self.view) if self.paths.space == "frame" else self.view
        samples = None if others is None else view.to_original(others * view.out)
        return TrajectoryAnswer(view.to_original(points * view.out), self._spread(view, start, steps), presence, samples)

    def _spread(self, view: View, start: int, steps: int) -> np.ndarray | None:
        """Deviations in pixels of the picture: those of the grid, scaled as the view scales areas."""
        if self.paths is None or self.paths.spread is None:
            return None
        grid = np.sqrt(np.mean((self.paths.spread[:, start : start + steps] * view.out) ** 2, -1))
        return grid / np.sqrt(abs(np.linalg.det(view.matrix[:2, :2])))


def whole_frame(view: View) -> View:
    """The View whose grid is the whole original frame, for paths that are fractions of its sides."""
    return squash(view.size or view.out, view.out)


def _time(mark: re.Match[str]) -> TimeAnswer | Unparsed:
    index = int(mark[2])
    return TimeAnswer(index / TIME_STEPS) if index <= TIME_STEPS else Unparsed(mark[0], f"a moment beyond <t{TIME_STEPS}>")


def _text(text: str) -> list[Answer]:
    text = text.strip()
    return [TextAnswer(text)] if text.strip(_SEPARATORS) else []
