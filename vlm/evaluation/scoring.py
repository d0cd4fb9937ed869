"""One reply against its truth. Boxes are xyxy pixels of the original picture; labels are "left hand" and "right hand"."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from pose_tools.metrics import box_iou

ONE_BOX = frozenset({"hand_left", "hand_right", "held_left", "held_right", "object"})
LABELLED_BOXES = frozenset({"hands"})
WORDS = frozenset({"holding_hand", "held_name", "contact"})
KINDS = ONE_BOX | LABELLED_BOXES | WORDS
IOU_THRESHOLD = 0.5


@dataclass(frozen=True)
class Reply:
    """What a model (or a baseline) said. `output` is its text as generated, None for a baseline that writes none."""

    none: bool = False
    boxes: list[list[float]] = field(default_factory=list)
    labels: list[str | None] = field(default_factory=list)
    text: str | None = None
    valid: bool = True
    output: str | None = None

    def as_record(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_record(cls, record: dict[str, Any]) -> Reply:
        return cls(**{name: record[name] for name in cls.__dataclass_fields__ if name in record})


@dataclass(frozen=True)
class Score:
    """How a reply did. `iou` and `hit` are about questions whose truth is a box: a wrong "none" is a miss with IoU 0."""

    right: bool
    valid: bool
    truth_none: bool
    said_none: bool
    iou: float | None = None
    hit: bool | None = None
    wrong_side: bool | None = None


def iou(a: Sequence[float], b: Sequence[float]) -> float:
    """Intersection over union of two boxes."""
    return float(box_iou(a, b))


def answers_the_kind(reply: Reply, kind: str) -> bool:
    """Whether the reply has the form its question asks for: none, one box, labelled boxes, or words."""
    if not reply.valid:
        return False
    if reply.none:
        return not reply.boxes and kind != "contact"
    if kind in ONE_BOX:
        return len(reply.boxes) == 1
    if kind in LABELLED_BOXES:
        return 0 < len(reply.boxes) == len(set(reply.labels)) and None not in reply.labels
    return not reply.boxes and bool(reply.text)


def score(reply: Reply, targets: dict[str, Any], other_hand: Sequence[float] | None = None) -> Score:
    """Compare a reply with a sample's `targets` (kind, boxes, labels, text). `other_hand` is the box of the hand that was
    not asked for, when both are in the picture. What has the wrong form is invalid and wrong.

    Raises ValueError for a kind that is not known.
    """
    kind = targets["kind"]
    if kind not in KINDS:
        raise ValueError(f"question kind {kind!r} is not known; known are {', '.join(sorted(KINDS))}")
    valid = answers_the_kind(reply, kind)
    said_none = valid and reply.none
    if kind in WORDS:
        truth = targets["text"]
        right = valid and (reply.none if truth is None else _plain(reply.text) == _plain(truth))
        return Score(right, valid, truth is None, said_none)
    truth_none = not targets["boxes"]
    if truth_none:
        return Score(said_none, valid, True, said_none)
    mean, hit = _match(reply, targets) if valid and not reply.none else (0.0, False)
    wrong_side = None
    if kind in ("hand_left", "hand_right") and other_hand is not None:
        wrong_side = valid and not hit and any(iou(box, other_hand) >= IOU_THRESHOLD for box in reply.boxes)
    return Score(hit, valid, False, said_none, mean, hit, wrong_side)


def _match(reply: Reply, targets: dict[str, Any]) -> tuple[float, bool]:
    """Mean IoU over the true boxes, and whether the reply has just those boxes, each with IoU >= 0.5 (and its label)."""
    if targets["kind"] in ONE_BOX:
        overlap = iou(reply.boxes[0], targets["boxes"][0])
        return overlap, overlap >= IOU_THRESHOLD
    said = dict(zip(reply.labels, reply.boxes))
    overlaps = [iou(said[label], box) if label in said else 0.0 for label, box in zip(targets["labels"], targets["boxes"])]
    same = set(said) == set(targets["labels"])
    return sum(overlaps) / len(overlaps), same and min(overlaps) >= IOU_THRESHOLD


def _plain(text: str | None) -> str:
    return " ".join((text or "").lower().strip(" .!").split())
