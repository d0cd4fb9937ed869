"""Referral: where are the hands and the things they hold. Picks the questions, and says what each condition shows the model."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import Image

from data.groups import DatasetError
from data.sample import Sample
from data.synthetic.questions import questions
from data.synthetic.scenes import read_scenes
from pose_tools.image_io import read_image
from vlm.evaluation.scoring import Reply, Score, score
from vlm.training_data import with_pose

logger = logging.getLogger(__name__)

ROWS = {
    "hand": ("hand_left", "hand_right"),
    "both hands": ("hands",),
    "held object": ("held_left", "held_right"),
    "named object": ("object",),
    "which hand holds it": ("holding_hand",),
    "name of what is held": ("held_name",),
    "contact": ("contact",),
}
"""Rows of the table: title → question kinds."""


@dataclass(frozen=True)
class Question:
    """A sample to answer; `row` is its line in the table, `other_hand` the box of the hand not asked for if both are seen."""

    sample: Sample
    row: str
    other_hand: list[float] | None = None

    @property
    def id(self) -> str:
        return self.sample.id

    @property
    def kind(self) -> str:
        return self.sample.targets["kind"]

    @property
    def none(self) -> bool:
        """Whether the true answer is that there is no such thing."""
        return not self.sample.targets["boxes"] and not self.sample.targets.get("text")

    @property
    def cluster(self) -> str:
        """Questions about one video (or one picture, where there is no video) rise and fall together."""
        source = self.sample.source
        return source.video_id or f"{source.dataset}/{source.frame}"

    def score(self, reply: Reply) -> Score:
        return score(reply, self.sample.targets, self.other_hand)


@dataclass(frozen=True)
class Condition:
    """What the model gets to see of a question."""

    name: str
    pose: Literal["own", "off", "shuffled"] = "off"
    image: bool = True
    own_question: bool = True


CONDITIONS = (
    Condition("as shipped", pose="own"),
    Condition("pixels only"),
    Condition("detections shuffled", pose="shuffled"),
    Condition("no image", image=False),
    Condition("shuffled question", pose="own", own_question=False),
)


def select(candidates: Iterable[Question], per_row: int, none_share: float = 0.25, seed: int = 0) -> list[Question]:
    """At most `per_row` questions of every row, `none_share` of them with the answer "none", in the order they came.

    The draw depends on the seed and the questions' ids alone. A row that lacks questions of one sort is filled up with the
    other; the table says how many of each there are.
    """
    candidates = list(candidates)
    chosen: set[str] = set()
    for row in ROWS:
        drawn = drawn_order([q for q in candidates if q.row == row], seed)
        none, some = [q for q in drawn if q.none], [q for q in drawn if not q.none]
        n_none = min(len(none), max(round(per_row * none_share), per_row - len(some)) if none else 0)
        picked = none[:n_none] + some[: per_row - n_none]
        if 0 < len(picked) < per_row:
            logger.warning("row %r: only %d questions of %d; make more scenes for more", row, len(picked), per_row)
        chosen.update(q.id for q in picked)
    return [q for q in candidates if q.id in chosen]


def drawn_order(items: Iterable[Any], seed: int, key: Callable[[Any], str] = lambda item: item.id) -> list[Any]:
    """Items in an order that depends on the seed and their keys (by default their `id`) alone."""
    return sorted(items, key=lambda item: _hash(seed, key(item)))


def shuffled(asked: Sequence[Question], seed: int = 0) -> dict[str, Question]:
    """For every question id another question, of another picture and another kind, drawn by the seed.

    Raises ValueError where all questions are of one kind or about one picture.
    """
    order = sorted(asked, key=lambda q: _hash(seed, "shuffle", q.id))
    found = partners(order, lambda question, other: other.kind != question.kind and image_of(other) != image_of(question))
    if alone := next((q.id for q in order if q.id not in found), None):
        raise ValueError(f"question {alone!r} has no partner of another kind and picture: nothing to shuffle with")
    return found


def partners(order: Sequence[Any], fit: Callable[[Any, Any], bool]) -> dict[str, Any]:
    """For every question's id the next question that fits it in the `order`, taken as a ring; those that none fits are left out."""
    found = {}
    for place, question in enumerate(order):
        others = (order[(place + step) % len(order)] for step in range(1, len(order)))
        if (other := next((other for other in others if fit(question, other)), None)) is not None:
            found[question.id] = other
    return found


def conversation(
    question: Question,
    condition: Condition,
    *,
    tokens: Callable[[Any], np.ndarray] | None,
    partner: Question,
) -> list[dict[str, Any]]:
    """The messages the model is asked with. `tokens(image)` are the detections (2, 11) of a picture; `partner` is the question
    that lends its wording or its detections where the condition shuffles them."""
    asked = question if condition.own_question else partner
    words = [part for part in asked.sample.messages[0]["content"] if part["type"] == "text"]
    picture = image_of(question)
    shown = picture if condition.image else np.full_like(read_image(picture), 127)
    messages = [{"role": "user", "content": [{"type": "image", "image": shown}, *words]}]
    if condition.pose == "off":
        return messages
    if tokens is None:
        raise ValueError(f"the condition {condition.name!r} shows detections, and none were given")
    return with_pose(messages, "detection", tokens(image_of(partner if condition.pose == "shuffled" else question)))


def image_of(question: Question) -> Any:
    """The picture of a question: the first image part of its first turn."""
    return next(part["image"] for part in question.sample.messages[0]["content"] if part["type"] == "image")


def picture_sizes(questions: Iterable[Question]) -> dict[str, tuple[int, int]]:
    """(width, height) of the picture of every question, by question id; each file's header is read once."""
    sizes: dict[Any, tuple[int, int]] = {}
    found = {}
    for question in questions:
        picture = image_of(question)
        if picture not in sizes:
            with Image.open(picture) as image:
                sizes[picture] = image.size
        found[question.id] = sizes[picture]
    return found


def _hash(*parts: Any) -> str:
    return hashlib.sha256("/".join(map(str, parts)).encode()).hexdigest()


def read_questions(folder: Path, seed: int = 0, limit: int | None = None) -> list[Question]:
    """Every question about a folder of synthetic scenes, in the wording of the folder's own split.

    `limit`: only the first so many scenes. Raises DatasetError for a folder that is none.
    """
    split = split_of(folder)
    row_of = {kind: row for row, kinds in ROWS.items() for kind in kinds}
    found = []
    for record in read_scenes(folder)[:limit]:
        boxes = {hand["side"]: hand["bbox_xyxy"] for hand in record["hands"]}
        for sample in questions(record, folder, split=split, seed=seed):
            kind, side = sample.targets["kind"], sample.targets["side"]
            other = boxes.get("right" if side == "left" else "left") if kind in ("hand_left", "hand_right") and side in boxes else None
            found.append(Question(sample, row_of[kind], other))
    if not found:
        raise DatasetError(f"{folder}: holds no scenes; make some with scripts/make_synthetic.py")
    return found


def split_of(folder: Path) -> str:
    """The split that a folder of synthetic scenes was made for. Raises DatasetError for a folder that is none."""
    manifest = folder / "manifest.json"
    try:
        return json.loads(manifest.read_text(encoding="utf-8"))["split"]
    except (OSError, ValueError, KeyError) as error:
        remedy = "make one with scripts/make_synthetic.py"
        raise DatasetError(f"{folder}: not a folder of synthetic scenes ({manifest.name}: {error}); {remedy}") from error
