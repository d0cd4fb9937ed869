"""Scored replies → numbers with intervals → markdown, and its place in a model card."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_tools.files import write_text
from pose_tools.metrics import clustered_interval
from pose_tools.user_error import UserError
from vlm.evaluation.scoring import Score


class CardError(UserError):
    """A model card in which a table's place cannot be found; the message names the markers."""


@dataclass(frozen=True)
class Measure:
    """A share in 0..1 (None where nothing could be counted) with its 95 % interval over clusters."""

    value: float | None
    low: float | None = None
    high: float | None = None

    def __str__(self) -> str:
        if self.value is None:
            return "–"
        return f"{self.value:.3f}" if self.low is None else f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


@dataclass(frozen=True)
class Line:
    """One line of the table: a row (or a kind) under one condition."""

    row: str
    condition: str
    n: int
    n_none: int
    valid: Measure
    hit: Measure
    mean_iou: Measure
    none_f1: Measure
    right: Measure
    wrong_side: Measure


def share(values: Sequence[float | bool], clusters: Sequence[str], interval: bool = True) -> Measure:
    """Mean of `values` with its interval; clusters as in `pose_tools.metrics.clustered_interval`."""
    if not len(values):
        return Measure(None)
    numbers = np.asarray(values, dtype=float)
    if not interval or len(set(clusters)) < 2:
        return Measure(float(numbers.mean()))
    low, high = clustered_interval(numbers, clusters, level=0.95, seed=0)
    return Measure(float(numbers.mean()), float(low), float(high))


def none_f1(scores: Sequence[Score]) -> Measure:
    """F1 of the answer "none": 2 TP / (2 TP + FP + FN). None where no question is of that sort and nobody said it."""
    both = sum(s.truth_none and s.said_none for s in scores)
    either = sum(s.truth_none for s in scores) + sum(s.said_none for s in scores)
    return Measure(2 * both / either) if either else Measure(None)


def summarise(row: str, condition: str, scores: Sequence[Score], clusters: Sequence[str]) -> Line:
    """The numbers of one line; `clusters` names the video (or picture) of every score."""

    def of(name: str, interval: bool = True) -> Measure:
        counted = [(getattr(s, name), c) for s, c in zip(scores, clusters) if getattr(s, name) is not None]
        return share([value for value, _ in counted], [cluster for _, cluster in counted], interval)

    return Line(
        row=row,
        condition=condition,
        n=len(scores),
        n_none=sum(s.truth_none for s in scores),
        valid=of("valid", interval=False),
        hit=of("hit"),
        mean_iou=of("iou", interval=False),
        none_f1=none_f1(scores),
        right=of("right"),
        wrong_side=of("wrong_side"),
    )


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """A markdown table; cells are written with str."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(str(cell).replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def referral_table(lines: Sequence[Line]) -> str:
    """All lines as one markdown table."""
    header = ["question", "answered by", "n (none)", "valid", "box @0.5", "mean IoU", "none F1", "all right", "wrong side"]
    rows = [[x.row, x.condition, f"{x.n} ({x.n_none})", x.valid, x.hit, x.mean_iou, x.none_f1, x.right, x.wrong_side] for x in lines]
    return markdown_table(header, rows)


def into_card(card: Path, section: str, text: str) -> None:
    """Replace what stands between the section's markers in a markdown file; append a new section where there is none.

    Markers: `<!-- evaluate:SECTION -->` … `<!-- /evaluate:SECTION -->`. Everything else in the file stays as it is.
    Raises CardError where only one of the two markers is there, or one of them twice.
    """
    opening, closing = f"<!-- evaluate:{section} -->", f"<!-- /evaluate:{section} -->"
    old = card.read_text(encoding="utf-8") if card.exists() else ""
    if (opening in old) != (closing in old) or old.count(opening) > 1:
        raise CardError(f"{card}: expected the markers {opening} and {closing} once each, or not at all; repair the file and run again")
    block = f"{opening}\n{text.strip()}\n{closing}"
    if opening in old:
        before, rest = old.split(opening, 1)
        new = before + block + rest.split(closing, 1)[1]
    else:
        new = old.rstrip("\n") + ("\n\n" if old.strip() else "") + block + "\n"
    write_text(card, new)
