"""Forecast paths against where the hands went. Points are pixels of the last observed frame, hands left, right.

The unit of the headline is the 256-px unit: pixels · 256 / width of the frame.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from pose_tools.metrics import trajectory_errors
from vlm.evaluation.trajectory import ClipQuestion

UNITS = ("256 px", "px", "normalised")
DIGITS = 3
"""Decimals of a pixel that are kept in records."""


@dataclass(frozen=True, eq=False)
class PathReply:
    """What a model (or a baseline) said: `points` (2, T, 2), None where that is no answer, and then `reason` says why.

    `futures` (K, 2, T, 2) are further possible paths, `spread` (2, T) one standard deviation in pixels; both may be None. `output` is the
    text as generated. `written` (2, n, 2): the points of all path tokens of what is no answer, which the published evaluation reads.
    """

    points: np.ndarray | None
    futures: np.ndarray | None = None
    spread: np.ndarray | None = None
    output: str | None = None
    reason: str | None = None
    written: np.ndarray | None = None

    @property
    def valid(self) -> bool:
        return self.points is not None

    def as_record(self) -> dict[str, Any]:
        arrays = {"points": self.points, "futures": self.futures, "spread": self.spread}
        arrays |= {} if self.written is None else {"written": self.written}
        rounded = {name: None if value is None else np.round(value, DIGITS).tolist() for name, value in arrays.items()}
        return {"valid": self.valid, **rounded, "output": self.output, "reason": self.reason}

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> PathReply:
        arrays = {name: record.get(name) for name in ("points", "futures", "spread", "written")}
        there = {name: None if value is None else np.asarray(value, dtype=float) for name, value in arrays.items()}
        return cls(**there, output=record.get("output"), reason=record.get("reason"))


@dataclass(frozen=True, eq=False)
class PathErrors:
    """Errors of one condition on a list of questions; arrays (N, 2), NaN where a hand does not count.

    `ade`, `fde`, `wde` of the one answer, `min_ade`, `min_fde` of the best of its K futures, all in 256-px units, and `per_step`
    (N, 2, T) likewise; `other_units`: the mean ADE and FDE in pixels and in fractions of the frame's sides; `invalid` (N,) bool.
    """

    ade: np.ndarray
    fde: np.ndarray
    wde: np.ndarray
    min_ade: np.ndarray
    min_fde: np.ndarray
    per_step: np.ndarray
    other_units: dict[str, tuple[float, float]]
    invalid: np.ndarray
    futures: int


def path_errors(questions: Sequence[ClipQuestion], replies: Mapping[str, PathReply], penalties: Mapping[str, np.ndarray]) -> PathErrors:
    """The errors of `replies` (by question id). What is no answer is scored as the path in `penalties` (2, T, 2), and counted."""
    answers = [replies[question.id] for question in questions]
    paths = [penalties[q.id] if a.points is None else a.points for q, a in zip(questions, answers)]
    points = np.stack(paths)
    futures = np.stack(_same_number([path[None] if a.futures is None else a.futures for path, a in zip(paths, answers)]))
    truth = np.stack([question.future for question in questions])
    valid = np.stack([question.valid for question in questions])

    def measured(paths: np.ndarray, unit: str) -> dict[str, Any]:
        scale = np.stack([unit_scale(question.size, unit) for question in questions])[:, None, None]
        return trajectory_errors(paths * scale[:, None], truth * scale, valid)

    one = measured(points[:, None], UNITS[0])
    best = measured(futures, UNITS[0])["per_hand"]
    others = {unit: measured(points[:, None], unit) for unit in UNITS[1:]}
    hand = one["per_hand"]
    return PathErrors(
        ade=hand["ade"],
        fde=hand["fde"],
        wde=hand["wde"],
        min_ade=best["min_ade"],
        min_fde=best["min_fde"],
        per_step=one["per_step"],
        other_units={unit: (found["ade"], found["fde"]) for unit, found in others.items()},
        invalid=np.array([not answer.valid for answer in answers]),
        futures=futures.shape[1],
    )


def unit_scale(size: tuple[int, int], unit: str) -> np.ndarray:
    """(2,) factors from pixels of a frame of `size` (width, height) to a unit of UNITS."""
    width, height = size
    return {"256 px": np.full(2, 256 / width), "px": np.ones(2), "normalised": np.array([1 / width, 1 / height])}[unit]


def worse_path(question: ClipQuestion, first: np.ndarray, second: np.ndarray) -> np.ndarray:
    """Of two paths (2, T, 2), hand by hand the one with the greater mean error over the valid steps."""
    errors = trajectory_errors(np.stack([first, second])[:, None], np.stack([question.future] * 2), np.stack([question.valid] * 2))
    ade = np.nan_to_num(errors["per_hand"]["ade"])
    return np.where((ade[1] > ade[0])[:, None, None], second, first)


def _same_number(futures: list[np.ndarray]) -> list[np.ndarray]:
    """Answers with a single path beside answers with K of them: that path K times."""
    most = max(len(paths) for paths in futures)
    return [np.repeat(paths, most, axis=0) if len(paths) == 1 else paths for paths in futures]
