"""HOI-QA scored so that the numbers can be trusted. The published scorer is `vlm.evaluation.compat`; both read the same files.

Every question counts. An answer in another form than asked for (no box, several for one, a malformed one) is invalid and wrong, with
IoU 0. Boxes are half-open and matched one to one; a question with two true boxes is right when both are found. Names are right when
the whole phrase is the same after normalising (case, articles, plural, word order of "board:chopping"). Boxes are compared as shares
of each frame's own sides.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.hoi_qa import HOIQAError, fractions
from pose_tools.grounding import find_boxes
from pose_tools.metrics import match_boxes
from pose_tools.statistics import paired_difference
from vlm.evaluation import compat
from vlm.evaluation.tables import markdown_table, share

SIDES = ("left", "right", "both", "none")
SIZES = ("small", "medium", "large")
SMALL, MEDIUM = 0.01, 0.05
"""A box is small below 1 % of its frame, medium below 5 %."""

_TAGS = re.compile(r"\[.*?\] ")
"""What the published evaluation takes out of a question: a bracket with the blank behind it."""
_ARTICLES = {"a", "an", "the", "his", "her", "their", "its", "some"}
_ENDINGS = {
    "ie": "y", "ve": "f", "fe": "f", "oe": "o", "che": "ch", "she": "sh", "sse": "ss", "xe": "x", "use": "us",
}  # fmt: skip
"""Endings that singular and plural (without its s) do not share → one for both."""
_OWNER = re.compile(r"\s+of (the )?(person|camera wearer|man|woman)\Z")


@dataclass(frozen=True)
class Item:
    """One question: where its answer stands in the prediction files, what is asked, and the truth.

    `boxes`: true boxes xyxy as fractions of the frame's width and height; `text`: a true name; one of the two.
    """

    file: str
    key: str
    field: str
    question: str
    kind: str
    image_path: str
    boxes: tuple[tuple[float, ...], ...] = ()
    text: str | None = None
    side: str = "none"

    @property
    def id(self) -> str:
        return f"{self.file}/{self.key}/{self.field}"

    @property
    def video(self) -> str:
        return f"{self.file if self.file == 'ego4d' else 'epic'}/{Path(self.image_path).parent.name}"

    @property
    def size(self) -> str | None:
        """Of the smallest true box."""
        if not self.boxes:
            return None
        area = min((b[2] - b[0]) * (b[3] - b[1]) for b in self.boxes)
        return SIZES[(area >= SMALL) + (area >= MEDIUM)]


@dataclass(frozen=True)
class ItemScore:
    """`iou`: mean over the true boxes, None for names; `at25`, `at75`: all true boxes found above these."""

    valid: bool
    right: bool
    iou: float | None = None
    at25: bool | None = None
    at75: bool | None = None


def read_items(test_files: Any, *, tags: bool = False, any_box: bool = False) -> list[Item]:
    """Every question of the three test files, in the order the published evaluation asks them. `tags` keeps "[refer]" and its like.

    Raises HOIQAError for a record that cannot be used; `any_box` takes true boxes that are inverted or outside their frame, as the
    published evaluation does.
    """
    truth = compat.open_test_files(test_files)
    items = [_interaction(row, tags, any_box) for row in truth["hoi"]]
    for file in ("epic", "ego4d"):
        for make in (_refer, _identify):
            items += [make(file, key, row, tags, any_box) for key, row in truth[file].items()]
    return items


def _interaction(row: Mapping[str, Any], tags: bool, any_box: bool) -> Item:
    where, question, answer = f"hoi, record {row.get('id')!r}", row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(answer, (str, list)) or not isinstance(row.get("image_path"), str):
        raise HOIQAError(f"{where}: expected image_path, question and answer, got {dict(row)!r}")
    found = [answer] if isinstance(answer, list) else compat.find_boxes(answer)
    if not found and "{<" in answer:
        raise HOIQAError(f"{where}: the answer {answer!r:.100} is neither a name nor boxes of four numbers; correct or remove the record")
    kind = next((name for name, prefix in compat.PREFIXES.items() if prefix in question), None)
    kind = kind or ("handN2handBB" if question in compat.HAND_QUESTIONS else "other")
    asked = question if tags else _TAGS.sub("", question)
    boxes = tuple(fractions(box, compat.FRAMES["hoi"], where, anywhere=any_box) for box in found)
    name = None if found else str(answer)
    return Item("hoi", str(row["id"]), "answer", asked, kind, row["image_path"], boxes, name, _side(f"{question} {name or ''}"))


def _refer(file: str, key: str, row: Mapping[str, Any], tags: bool, any_box: bool) -> Item:
    noun, box = _direct(file, key, row, any_box)
    kind = "handN2handBB" if noun in compat.HANDS else "objN2objBB"
    question = f"{'[refer] ' if tags else ''}Where is the {noun}"
    return Item(file, key, "ref_answer", question, kind, row["image_path"], (box,), None, _side(noun))


def _identify(file: str, key: str, row: Mapping[str, Any], tags: bool, any_box: bool) -> Item:
    noun, box = _direct(file, key, row, any_box)
    kind = "handBB2handN" if noun in compat.HANDS else "objBB2objN"
    question = ("[identify] " if tags else "") + "{" + "".join(f"<{int(v * 100)}>" for v in box) + "}"
    return Item(file, key, "iden_answer", question, kind, row["image_path"], (), noun, _side(noun))


def _direct(file: str, key: str, row: Mapping[str, Any], any_box: bool) -> tuple[str, tuple[float, ...]]:
    where = f"{file}, record {key!r}"
    if not isinstance(row.get("noun"), str) or not isinstance(row.get("image_path"), str):
        raise HOIQAError(f"{where}: expected image_path, noun and bbox, got {dict(row)!r}")
    return row["noun"], fractions(row.get("bbox"), compat.FRAMES[file], where, anywhere=any_box)


def _side(words: str) -> str:
    found = [side for side in ("left", "right") if re.search(rf"\b{side} (hand|glove)", words.lower())]
    return found[0] if len(found) == 1 else "both" if found or re.search(r"\b(both|the) hands\b", words.lower()) else "none"


def score_item(item: Item, answer: str, threshold: float = 0.5) -> ItemScore:
    """One answer against its truth; a box is found with IoU >= `threshold`."""
    found = find_boxes(answer, "minigpt", compat="vlm4hoi")
    if item.text is not None:
        valid = not found and bool(answer.strip())
        return ItemScore(valid, valid and normalised(answer) == normalised(item.text))
    boxes = [one.box for one in found if one.box is not None and _sound(one.box)]
    valid = len(boxes) == len(found) == len(item.boxes)
    if not valid:
        return ItemScore(False, False, 0.0, False, False)
    ious = [iou for _, _, iou in match_boxes(boxes, item.boxes)]
    ious += [0.0] * (len(item.boxes) - len(ious))
    worst = min(ious)
    return ItemScore(True, worst >= threshold, sum(ious) / len(ious), worst >= 0.25, worst >= 0.75)


def _sound(box: Sequence[float]) -> bool:
    return all(0 <= v <= 1 for v in box) and box[0] <= box[2] and box[1] <= box[3]


def normalised(phrase: str) -> str:
    """A name without case, articles, punctuation, owner and plural, "board:chopping" as "chopping board"."""
    phrase = _OWNER.sub("", phrase.casefold().strip(" .!?\n"))
    phrase = " ".join(reversed(phrase.split(":")))
    words = [word for word in re.findall(r"[^\W_]+", phrase) if word not in _ARTICLES]
    return " ".join(map(_singular, words))


def _singular(word: str) -> str:
    """A form that a word shares with its plural (knife and knives: "knif"); not always the singular itself."""
    if len(word) > 3 and word.endswith("s") and not word.endswith(("ss", "us", "is")):
        word = word[:-1]
    ending = next((ending for ending in _ENDINGS if word.endswith(ending)), None)
    return word.removesuffix(ending) + _ENDINGS[ending] if ending else word


def score_all(items: Sequence[Item], predictions: Any, threshold: float = 0.5) -> list[ItemScore]:
    """A score for every question, in order; an answer that is missing is a wrong one."""
    said = compat.open_predictions(predictions)

    def answer(item: Item) -> str:
        row = said[item.file].get(item.key)
        value = row.get(item.field) if isinstance(row, Mapping) else None
        return value if isinstance(value, str) else ""

    return [score_item(item, answer(item), threshold) for item in items]


def published_form(items: Sequence[Item], answers: Mapping[str, str]) -> dict[str, dict[str, dict[str, str]]]:
    """Answers by item id → the contents of the three prediction files."""
    files: dict[str, dict[str, dict[str, str]]] = {name: {} for name in compat.TEST_FILES}
    for item in items:
        row = files[item.file].setdefault(item.key, {"question": item.question})
        row[item.field] = answers.get(item.id, "")
    return files


GROUPS: dict[str, Callable[[Item], str | None]] = {
    "question": lambda item: item.kind,
    "source": lambda item: {"hoi": "EPIC, interactions", "epic": "EPIC, direct", "ego4d": "Ego4D, direct"}[item.file],
    "side": lambda item: item.side,
    "size of the box": lambda item: item.size,
}


def report(items: Sequence[Item], scores: Sequence[ItemScore]) -> str:
    """A markdown table: all, boxes, names, and by question, source, side and size; 95 % intervals over videos."""
    pairs = list(zip(items, scores, strict=True))
    groups = {"all": pairs, "all boxes": [p for p in pairs if p[0].boxes], "all names": [p for p in pairs if not p[0].boxes]}
    for title, group_of in GROUPS.items():
        for name in sorted({group for item in items if (group := group_of(item)) is not None}):
            groups[f"{title}: {name}"] = [p for p in pairs if group_of(p[0]) == name]
    rows = []
    for title, members in groups.items():
        if not members:
            continue
        videos = [item.video for item, _ in members]
        boxed = [(item, score) for item, score in members if score.iou is not None]
        cells = [
            str(share([getattr(s, name) for _, s in boxed], [i.video for i, _ in boxed], interval=False))
            for name in ("iou", "at25", "at75")
        ]
        rows.append(
            [
                title,
                len(members),
                share([s.valid for _, s in members], videos, interval=False),
                share([s.right for _, s in members], videos),
                *cells,
            ]
        )
    return markdown_table(["questions", "n", "valid", "right", "mean IoU", "@0.25", "@0.75"], rows)


def compare(items: Sequence[Item], first: Sequence[ItemScore], second: Sequence[ItemScore]) -> str:
    """A markdown table: how much more often the second run is right than the first, question by question, intervals over videos."""
    rows = []
    for kind in ("all", *sorted({item.kind for item in items})):
        places = [n for n, item in enumerate(items) if kind in ("all", item.kind)]
        a, b = ([float(scores[n].right) for n in places] for scores in (first, second))
        d = paired_difference(b, a, [items[n].video for n in places])
        difference = f"{d.difference:+.3f} [{d.low:+.3f}, {d.high:+.3f}], p = {d.p_value:.3g}"
        rows.append([kind, len(places), f"{sum(a) / len(a):.3f}", f"{sum(b) / len(b):.3f}", difference])
    return markdown_table(["questions", "n", "first", "second", "difference"], rows)
