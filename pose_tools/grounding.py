"""Numbers ↔ text for boxes, in the dialects that models speak. Knows nothing of language models or of answers.

norm1000   `[x1, y1, x2, y2]`, whole numbers 0–1000: a thousandth of the picture's width (x) or height (y), rounded
minigpt    `{<x1><y1><x2><y2>}`, whole numbers 0–100: a hundredth, rounded

`compat="vlm4hoi"` (minigpt only) is the codec that VLM4HOI was trained and scored with: truncation towards zero both ways,
no clamping, minus signs and decimals accepted, inverted boxes passed on.

Reading is linear in the length of the text. What looks like a box but is none (inverted, out of range, three numbers, other
digits than 0–9, cut off) is reported with its reason, so that nobody can lose it silently.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from pose_tools.types import Box

logger = logging.getLogger(__name__)

DialectName = Literal["norm1000", "minigpt"]
Numbers = tuple[float, float, float, float]

_LONGEST = 200  # characters between the brackets of an attempt at a box
_SHOWN = 60  # characters of a faulty text that an error message repeats


@dataclass(frozen=True)
class Dialect:
    """How one dialect writes a box: `steps` in a full side, a template, and what an attempt at a box looks like."""

    steps: int
    template: str
    attempt: re.Pattern[str]
    exact: re.Pattern[str]
    lenient: re.Pattern[str]
    example: str


def _attempt(opening: str, inside: str, closing: str, two: str) -> re.Pattern[str]:
    """An attempt at a box is a bracket that holds only digits (of any script), signs and separators, at least one digit.

    The closing bracket may be missing at the end of the text (an answer cut short), after `_LONGEST` characters, or where `two`
    numbers stand behind the bracket already (words, or the next box, begin in the middle of this one). Nothing backtracks and no run
    of characters is read from two brackets, so any text is read in linear time.
    """
    run, most = rf"[{inside}]", rf"[{inside}]{{0,{_LONGEST}}}+"
    return re.compile(rf"{opening}(?={run}{{0,{_LONGEST}}}?\d)(?:{most}(?:{closing}|\Z)|{run}{{{_LONGEST},}}+|(?={two}){most})")


DIALECTS: dict[str, Dialect] = {
    "norm1000": Dialect(
        1000,
        "[{}, {}, {}, {}]",
        _attempt(r"\[", r"\d\s,.;+\-", r"\]", two=r"\d{1,9}+\s{0,9}+,\s{0,9}+\d"),
        re.compile(r"\[\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*,\s*([0-9]{1,9})\s*\]"),
        re.compile(r"\[\s*" + r"\s*,\s*".join([r"(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)"] * 4) + r"\s*\]"),
        "[120, 45, 380, 290]",
    ),
    "minigpt": Dialect(
        100,
        "{{<{}><{}><{}><{}>}}",
        _attempt(r"\{", r"\d\s<>,.;+\-", r"\}", two=r"<\d{1,9}+><\d"),
        re.compile(r"\{<([0-9]{1,9})><([0-9]{1,9})><([0-9]{1,9})><([0-9]{1,9})>\}"),
        re.compile(r"\{" + r"<(-?[0-9]{1,9}(?:\.[0-9]{1,9})?)>" * 4 + r"\}"),
        "{<12><4><38><29>}",
    ),
}


_PUBLISHED = re.compile(r"\{" + r"<(-?[0-9]+(?:\.[0-9]+)?)>" * 4 + r"\}")
"""With compat numbers may be of any length, as in a model's answer that repeats a digit."""


@dataclass(frozen=True)
class FoundBox:
    """One attempt at a box in a text: its `span` (start, end), and either its normalised numbers or the `problem`.

    `box` (x1, y1, x2, y2) as fractions of the picture's width and height, 0–1 (beyond that only with compat).
    """

    span: tuple[int, int]
    box: Numbers | None
    problem: str | None = None


def format_numbers(box: Sequence[float], dialect: DialectName = "norm1000", compat: bool | str | None = None) -> str:
    """Text of a normalised box (x1, y1, x2, y2), fractions of width and height; clamped to 0–1 unless compat.

    Raises ValueError for numbers that are not finite, and for x2 < x1 or y2 < y1.
    """
    rule = _dialect(dialect, compat)
    numbers = [float(v) for v in box]
    if len(numbers) != 4 or not all(math.isfinite(v) for v in numbers):
        raise ValueError(f"a box needs four finite numbers x1, y1, x2, y2, got {list(box)!r}")
    if compat:
        return rule.template.format(*(int(v * rule.steps) for v in numbers))
    if numbers[2] < numbers[0] or numbers[3] < numbers[1]:
        raise ValueError(f"a box needs x1 <= x2 and y1 <= y2, got {numbers}")
    return rule.template.format(*(round(min(max(v, 0.0), 1.0) * rule.steps) for v in numbers))


def find_boxes(text: str, dialect: DialectName = "norm1000", compat: bool | str | None = None) -> list[FoundBox]:
    """Every attempt at a box in `text`, in order; the malformed ones carry their problem instead of numbers."""
    rule = _dialect(dialect, compat)
    return [_read(match, rule, compat) for match in rule.attempt.finditer(text)]


def format_box(
    bbox_xyxy: Sequence[float], image_size: tuple[int, int], dialect: DialectName = "norm1000", compat: bool | str | None = None
) -> str:
    """Text of a box in pixels xyxy of a picture of `image_size` (width, height); clamped to the picture unless compat.

    The picture is the one whose sides the model's numbers mean: the grid of its View, or the original where that was squashed.
    Raises ValueError for numbers that are not finite, and for x2 < x1 or y2 < y1.
    """
    width, height = _image_size(image_size)
    box = [float(v) for v in bbox_xyxy]
    if len(box) != 4:
        raise ValueError(f"a box needs four numbers x1, y1, x2, y2, got {box}")
    return format_numbers([v / side for v, side in zip(box, (width, height) * 2, strict=True)], dialect, compat)


def parse_boxes(
    text: str,
    image_size: tuple[int, int],
    dialect: DialectName = "norm1000",
    compat: bool | str | None = None,
    problems: list[str] | None = None,
) -> list[Box]:
    """The well-formed boxes of `text`, in pixels xyxy of a picture of `image_size` (width, height), in order.

    What looks like a box but is none is appended to `problems`, one line each (without a list it is logged as a warning).
    With `compat="vlm4hoi"` the pixels are truncated to whole numbers, as its scorer does.
    """
    width, height = _image_size(image_size)
    boxes, faults = [], []
    for found in find_boxes(text, dialect, compat):
        if found.box is None:
            faults.append(found.problem or "")
            continue
        x1, y1, x2, y2 = (v * side for v, side in zip(found.box, (width, height) * 2, strict=True))
        if compat:
            x1, y1, x2, y2 = (float(int(v)) for v in (x1, y1, x2, y2))
        boxes.append(Box((x1, y1, x2, y2)))
    if problems is not None:
        problems.extend(faults)
    elif faults:
        logger.warning("%d of %d boxes could not be read; the first: %s", len(faults), len(faults) + len(boxes), faults[0])
    return boxes


def _read(match: re.Match[str], rule: Dialect, compat: bool | str | None) -> FoundBox:
    raw = match.group()
    exact = (_PUBLISHED if compat else rule.exact).fullmatch(raw)
    if exact is None:
        return FoundBox(match.span(), None, f"{_malformed(raw, rule)}: {raw[:_SHOWN]!r}, expected for example {rule.example}")
    numbers = [float(v) for v in exact.groups()]
    if not compat:
        if max(numbers) > rule.steps:
            return FoundBox(match.span(), None, f"number out of range 0-{rule.steps}: {raw[:_SHOWN]!r}")
        if numbers[2] < numbers[0] or numbers[3] < numbers[1]:
            return FoundBox(match.span(), None, f"inverted box (x2 < x1 or y2 < y1): {raw[:_SHOWN]!r}")
    x1, y1, x2, y2 = (v / rule.steps for v in numbers)
    return FoundBox(match.span(), (x1, y1, x2, y2))


def _malformed(raw: str, rule: Dialect) -> str:
    if any(ch.isdigit() and not ch.isascii() for ch in raw):
        return "digits other than 0-9"
    if len(raw) > _LONGEST + 2:
        return "box without end"
    if raw[-1] not in "]}":
        return "box cut off"
    if rule.lenient.fullmatch(raw):
        return "negative number" if "-" in raw else "not a whole number"
    numbers = len(re.findall(r"[0-9]+", raw))
    return f"box of {numbers} numbers" if numbers != 4 else "malformed box"


def _dialect(name: str, compat: bool | str | None) -> Dialect:
    if name not in DIALECTS:
        raise ValueError(f"unknown dialect {name!r}, expected one of {', '.join(DIALECTS)}")
    if compat and (compat not in (True, "vlm4hoi") or name != "minigpt"):
        raise ValueError(f"compat={compat!r} with dialect {name!r} does not exist, only compat='vlm4hoi' with 'minigpt'")
    return DIALECTS[name]


def _image_size(image_size: tuple[int, int]) -> tuple[float, float]:
    width, height = (float(v) for v in image_size)
    if not (width > 0 and height > 0):
        raise ValueError(f"image_size must be a positive (width, height), got {image_size!r}")
    return width, height
