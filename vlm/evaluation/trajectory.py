"""Trajectory: where will each hand go in the next second. Picks the clips, and says what each condition shows the model.

A question is one action about one clip; several actions may share a clip ("same start, different goal"). Points are pixels of the
last observed frame, hands left, right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from data.groups import DatasetError, open_groups
from data.sample import Sample
from pose_tools.image_io import read_image
from vlm.evaluation.referral import Condition, drawn_order, partners
from vlm.training_data import with_pose

CONDITIONS = (
    Condition("as shipped", pose="own"),
    Condition("hand tokens off"),
    Condition("no image", pose="own", image=False),
    Condition("shuffled goal", pose="own", own_question=False),
)


@dataclass(frozen=True)
class ClipQuestion:
    """A sample of a clip reader, with its targets as arrays (see `data.groups`, kind "clip_trajectory")."""

    sample: Sample

    @property
    def id(self) -> str:
        return self.sample.id

    @property
    def start(self) -> str:
        """What all questions about the same observed frames share."""
        return str(self.sample.targets["start"])

    @property
    def cluster(self) -> str:
        """Questions about one video rise and fall together."""
        return self.sample.source.video_id or self.start

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) of the last observed frame."""
        width, height = self.sample.targets["size"]
        return int(width), int(height)

    @property
    def side(self) -> str | None:
        """The hand the question is about, "left" or "right"; None where it is about both or does not say."""
        side = self.sample.targets.get("side")
        return side if side in ("left", "right") else None

    @cached_property
    def future(self) -> np.ndarray:
        """(2, T, 2) where the hands go; NaN where a step is not valid."""
        points = np.asarray(self.sample.targets["future"], dtype=float)
        return np.where(self.valid[..., None], points, np.nan)

    @cached_property
    def valid(self) -> np.ndarray:
        """(2, T) bool."""
        return np.asarray(self.sample.targets["valid"], dtype=bool)

    @property
    def labelled(self) -> np.ndarray:
        """(2,) bool: the hand has a label, be its steps in the frame or not; what the published evaluation counts."""
        return np.asarray(self.sample.targets.get("labelled", self.valid.any(-1)), dtype=bool)

    @cached_property
    def past(self) -> np.ndarray:
        """(2, P, 2) where the hands were, NaN where one was not seen; P = 1 where the data set tells the last observed moment alone
        (all NaN where it does not tell that either)."""
        points = self.sample.targets.get("past")
        if points is None:
            return np.full((2, 1, 2), np.nan)
        seen = np.asarray(self.sample.targets["past_valid"], dtype=bool)
        return np.where(seen[..., None], np.asarray(points, dtype=float), np.nan)

    @property
    def past_times(self) -> np.ndarray:
        """(P,) seconds."""
        times = self.sample.targets.get("past_times")
        return np.asarray([0.0] if times is None else times, dtype=float)

    @property
    def future_times(self) -> np.ndarray:
        """(T,) seconds on the same clock."""
        return np.asarray(self.sample.targets["future_times"], dtype=float)

    @property
    def frames(self) -> list[Any]:
        """The observed frames, in order, as the message has them."""
        return list(next(part["video"] for part in self.sample.messages[0]["content"] if part["type"] == "video"))

    @property
    def words(self) -> str:
        return " ".join(part["text"] for part in self.sample.messages[0]["content"] if part["type"] == "text")


def read_clip_questions(folder: Path, *, split: str, seed: int = 0, options: dict[str, Any] | None = None) -> list[ClipQuestion]:
    """Every question about a folder of clips, in its order. Raises DatasetError for a folder that holds none."""
    groups = open_groups("clip_trajectory", folder, seed=seed, split=split, options=options)
    found = [ClipQuestion(sample) for index in range(len(groups)) for sample in groups.read(index, 0)]
    if not found:
        raise DatasetError(f"{folder}: holds no clip with a future to forecast; make some with scripts/make_synthetic.py clips")
    steps = {question.valid.shape[1] for question in found}
    if len(steps) > 1:
        raise DatasetError(f"{folder}: futures of {sorted(steps)} steps; one evaluation needs one number of steps")
    return found


def select_clips(questions: Sequence[ClipQuestion], clips: int | None, seed: int = 0) -> list[ClipQuestion]:
    """All questions about at most so many starts, in the order they came; the draw depends on the seed and the starts' names alone."""
    if clips is None:
        return list(questions)
    chosen = set(drawn_order({question.start for question in questions}, seed, key=str)[:clips])
    return [question for question in questions if question.start in chosen]


def other_goals(questions: Iterable[ClipQuestion], seed: int = 0) -> dict[str, ClipQuestion]:
    """For every question id another question about the same start that asks in other words and has another future.

    Only questions that have such a partner are in it.
    """
    by_start: dict[str, list[ClipQuestion]] = {}
    for question in questions:
        by_start.setdefault(question.start, []).append(question)
    found: dict[str, ClipQuestion] = {}
    for members in by_start.values():
        found |= partners(
            drawn_order(members, seed),
            lambda question, other: other.words != question.words and not np.array_equal(other.future, question.future, equal_nan=True),
        )
    return found


def conversation(
    question: ClipQuestion,
    condition: Condition,
    *,
    tokens: Callable[[ClipQuestion], np.ndarray] | None,
    partner: ClipQuestion,
) -> list[dict[str, Any]]:
    """The messages the model is asked with. `tokens(question)` are the tracked hands (2 · frames, 11) of a clip; `partner` is the
    question that lends its words where the condition swaps the goal."""
    (turn, *_) = question.sample.messages
    words = [part for part in (question if condition.own_question else partner).sample.messages[0]["content"] if part["type"] == "text"]
    video = next(part for part in turn["content"] if part["type"] == "video")
    if not condition.image:
        grey = np.full_like(read_image(video["video"][-1]), 127)
        video = {**video, "video": [grey] * len(video["video"])}
    messages = [{"role": "user", "content": [video, *words]}]
    if condition.pose == "off":
        return messages
    if tokens is None:
        raise ValueError(f"the condition {condition.name!r} shows tracked hands, and none were given")
    return with_pose(messages, "track", tokens(question))
