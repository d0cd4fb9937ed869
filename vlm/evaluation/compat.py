"""The published HOI-QA scorer (HOI-Ref, evaluate.py), number by number and line by line, with everything that is odd about it.

For comparison with published figures only; `vlm.evaluation.hoi_qa` is the scorer to trust. What is kept as it was:

- a direct question without a readable box is wrong, but its IoU is not recorded, so that answering less raises the mean IoU;
- of several boxes for one the best counts, scaled to 1920 × 1080 even for Ego4D; two true boxes may both take one prediction, and
  count 2 or nothing; three boxes for two are wrong without an IoU;
- hundredths become whole pixels by truncation, boxes include both ends, a hit is an IoU above (not at) the threshold;
- names are compared word by word as blanks cut them: one of several words, or beside a comma, is never right;
- an interaction prediction whose id is not in the test file is scored against the truth before it.
"""

from __future__ import annotations

import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from data.hoi_qa import NOMINAL_FRAMES, HOIQAError, read_json
from pose_tools.metrics import box_iou

logger = logging.getLogger(__name__)

TEST_FILES = {"epic": "epic-test.json", "ego4d": "ego4d-test.json", "hoi": "epic-visor-test.json"}
FRAMES = {"epic": NOMINAL_FRAMES["EPIC-KITCHENS"], "ego4d": NOMINAL_FRAMES["Ego4D"], "hoi": NOMINAL_FRAMES["EPIC-KITCHENS"]}
HAND_QUESTIONS = (
    "[refer] Where is the right hand of the person?",
    "[refer] Where is the left hand of the person?",
    "[refer] Where are the hands of the person?",
)
PREFIXES = {
    "handN2objBB": "[refer] Locate the object being manipulated by",
    "objN2handBB": "[refer] Which hand has the",
    "objN2handN": "[vqa] What hand is holding the",
    "handN2objN": "[vqa] What is the object in the ",
}
"""What interaction questions begin with, by subset; this is part of the published files."""
SUBSETS = ("handBB2handN", "objBB2objN", "objN2objBB", "handN2handBB", "handN2objBB", "objN2handBB", "objN2handN", "handN2objN")
HANDS = ("right hand", "left hand")

_BOX = re.compile(r"{<(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)><(-?\d+(?:\.\d+)?)>}")  # any script's digits, as published

Numbers = Sequence[float]


class EmptySubsetError(HOIQAError, ZeroDivisionError):
    """A share of no questions: the published scorer ends here with a division by zero."""


def hoi_qa(
    predictions: str | Path | Mapping[str, Any],
    test_files: str | Path | Mapping[str, Any],
    *,
    iou_threshold: float = 0.5,
    empty: Literal["raise", "nan"] = "raise",
) -> tuple[dict[str, Any], list[str]]:
    """Scores as a nested dictionary, and the lines that the published scorer prints.

    Args:
        predictions: `X.json`, beside which `X_ego4d.json` and `X_hoi.json` lie, or {"epic", "ego4d", "hoi"} → path or content. Direct:
            key → {"ref_answer", "iden_answer"}; interactions: id → {"answer"}.
        test_files: the folder of the three published files, or {"epic", "ego4d", "hoi"} → path or content.
        iou_threshold: a box is right above it.
        empty: "nan" goes on where the published scorer divides by zero.

    Returns {"epic" | "ego4d" | "hoi" | "final" | "ho_ref" | "i_ref": {noun_accuracy, noun_correct, noun_total, bbox_accuracy, …, mean_iou},
    "subsets": {name: {accuracy, correct, total}}}, accuracies and IoUs in per cent with two decimals.
    Raises HOIQAError for files that do not belong together, EmptySubsetError for a subset without questions.
    """
    said, truth = open_predictions(predictions), open_test_files(test_files)
    for name in ("epic", "hoi"):
        if len(said[name]) != len(truth[name]):
            raise HOIQAError(f"{name}: {len(said[name])} predictions for {len(truth[name])} questions; give those of the same test file")
    run = _Run(iou_threshold, empty)
    for name in ("epic", "ego4d"):
        run.direct(name, truth[name], said[name])
    run.interactions(truth["hoi"], said["hoi"])
    run.finish()
    return run.scores, run.lines


def find_boxes(text: str) -> list[list[float]]:
    """Every {<x1><y1><x2><y2>} of a text, as written."""
    return [[float(number) for number in match.groups()] for match in _BOX.finditer(text)]


def overlaps(truth: Numbers, boxes: Sequence[Numbers], frame: tuple[int, int]) -> list[float]:
    """IoU of a true box in pixels with each box in hundredths of `frame` (width, height)."""
    pixels = [[_whole(v / 100 * side) for v, side in zip(box, frame * 2, strict=True)] for box in boxes]
    return [float(v) for v in box_iou(list(truth), pixels, compat="vlm4hoi")]


def names_it(answer: str, noun: str, gloves: bool = False) -> bool:
    """Whether an answer names a noun, as published; `gloves`: any glove will do for a left or right one."""
    words = answer.lower().replace(".", "")
    if noun in HANDS:
        return noun in words
    if gloves and noun in ("left glove", "right glove"):
        return "glove" in words
    return noun in words.split(" ")


def _whole(value: float) -> float:
    return int(value) if math.isfinite(value) else value


@dataclass
class _Count:
    right: int = 0
    total: int = 0

    def __add__(self, other: _Count) -> _Count:
        return _Count(self.right + other.right, self.total + other.total)

    def __str__(self) -> str:
        return f"{self.right}/{self.total}"


@dataclass
class _Part:
    """Names, boxes and recorded IoUs of one file or benchmark."""

    noun: _Count = field(default_factory=_Count)
    box: _Count = field(default_factory=_Count)
    ious: list[float] = field(default_factory=list)
    no_box: int = 0

    def __add__(self, other: _Part) -> _Part:
        return _Part(self.noun + other.noun, self.box + other.box, self.ious + other.ious, self.no_box + other.no_box)


class _Run:
    """One scoring: parts and subsets grow, lines are printed on the way."""

    def __init__(self, threshold: float, empty: str) -> None:
        self.threshold, self.empty = threshold, empty
        self.lines: list[str] = []
        self.scores: dict[str, Any] = {}
        self.parts = {name: _Part() for name in ("epic", "ego4d", "hoi", "ho_ref", "i_ref")}
        self.subsets = {name: _Count() for name in SUBSETS}

    def direct(self, name: str, truth: Mapping[str, Any], said: Mapping[str, Any]) -> None:
        """One of the files of nouns and boxes."""
        part, subsets = self.parts[name], {subset: _Count() for subset in SUBSETS[:4]}
        for key, row in truth.items():
            answer = said.get(key)
            if not isinstance(answer, Mapping) or not all(isinstance(answer.get(k), str) for k in ("ref_answer", "iden_answer")):
                raise HOIQAError(f"{name}: no prediction of {key!r} with ref_answer and iden_answer, got {answer!r}")
            hand = row["noun"] in HANDS
            named = names_it(answer["iden_answer"], row["noun"])
            for count in (part.noun, subsets["handBB2handN" if hand else "objBB2objN"]):
                count.total += 1
                count.right += named
            boxes = find_boxes(answer["ref_answer"])
            counts = (part.box, subsets["handN2handBB" if hand else "objN2objBB"])
            for count in counts:
                count.total += 1
            if not boxes:
                part.no_box += 1
                continue
            iou = max(overlaps(row["bbox"], boxes, FRAMES[name] if len(boxes) == 1 else FRAMES["epic"]))
            part.ious.append(iou)
            for count in counts:
                count.right += iou > self.threshold
        self._percent(part.box, f"{name}: boxes")
        self._percent(part.noun, f"{name}: nouns")
        for subset, count in subsets.items():
            self._percent(count, f"{name}: {subset}")
            self.subsets[subset] += count
        self.parts["ho_ref"] += part
        self._print_part("", name, part)

    def interactions(self, truth: Sequence[Mapping[str, Any]], said: Mapping[str, Any]) -> None:
        """The file of interaction questions, in the order of the predictions."""
        by_id: dict[Any, Mapping[str, Any]] = {}
        for row in truth:
            by_id.setdefault(row["id"], row)
        row = None
        for key, prediction in said.items():
            if key not in by_id:
                logger.warning("hoi: no question %r in the test file; as published, it is scored against the truth before it", key)
            row = by_id.get(key, row)
            if row is None or not isinstance(prediction, Mapping) or not isinstance(prediction.get("answer"), str):
                raise HOIQAError(f"hoi: the prediction {key!r} has no question in the test file, or no answer: {prediction!r}")
            if "[refer]" in row["question"]:
                self._refer(key, row["question"], row["answer"], prediction["answer"])
            elif "[vqa]" in row["question"]:
                self._name(row["question"], row["answer"], prediction["answer"])
            else:
                raise HOIQAError(f"hoi: question {key!r} is neither [refer] nor [vqa]: {row['question']!r}")
        hoi = self.parts["hoi"]
        self.parts["i_ref"].noun += hoi.noun
        self._print_part("HOI ", "hoi", hoi)

    def _refer(self, key: str, question: str, truth: Any, answer: str) -> None:
        about_hands = question in HAND_QUESTIONS
        found = next((name for name in ("handN2objBB", "objN2handBB") if PREFIXES[name] in question), None)
        if found is None and not about_hands:
            raise HOIQAError(f"hoi: question {key!r} is none that the published scorer knows: {question!r}")
        counts = [self.parts["hoi"].box, self.parts["ho_ref" if about_hands else "i_ref"].box]
        counts += [self.subsets["handN2handBB"]] if about_hands else []
        counts += [self.subsets[found]] if found else []
        two = isinstance(truth, str)
        true_boxes = find_boxes(truth) if two else [truth]
        if len(true_boxes) != (2 if two else 1) or len(true_boxes[0]) != 4:
            raise HOIQAError(f"hoi: the true answer of {key!r} is {truth!r}, expected one box of four numbers, or two in braces")
        boxes = find_boxes(answer)
        if not boxes:
            self.parts["hoi"].no_box += 1
        if len(boxes) > 2 and len(true_boxes) == 2:
            self.lines.append(f"More than 2 bounding boxes present. {boxes}")
        ious = self._recorded(true_boxes, boxes)
        for part in (self.parts["hoi"], self.parts["ho_ref" if about_hands else "i_ref"]):
            part.ious += ious
        hit = len(ious) == len(true_boxes) and min(ious) > self.threshold
        for count in counts:
            count.total += len(true_boxes)
            count.right += len(true_boxes) if hit else 0

    def _recorded(self, truth: Sequence[Numbers], boxes: Sequence[Numbers]) -> list[float]:
        """The IoUs that an interaction question adds to the mean."""
        if not boxes:
            return [0.0]
        if len(truth) == 2 and len(boxes) != 2:
            return [0.0, 0.0] if len(boxes) == 1 else []
        return [max(overlaps(one, boxes, FRAMES["hoi"])) for one in truth]

    def _name(self, question: str, truth: str, answer: str) -> None:
        right = names_it(answer, truth, gloves=True)
        found = next((name for name in ("objN2handN", "handN2objN") if PREFIXES[name] in question), None)
        for count in [self.parts["hoi"].noun] + ([self.subsets[found]] if found else []):
            count.total += 1
            count.right += right

    def finish(self) -> None:
        """What is printed at the end."""
        final = self.parts["epic"] + self.parts["hoi"] + self.parts["ego4d"]
        self._print_part("Final ", "final", final, wrong_cases=False, ious=True)
        self.lines.append("-" * 50)
        for name in ("ho_ref", "i_ref"):
            self._print_part(f"{name} ", name, self.parts[name], wrong_cases=False)
        self.lines += ["-" * 50, "Subset Evaluation"]
        self.scores["subsets"] = {}
        for name, count in self.subsets.items():
            accuracy = self._percent(count, name)
            self.scores["subsets"][name] = {"accuracy": accuracy, "correct": count.right, "total": count.total}
        self.lines += [f"{name} Accuracy: {s['accuracy']}; {s['correct']}/{s['total']}" for name, s in self.scores["subsets"].items()]

    def _print_part(self, title: str, name: str, part: _Part, wrong_cases: bool = True, ious: bool = False) -> None:
        noun, box = self._percent(part.noun, f"{name}: nouns"), self._percent(part.box, f"{name}: boxes")
        if not part.ious:
            self._nothing(f"{name}: recorded IoUs")
        mean = round(sum(part.ious) / len(part.ious) * 100, 2) if part.ious else float("nan")
        self.lines += [f"{title}Noun Accuracy: {noun}; {part.noun}", f"{title}BBox Accuracy: {box}; {part.box}"]
        self.lines.append(f"{title}Mean IoU Score: {mean}" + (f"; {len(part.ious)}" if ious else ""))
        self.lines += [f"{title}Wrong BB cases: {part.no_box}"] if wrong_cases else []
        self.scores[name] = {
            "noun_accuracy": noun, "noun_correct": part.noun.right, "noun_total": part.noun.total, "bbox_accuracy": box,
            "bbox_correct": part.box.right, "bbox_total": part.box.total, "mean_iou": mean, "ious": len(part.ious),
            "wrong_bb_cases": part.no_box,
        }  # fmt: skip

    def _percent(self, count: _Count, what: str) -> float:
        if not count.total:
            self._nothing(what)
            return float("nan")
        return round(count.right / count.total * 100, 2)

    def _nothing(self, what: str) -> None:
        if self.empty == "raise":
            raise EmptySubsetError(f"{what}: none, and the published scorer divides by their number; use empty='nan', or --protocol strict")


def open_predictions(predictions: Any) -> dict[str, Any]:
    """Contents of the three prediction files, given as in `hoi_qa`. Raises HOIQAError for a file of another form."""
    said = _open(
        predictions, lambda path: {name: path if name == "epic" else path.with_name(f"{path.stem}_{name}.json") for name in TEST_FILES}
    )
    for name, content in said.items():
        if not isinstance(content, Mapping):
            raise HOIQAError(
                f"{name}: predictions are an object of answers by key, got {type(content).__name__}; give X.json, not a test file"
            )
    return said


def open_test_files(test_files: Any) -> dict[str, Any]:
    """Contents of the three test files, given as in `hoi_qa`. Raises HOIQAError for a file of another form."""
    truth = _open(test_files, lambda folder: {name: folder / file for name, file in TEST_FILES.items()})
    for name, content in truth.items():
        listed = isinstance(content, Sequence) and not isinstance(content, str)
        if not (listed if name == "hoi" else isinstance(content, Mapping)):
            raise HOIQAError(
                f"{name}: {TEST_FILES[name]} is {'a list of questions' if name == 'hoi' else 'an object of boxes by key'}, got "
                f"{type(content).__name__}; give the published file of that name"
            )
        rows = dict(enumerate(content)) if listed else content
        if strangers := [key for key, row in rows.items() if not isinstance(row, Mapping)]:
            raise HOIQAError(f"{name}: record {strangers[0]!r} of {TEST_FILES[name]} is {rows[strangers[0]]!r:.60}, expected an object")
    return truth


def _open(files: Any, paths: Callable[[Path], dict[str, Path]]) -> dict[str, Any]:
    given = files if isinstance(files, Mapping) else paths(Path(files))
    if missing := sorted(set(TEST_FILES) - set(given)):
        raise HOIQAError(f"no files for {', '.join(missing)}; expected all of {', '.join(TEST_FILES)}")
    return {name: read_json(Path(given[name])) if isinstance(given[name], (str, Path)) else given[name] for name in TEST_FILES}
