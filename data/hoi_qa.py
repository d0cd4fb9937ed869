"""HOI-QA (questions about hands and objects in EPIC-KITCHENS and Ego4D frames): its published json files → Samples.

    hoiqa_dataset/epic-kitchens-train.json, ego4d-train.json    conversations; boxes as text, hundredths of the frame ({<x1><y1><x2><y2>})
    hoiqa_dataset/epic-test.json, ego4d-test.json               key → image_path, noun, bbox in pixels of a nominal frame
    hoiqa_dataset/epic-visor-test.json                          questions about interactions; boxes in pixels of a nominal frame

The frames lie under a root given apart from the files. Nominal frames are 1920 × 1080 (EPIC) and 1440 × 1080 (Ego4D); every
box is yielded in pixels of the frame as stored.
"""

from __future__ import annotations

import logging
import math
import os
import re
from array import array
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from data.hoi_qa_records import Frames, HOIQAError, read_json, read_record, scan
from data.sample import Sample, Source, assistant, text, user
from pose_tools.grounding import DialectName, find_boxes
from pose_tools.image_io import ImageError

__all__ = ["FrameError", "HOIQAError", "HOIQASet", "read_hoi_qa", "read_json", "summarise"]
logger = logging.getLogger(__name__)

NOMINAL_FRAMES = {"EPIC-KITCHENS": (1920, 1080), "Ego4D": (1440, 1080)}
DIALECT: DialectName = "minigpt"
_TAG = re.compile(r"\[(\w+)\]")
_PIXEL_BOX = re.compile(r"\{<(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)>\}")
_LABEL = re.compile(r"<p>([^<>]*)</p>\s*\Z")


class FrameError(HOIQAError, ImageError):
    """A frame that is there and cannot be read."""


def read_hoi_qa(path: str | Path, *, frames: str | Path | None = None, max_missing: float = 0.01) -> Iterator[Sample]:
    """Samples of one HOI-QA json file, in its order.

    A training conversation is one Sample (all turns; `targets` are those of the last). A box of a referral test file is two:
    "Where is the <noun>" (kind refer) and the box in text, whose answer is the noun (kind identify). An interaction question is
    one (kind interaction).
    Questions keep their tag ("[refer] …"), answers their text: a box part has `verbatim` where the file has text.

    Args:
        frames: the folder the pictures' paths start from; None takes the json file's folder's parent.
        max_missing: the share of records whose frame may be missing (they are left out and counted).

    Raises HOIQAError for a file that is none of the three kinds, a broken record, a path that leaves `frames`, a frame of
    neither nominal shape, and when too many frames are missing.
    """
    yield from HOIQASet(path, frames=frames, max_missing=max_missing).in_order()


class HOIQASet:
    """The records of one HOI-QA json file by the pictures they ask about. Keeps where in the file a record stands and which picture it
    names; what it asks is made when it is read, and no picture is opened before.

    Args:
        path, frames, max_missing: as for `read_hoi_qa`.
        kinds: what asks for none of these kinds is left out; None leaves in all.

    `pictures` are the paths asked about, in the order in which they first come up. Raises HOIQAError as `read_hoi_qa` does; what is wrong
    with a box or with a picture itself is told when it is read.
    """

    def __init__(
        self, path: str | Path, *, frames: str | Path | None = None, max_missing: float = 0.01, kinds: Sequence[str] | None = None
    ) -> None:
        self.path, self.kinds = Path(path), kinds
        self._starts, self._ends, pictures = array("q"), array("q"), array("q")
        self._rows: dict[int, tuple[Any, Any]] = {}
        """The records that have no place in the file."""
        found, known = Frames(_root(self.path, frames)), dict[str, int]()
        missing = array("q")
        for number, (key, row, start, end) in enumerate(scan(self.path)):
            if number == 0:
                self._form = _form_of(self.path, row)
            where = self._where(key, row)
            frame, there = found.of(row, where)
            if not there:
                missing.append(number)
            kinds_asked = self._form.kinds(row, where) if there else ()
            asked = there if kinds is None else not set(kinds).isdisjoint(kinds_asked)
            pictures.append(known.setdefault(frame, len(known)) if asked else -1)
            self._starts.append(start)
            self._ends.append(end)
            if start < 0:
                self._rows[number] = key, row
        self.pictures = list(known)
        self._picture = np.asarray(pictures)
        self._order = np.argsort(self._picture, kind="stable")
        self._bounds = np.searchsorted(self._picture[self._order], np.arange(len(known) + 1))
        self._report(missing, found, max_missing)

    def about(self, picture: int) -> list[Sample]:
        """The samples about one of `pictures`, in the order of the file."""
        return list(self._read(self._order[self._bounds[picture] : self._bounds[picture + 1]]))

    def in_order(self) -> Iterator[Sample]:
        """All samples, in the order of the file."""
        return self._read(np.flatnonzero(self._picture >= 0))

    def _read(self, numbers: Iterable[int]) -> Iterator[Sample]:
        for number in map(int, numbers):
            key, row = self._row(number)
            frame = Path(self.pictures[self._picture[number]])
            for sample in self._form.convert(self._key(key, row), row, frame, self._where(key, row)):
                if self.kinds is None or sample.targets["kind"] in self.kinds:
                    yield sample

    def _row(self, number: int) -> tuple[Any, Any]:
        """A record, and its key or number."""
        if number in self._rows:
            return self._rows[number]
        return number, read_record(self.path, self._starts[number], self._ends[number])

    def _key(self, key: Any, row: Any) -> Any:
        return row.get("id", key) if self._form.has_ids and isinstance(row, dict) else key

    def _where(self, key: Any, row: Any) -> str:
        return f"{self.path.name}, record {self._key(key, row)!r}"

    def _report(self, missing: Sequence[int], found: Frames, share: float) -> None:
        """Says how many frames are missing. HOIQAError for the first one that is too many."""
        total = len(self._picture)
        if len(missing) > max(share * total, 0):
            allowed = int(max(share * total, 0))
            key, row = self._row(missing[allowed])
            frame, _ = found.of(row, where := self._where(key, row))
            raise HOIQAError(
                f"{where}: {frame} is missing, the {allowed + 1}. of {missing[allowed] + 1} records so far "
                f"(at most {share:.0%} of {total} may be); give the folder that the paths start from as frames=…"
            )
        if missing:
            logger.warning(
                "%s: %d of %d records left out because their frames are not under %s", self.path.name, len(missing), total, found.root
            )


@dataclass(frozen=True)
class Summary:
    """What a HOI-QA file holds: `records`, `questions` by tag ("refer", "identify", …; "untagged"), `videos`, pictures, and the
    `missing` ones' paths as the file names them."""

    records: int
    questions: dict[str, int]
    videos: int
    pictures: int
    missing: tuple[str, ...]


def summarise(path: str | Path, *, frames: str | Path | None = None) -> Summary:
    """Counts of one HOI-QA json file and a report of missing frames; pictures are looked for, not opened. `frames` as in `read_hoi_qa`.

    A box of a referral test file counts as its two questions. Raises HOIQAError as `read_hoi_qa` does, but not for missing frames.
    """
    path, form = Path(path), None
    found = Frames(_root(path, frames))
    questions: Counter[str] = Counter()
    pictures: dict[str, bool] = {}
    records = 0
    for key, row, _, _ in scan(path):
        form = form or _form_of(path, row)
        key = row.get("id", key) if form.has_ids and isinstance(row, dict) else key
        frame, there = found.of(row, f"{path.name}, record {key!r}")
        pictures[frame] = there
        records += 1
        if form.convert is _referral:
            questions.update(("refer", "identify"))
            continue
        asked = [turn["value"] for turn in row["conversations"][::2]] if form.convert is _conversation else [row["question"]]
        tags = (_TAG.match(question.replace("<image>", "").strip()) for question in asked)
        questions.update(tag.group(1) if tag else "untagged" for tag in tags)
    missing = tuple(sorted(os.path.relpath(picture, found.root) for picture, there in pictures.items() if not there))
    return Summary(records, dict(questions), len({os.path.dirname(picture) for picture in pictures}), len(pictures), missing)


def _root(path: Path, frames: str | Path | None) -> Path:
    return Path(frames) if frames is not None else path.resolve().parent.parent


class _Form(NamedTuple):
    """What records of one of the three files are: their samples, the kinds of these (HOIQAError for a record of another form), and
    whether they may have an "id"."""

    convert: Callable[[Any, dict[str, Any], Path, str], Iterator[Sample]]
    kinds: Callable[[dict[str, Any], str], tuple[str, ...]]
    has_ids: bool


def _form_of(path: Path, first: dict[str, Any]) -> _Form:
    """The form of a file, told by what its first record holds."""
    if "conversations" in first:
        return _Form(_conversation, lambda row, where: (_kind(_turns(row, where)),), True)
    if {"noun", "bbox"} <= set(first):
        return _Form(_referral, _referral_kinds, False)
    if {"question", "answer"} <= set(first):
        return _Form(_interaction, _interaction_kinds, True)
    raise HOIQAError(f"{path}: the first record has {sorted(first)}; expected conversations, or noun and bbox, or question and answer")


def _turns(row: dict[str, Any], where: str) -> list[str]:
    """Questions and answers of a conversation in turn, the first without its picture's mark."""
    listed = row.get("conversations")
    turns = [turn["value"] for turn in listed or () if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
    if not isinstance(listed, list) or not turns or len(turns) % 2 or len(turns) < len(listed):
        raise HOIQAError(f"{where}: conversations holds {len(turns)} texts; expected pairs of {{'value': text}}, question and answer")
    turns[0] = turns[0].replace("<image>", "").replace("\n", "").strip()
    return turns


def _kind(turns: Sequence[str]) -> str:
    """The tag of a conversation's last question: an evaluator scores the last answer."""
    tag = _TAG.match(turns[-2])
    return tag.group(1) if tag else "conversation"


def _conversation(key: Any, row: dict[str, Any], frame: Path, where: str) -> Iterator[Sample]:
    turns = _turns(row, where)
    size = _frame_size(frame)
    messages: list[dict[str, Any]] = []
    for number in range(0, len(turns), 2):
        picture = [{"type": "image", "image": str(frame)}] if number == 0 else []
        messages += [user(*picture, turns[number]), assistant(*answer_parts(turns[number + 1], size))]
    answer = messages[-1]["content"]
    found = [part for part in answer if part["type"] == "box"]
    targets = {
        "kind": _kind(turns), "boxes": [part["bbox_xyxy"] for part in found],
        "labels": [part["label"] for part in found if "label" in part],
        "text": turns[-1] if len(found) < len(answer) else None, "side": None,
    }  # fmt: skip
    yield Sample(str(key), messages, _source(frame), targets)


def answer_parts(answer: str, size: tuple[int, int]) -> list[dict[str, Any]]:
    """Text and box parts of an answer whose boxes are hundredths of a frame of `size` (width, height).

    A phrase right before its box (<p>cup</p> {…}) becomes the box's label. What looks like a box but is none stays text. `gap` keeps what
    stood before a part, so that the parts written in the same dialect are the answer.
    """
    parts: list[dict[str, Any]] = []
    done = 0
    for found in find_boxes(answer, DIALECT):
        if found.box is None:
            continue
        before = answer[done : found.span[0]]
        label = _LABEL.search(before)
        start = done + label.start() if label else found.span[0]
        words, gap = _words(answer[done:start])
        parts += words
        box = [v * side for v, side in zip(found.box, size * 2, strict=True)]
        part = {"type": "box", "bbox_xyxy": box, "verbatim": answer[start : found.span[1]], "dialect": DIALECT, "gap": gap}
        parts.append({**part, "label": label.group(1)} if label else part)
        done = found.span[1]
    if rest := answer[done:].strip():
        parts.append({**text(rest), "gap": answer[done:].partition(rest)[0]} if parts else text(rest))
    return parts or [text(answer)]


def _words(between: str) -> tuple[list[dict[str, Any]], str]:
    """The text part of what stands between two boxes, if there are words in it, and what stands behind that."""
    words = between.strip()
    if not words.replace("<delim>", "").strip():
        return [], between
    before, _, behind = between.partition(words)
    return [{**text(words), "gap": before}], behind


def _referral_kinds(row: dict[str, Any], where: str) -> tuple[str, ...]:
    if not isinstance(row.get("noun"), str):
        raise HOIQAError(f"{where}: noun is {row.get('noun')!r}, expected text")
    return "refer", "identify"


def _referral(key: Any, row: dict[str, Any], frame: Path, where: str) -> Iterator[Sample]:
    size, noun = _frame_size(frame), row["noun"]
    nominal = _nominal(frame, where)
    box = _scaled(row.get("bbox"), nominal, size, where)
    picture = {"type": "image", "image": str(frame)}
    words = [text(noun)]
    # the two questions of the published evaluation: the noun, and the bare box text in truncated hundredths of the nominal frame
    hundredths = "{" + "".join(f"<{int(v / side * 100)}>" for v, side in zip(row["bbox"], nominal * 2, strict=True)) + "}"
    asked = {"refer": f"Where is the {noun}", "identify": hundredths}
    answers = {"refer": [{"type": "box", "bbox_xyxy": box}], "identify": words}
    for kind, question in asked.items():
        targets = {
            "kind": kind,
            "boxes": [box] if kind == "refer" else [],
            "labels": [],
            "text": noun if kind == "identify" else None,
            "side": None,
        }
        yield Sample(f"{key}/{kind}", [user(picture, question), assistant(*answers[kind])], _source(frame), targets)


def _interaction_kinds(row: dict[str, Any], where: str) -> tuple[str, ...]:
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(answer, (str, list)):
        raise HOIQAError(f"{where}: expected a question and an answer (text or four numbers), got {question!r} and {answer!r}")
    return ("interaction",)


def _interaction(key: Any, row: dict[str, Any], frame: Path, where: str) -> Iterator[Sample]:
    question, answer = row["question"], row["answer"]
    size = _frame_size(frame)
    found = [answer] if isinstance(answer, list) else [list(map(float, match)) for match in _PIXEL_BOX.findall(answer)]
    nominal = _nominal(frame, where) if found else (1, 1)
    boxes = [_scaled(box, nominal, size, where) for box in found]
    parts = [{"type": "box", "bbox_xyxy": box} for box in boxes] or [text(str(answer))]
    targets = {"kind": "interaction", "boxes": boxes, "labels": [], "text": None if boxes else answer, "side": None}
    yield Sample(str(key), [user({"type": "image", "image": str(frame)}, question), assistant(*parts)], _source(frame), targets)


def _scaled(box: Any, nominal: tuple[int, int], size: tuple[int, int], where: str) -> list[float]:
    return [v * side for v, side in zip(fractions(box, nominal, where), size * 2, strict=True)]


def fractions(box: Any, frame: tuple[int, int], where: str, *, anywhere: bool = False) -> tuple[float, ...]:
    """A box of the test files, xyxy in pixels of `frame` (width, height), as fractions of its sides; it may reach over the border.

    Raises HOIQAError for what is no box, and unless `anywhere` for an inverted one or one that lies outside the frame.
    """
    numbers = isinstance(box, list) and len(box) == 4 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in box)
    if not numbers or (not anywhere and (box[2] < box[0] or box[3] < box[1])):
        raise HOIQAError(f"{where}: the box is {box!r}, expected [x1, y1, x2, y2] in pixels with x1 <= x2 and y1 <= y2")
    if not anywhere and (box[2] < 0 or box[3] < 0 or box[0] > frame[0] or box[1] > frame[1]):
        raise HOIQAError(f"{where}: the box {box!r} lies outside its frame of {frame[0]}x{frame[1]}; correct or remove the record")
    return tuple(v / side for v, side in zip(box, frame * 2, strict=True))


def _nominal(frame: Path, where: str) -> tuple[int, int]:
    """The frame the file's pixels count in, told by the shape of the stored one."""
    width, height = _frame_size(frame)
    for nominal in NOMINAL_FRAMES.values():
        if abs(width / height - nominal[0] / nominal[1]) < 0.03:
            return nominal
    shapes = " or ".join(f"{w}x{h} ({name})" for name, (w, h) in NOMINAL_FRAMES.items())
    raise HOIQAError(f"{where}: {frame} is {width}x{height}; its shape should be that of {shapes}, in whose pixels the boxes are given")


def _source(frame: Path) -> Source:
    number = re.search(r"\d+\Z", frame.stem)
    return Source(
        "hoi-qa", video_id=frame.parent.name, frame=int(number.group()) if number else frame.stem, licence="EPIC-KITCHENS / Ego4D terms"
    )


@lru_cache(maxsize=4096)
def _frame_size(frame: Path) -> tuple[int, int]:
    """(width, height) of a picture, from its header."""
    try:
        with Image.open(frame) as picture:
            return picture.size
    except OSError as error:
        raise FrameError(f"{frame}: not a picture ({error})") from None
