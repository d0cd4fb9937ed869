"""HOI-QA (questions about hands and objects in EPIC-KITCHENS and Ego4D frames): its published json files → Samples.

    hoiqa_dataset/epic-kitchens-train.json, ego4d-train.json    conversations; boxes as text, hundredths of the frame ({<x1><y1><x2><y2>})
    hoiqa_dataset/epic-test.json, ego4d-test.json               key → image_path, noun, bbox in pixels of a nominal frame
    hoiqa_dataset/epic-visor-test.json                          questions about interactions; boxes in pixels of a nominal frame

The frames lie under a root given apart from the files. Nominal frames are 1920 × 1080 (EPIC) and 1440 × 1080 (Ego4D); every
box is yielded in pixels of the frame as stored.
"""

from __future__ import annotations

import json
import logging
import math
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from PIL import Image

from data.sample import Sample, Source, assistant, text, user
from pose_tools.grounding import DialectName, find_boxes
from pose_tools.user_error import UserError

logger = logging.getLogger(__name__)

NOMINAL_FRAMES = {"EPIC-KITCHENS": (1920, 1080), "Ego4D": (1440, 1080)}
DIALECT: DialectName = "minigpt"
EPIC_FRAMES = "EPIC_Kitchens/frames"
"""Under the frames' folder; the published EPIC training file's pictures start from there, those of the other files one folder higher."""
_TAG = re.compile(r"\[(\w+)\]")
_PIXEL_BOX = re.compile(r"\{<(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)>\}")
_LABEL = re.compile(r"<p>([^<>]*)</p>\s*\Z")


class HOIQAError(UserError):
    """A HOI-QA file or record that cannot be used; the message names it and the remedy."""


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
    path = Path(path)
    root = (Path(frames) if frames is not None else path.resolve().parent.parent).resolve()
    content = read_json(path)
    convert, rows = _kind_of(path, content)
    total = missing = 0
    for key, row in rows:
        total += 1
        where = f"{path.name}, record {key!r}"
        frame = _frame(root, row, where)
        if not frame.is_file():
            missing += 1
            _complain(missing, total, len(content), max_missing, frame, where)
            continue
        yield from convert(key, row, frame, where)
    if missing:
        logger.warning("%s: %d of %d records left out because their frames are not under %s", path.name, missing, total, root)


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
    path = Path(path)
    root = (Path(frames) if frames is not None else path.resolve().parent.parent).resolve()
    convert, rows = _kind_of(path, read_json(path))
    questions: Counter[str] = Counter()
    pictures: set[Path] = set()
    for key, row in rows:
        pictures.add(_frame(root, row, f"{path.name}, record {key!r}"))
        if convert is _referral:
            questions.update(("refer", "identify"))
            continue
        asked = [turn["value"] for turn in row["conversations"][::2]] if convert is _conversation else [row["question"]]
        tags = (_TAG.match(question.replace("<image>", "").strip()) for question in asked)
        questions.update(tag.group(1) if tag else "untagged" for tag in tags)
    missing = tuple(sorted(str(picture.relative_to(root)) for picture in pictures if not picture.is_file()))
    return Summary(len(rows), dict(questions), len({picture.parent for picture in pictures}), len(pictures), missing)


def read_json(path: Path) -> Any:
    """The content of a json file. Raises HOIQAError for a missing or broken one, and for a pickle, which is never read."""
    if path.suffix in (".pkl", ".pickle"):
        raise HOIQAError(f"{path}: a pickle can run code when it is read; write the list as json first (json.dump of the same list)")
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise HOIQAError(f"{path}: no such file") from None
    except ValueError as error:
        raise HOIQAError(f"{path}: not whole json ({error}); fetch or write the file again") from None


def _kind_of(path: Path, content: Any):
    """The converter of a file and its (key, row) pairs, told by what the first record holds."""
    rows = list(content.items()) if isinstance(content, dict) else list(enumerate(content)) if isinstance(content, list) else []
    if not rows or not isinstance(rows[0][1], dict):
        raise HOIQAError(f"{path}: expected a json list or object of records, got {type(content).__name__} without any")
    first = rows[0][1]
    if "conversations" in first:
        return _conversation, [(row.get("id", number), row) for number, row in rows]
    if {"noun", "bbox"} <= set(first):
        return _referral, rows
    if {"question", "answer"} <= set(first):
        return _interaction, [(row.get("id", number), row) for number, row in rows]
    raise HOIQAError(f"{path}: the first record has {sorted(first)}; expected conversations, or noun and bbox, or question and answer")


def _frame(root: Path, row: Any, where: str) -> Path:
    """The picture of a record: `image_path` as it is, or EPIC's training `image`, which lacks its ending and may lack `EPIC_FRAMES`."""
    name = row.get("image_path") if isinstance(row, dict) else None
    if name is None and isinstance(row, dict) and isinstance(row.get("image"), str):
        name = row["image"] if row["image"].endswith(".jpg") else f"{row['image']}.jpg"
        if not (root / name).is_file() and (root / EPIC_FRAMES / name).is_file():
            name = f"{EPIC_FRAMES}/{name}"
    if not isinstance(name, str):
        raise HOIQAError(f"{where}: neither 'image' nor 'image_path' holds a path")
    frame = (root / name).resolve()
    if not frame.is_relative_to(root):
        raise HOIQAError(f"{where}: the path {name!r} leaves the frames' folder {root}")
    return frame


def _complain(missing: int, total: int, records: int, share: float, frame: Path, where: str) -> None:
    if missing > max(share * records, 0):
        raise HOIQAError(
            f"{where}: {frame} is missing, the {missing}. of {total} records so far (at most {share:.0%} of {records} may be); "
            "give the folder that the paths start from as frames=…"
        )


def _conversation(key: Any, row: dict[str, Any], frame: Path, where: str) -> Iterator[Sample]:
    listed = row.get("conversations")
    turns = [turn["value"] for turn in listed or () if isinstance(turn, dict) and isinstance(turn.get("value"), str)]
    if not isinstance(listed, list) or not turns or len(turns) % 2 or len(turns) < len(listed):
        raise HOIQAError(f"{where}: conversations holds {len(turns)} texts; expected pairs of {{'value': text}}, question and answer")
    size = _frame_size(frame)
    messages: list[dict[str, Any]] = []
    for number in range(0, len(turns), 2):
        question = turns[number] if number else turns[number].replace("<image>", "").replace("\n", "").strip()
        picture = [{"type": "image", "image": str(frame)}] if number == 0 else []
        messages += [user(*picture, question), assistant(*answer_parts(turns[number + 1], size))]
    # an evaluator scores the last answer
    tag, answer = _TAG.match(messages[-2]["content"][-1]["text"]), messages[-1]["content"]
    found = [part for part in answer if part["type"] == "box"]
    targets = {
        "kind": tag.group(1) if tag else "conversation", "boxes": [part["bbox_xyxy"] for part in found],
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


def _referral(key: Any, row: dict[str, Any], frame: Path, where: str) -> Iterator[Sample]:
    size, noun = _frame_size(frame), row.get("noun")
    if not isinstance(noun, str):
        raise HOIQAError(f"{where}: noun is {noun!r}, expected text")
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


def _interaction(key: Any, row: dict[str, Any], frame: Path, where: str) -> Iterator[Sample]:
    question, answer = row.get("question"), row.get("answer")
    if not isinstance(question, str) or not isinstance(answer, (str, list)):
        raise HOIQAError(f"{where}: expected a question and an answer (text or four numbers), got {question!r} and {answer!r}")
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
        raise HOIQAError(f"{frame}: not a picture ({error})") from None
