"""Forecasts that need no vision-language model: what a number in the table has to beat.

All start from the same observed places of the hands (`ClipQuestion.past`: exact ones where the data set has them, which makes these
rows harder to beat than with tracked ones). A hand that was never seen is forecast in the middle of the frame.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from pose_tools import forecast
from vlm.evaluation.trajectory import ClipQuestion
from vlm.evaluation.trajectory_scoring import PathReply, worse_path

Paths = dict[str, np.ndarray]
"""Question id → (2, T, 2) pixels of the last observed frame."""


def last_position(question: ClipQuestion) -> np.ndarray:
    """(2, T, 2): both hands stay where they were last seen."""
    return _forecast(question, forecast.last_position)


def constant_velocity(question: ClipQuestion) -> np.ndarray:
    """(2, T, 2): both hands go on as they went."""
    return _forecast(question, forecast.constant_velocity)


def kalman(question: ClipQuestion) -> np.ndarray:
    """(2, T, 2): what a Kalman filter with constant velocity expects."""
    return _forecast(question, lambda *observed: forecast.kalman(*observed, width=question.size[0]))


FORECASTS: dict[str, Callable[[ClipQuestion], np.ndarray]] = {
    "last position": last_position,
    "constant velocity": constant_velocity,
    "Kalman": kalman,
}


class MeanPath:
    """The training split's mean displacement of each hand at each step, in widths of the frame, from where the hand was last seen."""

    def __init__(self, questions: Sequence[ClipQuestion]) -> None:
        moves = np.stack([(q.future - last_position(q)) / q.size[0] for q in questions])  # NaN where not valid
        counts = np.isfinite(moves).all(-1, keepdims=True).sum(0)
        self.displacement = np.nansum(moves, axis=0) / np.maximum(counts, 1)

    def __call__(self, question: ClipQuestion) -> np.ndarray:
        """(2, T, 2) pixels."""
        return last_position(question) + self.displacement * question.size[0]


def penalties(questions: Sequence[ClipQuestion]) -> Paths:
    """What an answer without a path is scored as: hand by hand the worse of last position and constant velocity.

    No model gains by keeping silent: it could always have said the better of the two.
    """
    return {q.id: worse_path(q, last_position(q), constant_velocity(q)) for q in questions}


def answer_all(questions: Sequence[ClipQuestion], baseline: Callable[[ClipQuestion], np.ndarray]) -> Mapping[str, PathReply]:
    """A baseline's replies by question id."""
    return {question.id: PathReply(baseline(question)) for question in questions}


def _forecast(question: ClipQuestion, method: Callable[..., np.ndarray]) -> np.ndarray:
    past = question.past
    points = method(past, np.isfinite(past).all(-1), question.past_times, question.future_times)
    return np.where(np.isfinite(points), points, np.array(question.size) / 2)
