"""Answers that need no model: what a number in the table has to beat."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from data.sample import Sample
from vlm.evaluation.referral import Question
from vlm.evaluation.scoring import LABELLED_BOXES, ONE_BOX, WORDS, Reply

HAND_LABELS = {"left": "left hand", "right": "right hand"}


def centre_box(size: tuple[int, int], kind: str) -> Reply | None:
    """The middle half of a picture of `size` (width, height); None for kinds answered in words."""
    width, height = size
    box = [width / 4, height / 4, 3 * width / 4, 3 * height / 4]
    if kind in LABELLED_BOXES:
        return Reply(boxes=[box, box], labels=list(HAND_LABELS.values()))
    return Reply(boxes=[box], labels=[None]) if kind in ONE_BOX else None


class Prior:
    """What the training split answers on average: the mean box of a kind (and label), the most frequent words of a kind."""

    def __init__(self, samples: Iterable[tuple[Sample, tuple[int, int]]]) -> None:
        """`samples`: training samples, each with its picture's size (width, height)."""
        boxes: dict[tuple[str, str | None], list[np.ndarray]] = defaultdict(list)
        words: dict[str, Counter[str]] = defaultdict(Counter)
        for sample, (width, height) in samples:
            targets = sample.targets
            for box, label in zip(targets["boxes"], targets.get("labels") or [None] * len(targets["boxes"])):
                boxes[targets["kind"], label if targets["kind"] in LABELLED_BOXES else None].append(
                    np.asarray(box) / [width, height, width, height]
                )
            if targets.get("text"):
                words[targets["kind"]][targets["text"]] += 1
        self.boxes = {key: np.mean(value, axis=0) for key, value in boxes.items()}
        self.words = {kind: min(count, key=lambda text: (-count[text], text)) for kind, count in words.items()}

    def __call__(self, size: tuple[int, int], kind: str) -> Reply | None:
        """The prior's answer for a picture of `size`; None where the training split has no such kind."""
        scale = np.array([*size, *size], float)
        if kind in WORDS:
            return Reply(text=self.words[kind]) if kind in self.words else None
        labels = [label for name, label in sorted(self.boxes, key=str) if name == kind]
        boxes = [(self.boxes[kind, label] * scale).tolist() for label in labels]
        return Reply(boxes=boxes, labels=labels) if boxes else None


def detector_alone(tokens: np.ndarray, kind: str) -> Reply | None:
    """What the hand detector says without a language model; None for kinds it knows nothing about.

    `tokens` (2, 11) as in `pose_tools.detect.detection_tokens`: left, right; NaN where there is nothing.
    """
    rows = dict(zip(HAND_LABELS, tokens))
    what, _, side = kind.partition("_")
    if kind == "hands":
        found = {HAND_LABELS[name]: row[:4].tolist() for name, row in rows.items() if np.isfinite(row[0])}
        return Reply(none=not found, boxes=list(found.values()), labels=list(found))
    if side not in rows or what not in ("hand", "held"):
        return None
    box = rows[side][:4] if what == "hand" else rows[side][6:10]
    return Reply(boxes=[box.tolist()], labels=[None]) if np.isfinite(box).all() else Reply(none=True)


def answer_all(questions: Sequence[Question], baseline: Callable[[Question], Reply | None]) -> dict[str, Reply]:
    """A baseline's replies by question id, without those it has no answer for."""
    replies = {question.id: baseline(question) for question in questions}
    return {name: reply for name, reply in replies.items() if reply is not None}
