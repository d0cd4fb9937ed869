"""The data sets of LITA's five tasks, as the published mixture has them, from the user's copies.

dvc                  dense captions: {video: {"duration", "timestamps": [[start, end], …], "sentences": […]}}, frames in <root>/<video>/
event_loc            the same files: when does one of the events happen
temporal_reasoning   {video: {"duration", "QA": [{"q", "a"}, …]}}, moments in answers in seconds, `<12.3>`; the validation file is a list of
                     {"vid", "duration", "question", "answer"}, and its frames are in <root>/v_<vid>/
vidqa                [{"video", "QA": [{"q", "a"}, …]}, …], "video" a file or a folder of frames in <root>
imgqa                LLaVA-Instruct: [{"id", "image", "conversations": [{"from": "human" | "gpt", "value"}, …]}, …], "<image>" in a
                     question; a record without an image is a conversation in words

What is asked of a video or picture is one group; its words are drawn anew on every pass.
"""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data import lita_strings as strings
from data.json_file import read_json
from data.lita import TIME_TOKENS, format_dense_captions, format_event, format_reasoning, format_video_question, seconds_in
from data.sample import Sample, SampleError, Source, assistant, user
from data.video_frames import VideoFrames

logger = logging.getLogger(__name__)

TASKS = ("dvc", "event_loc", "temporal_reasoning", "vidqa", "imgqa")
TEMPORAL_TASKS = ("dvc", "event_loc", "temporal_reasoning")
"""Those whose answers name moments."""
FRAMES = 100
"""Frames of a video that are looked at, spread evenly (halves round to even); a shorter video's come several times, next to each other,
so that the k-th frame is the moment that `<tk>` means."""
_PICTURES = (".jpg", ".jpeg", ".png")
_NUMBERS = re.compile(r"([^0-9]*)([0-9]*)")
Turns = list[tuple[str, str]]


class LitaError(SampleError):
    """A file of LITA's tasks that cannot be used; the message names it and the remedy."""


class LitaSet:
    """One file of one task; `set[i]` is its i-th video or picture.

    Args:
        path: the json file.
        task: one of TASKS.
        media: the folder with the videos, each a file or a folder of frames (in the order of their names), or with the pictures of
            "imgqa". A record's video is a path in it.
        name: the data set's; "nextqa", "msvdqa" and "msrvttqa" add what their questions end with.
        frames: so many frames of a video, those of a shorter one repeated.
        limit: only the first so many.
        tolerance: largest share of records that may be unusable (no frames, no events, events turned round or outside their clip).

    Raises LitaError.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        task: str,
        media: str | Path,
        name: str | None = None,
        frames: int = FRAMES,
        limit: int | None = None,
        tolerance: float = 0.05,
    ) -> None:
        if task not in TASKS:
            raise LitaError(f"task {task!r}, expected one of {', '.join(TASKS)}")
        if frames < 1:
            raise LitaError(f"{frames} frames of a video, expected at least 1")
        self.path, self.task, self.media, self.name = Path(path), task, Path(media), name or Path(path).parent.name
        self.frames = frames
        skipped: Counter[str] = Counter()
        examples: dict[str, str] = {}
        self.records: list[tuple[str, Any]] = []
        found = list(_records(self.path, task))
        for key, record in found:
            if limit is not None and len(self.records) >= limit:
                break
            problem = self._problem(key, record)
            if problem is None:
                self.records.append((key, record))
            else:
                reason, example = problem
                skipped[reason] += 1
                examples.setdefault(reason, example)
        self._report(skipped, examples, len(found), tolerance)
        cut = sum(_moments_cut(record) for _, record in self.records) if task in TEMPORAL_TASKS else 0
        if cut:
            logger.warning("%s: %d moments lie outside their clips and are written as the ends of these", self.path, cut)

    def __len__(self) -> int:
        return len(self.records)

    def samples(self, index: int, seed: int) -> list[Sample]:
        """What is asked about record `index`: a function of the arguments."""
        key, record = self.records[index]
        turns = self._turns(record, np.random.default_rng([seed, index]))
        conversations = [turns] if self.task != "temporal_reasoning" else [[turn] for turn in turns]
        return [self._sample(index, number, turns, {}) for number, turns in enumerate(conversations)]

    def questions(self, index: int, seed: int) -> list[Sample]:
        """What an evaluation asks about record `index`, one turn each: of every event where `samples` draws one.

        `targets` has the truth: "duration", "events" [[start, end], …] in seconds (for temporal reasoning the first two moments of the
        answer, earlier first; none where it names fewer), and "captions" of dense captions. Raises LitaError for another task.
        """
        if self.task not in TEMPORAL_TASKS:
            raise LitaError(f"{self.path}: {self.task} has no moments to score; expected one of {', '.join(TEMPORAL_TASKS)}")
        _, record = self.records[index]
        rng = np.random.default_rng([seed, index])
        if self.task == "dvc":
            truth = {"events": record["timestamps"], "captions": [sentence.strip() for sentence in record["sentences"]]}
            return [self._sample(index, 0, self._turns(record, rng), truth)]
        if self.task == "event_loc":
            asked = [(_event_turn(record, number, rng), [record["timestamps"][number]]) for number in _told(record)]
        else:
            asked = [(turn, _moments(qa["a"])) for turn, qa in zip(self._turns(record, rng), record["QA"], strict=True)]
        return [self._sample(index, number, [turn], {"events": events}) for number, (turn, events) in enumerate(asked)]

    def _sample(self, index: int, number: int, turns: Turns, truth: dict[str, Any]) -> Sample:
        key, record = self.records[index]
        messages = _messages(turns, self._medium(key) if key else None)
        targets = {"kind": self.task} | self._truth(record) | truth
        return Sample(f"{self.name}-{self.task}-{key or index}-{number}", messages, Source(self.name, key), targets)

    def _turns(self, record: Any, rng: np.random.Generator) -> Turns:
        return _TURNS[self.task](record, rng, self.name)

    def _truth(self, record: Any) -> dict[str, Any]:
        return {"duration": record["duration"]} if isinstance(record, Mapping) and "duration" in record else {}

    def _medium(self, key: str) -> dict[str, Any]:
        if self.task == "imgqa":
            return {"type": "image", "image": str(self.media / key)}
        if (self.media / key).is_file():
            return {"type": "video", "video": VideoFrames(self.media / key, self.frames)}
        paths = _frame_paths(self.media / key)
        chosen = np.round(np.linspace(0, len(paths) - 1, self.frames)).astype(int)
        return {"type": "video", "video": [str(paths[number]) for number in chosen]}

    def _problem(self, key: str, record: Any) -> tuple[str, str] | None:
        """Why a record cannot be used: as it is counted, and what is wrong with it."""
        if Path(key).is_absolute() or ".." in Path(key).parts:
            raise LitaError(f"{self.path}: {key!r} leaves the folder of its media")
        pictures = self.task == "imgqa"
        there = (self.media / key).is_file() or (not key if pictures else _has_frames(self.media / key))
        if not there:
            return "have no picture" if pictures else "have no video, or one without frames", str(self.media / key)
        try:
            turns = self._every_turn(record)
            outside = _not_in_clip(record) if self.task in ("dvc", "event_loc") else None
        except (KeyError, TypeError, ValueError, IndexError, AttributeError, OverflowError) as error:
            return "are not of the task's form", f"{key!r}: {type(error).__name__}, {error}"
        if outside is not None:
            return "have events that are not in their clip", f"{key!r}: {outside}"
        asks = turns and all(question.strip() and answer.strip() for question, answer in turns)
        return None if asks else ("have nothing to ask", repr(key))

    def _every_turn(self, record: Any) -> Turns:
        """All that may be asked about a record, so that what is wrong with it comes up now and not in the middle of a training run."""
        rng = np.random.default_rng(0)
        if self.task == "event_loc":
            return [_event_turn(record, number, rng) for number in _told(record)]
        return self._turns(record, rng)

    def _report(self, skipped: Counter[str], examples: Mapping[str, str], total: int, tolerance: float) -> None:
        lost = sum(skipped.values())
        reasons = "; ".join(f"{count} {reason}, such as {examples[reason]}" for reason, count in skipped.most_common())
        if lost:
            logger.warning("%s: %d of %d records are left out: %s", self.path, lost, total, reasons)
        if not self.records or lost > tolerance * total:
            much = f"more than {tolerance:.0%}" if self.records else "and none is left"
            raise LitaError(
                f"{self.path}: {lost} of {total} records cannot be used ({reasons or 'the file is empty'}), {much}. "
                f"Correct them, complete {self.media}, or raise `tolerance`"
            )


def _records(path: Path, task: str) -> Iterator[tuple[str, Any]]:
    """(video or picture, its record), in the file's order."""
    try:
        content = read_json(path)
    except (OSError, ValueError) as error:
        raise LitaError(f"{path}: no whole json file ({error})") from None
    if task == "temporal_reasoning" and isinstance(content, list):
        content = _by_video(path, content)
    named = task in TEMPORAL_TASKS
    if not isinstance(content, dict if named else list):
        raise LitaError(f"{path}: holds a {type(content).__name__}, expected {'an object by video' if named else 'a list'} for {task}")
    if named:
        yield from content.items()
        return
    key = "image" if task == "imgqa" else "video"
    for number, record in enumerate(content):
        if isinstance(record, dict) and task == "imgqa" and key not in record and "conversations" in record:
            yield "", record
            continue
        if not isinstance(record, dict) or not isinstance(record.get(key), str):
            raise LitaError(f"{path}: record {number} has no {key!r}; expected a file of the task {task}")
        yield record[key], record


def _by_video(path: Path, rows: Sequence[Any]) -> dict[str, dict[str, Any]]:
    """The rows of LITA's validation file for temporal reasoning, a question each, in the form of its training file."""
    found: dict[str, dict[str, Any]] = {}
    for number, row in enumerate(rows):
        lacking = [key for key in ("vid", "duration", "question", "answer") if not isinstance(row, dict) or key not in row]
        if lacking:
            raise LitaError(f"{path}: record {number} has no {', '.join(map(repr, lacking))}; expected a file of temporal_reasoning")
        record = found.setdefault(f"v_{row['vid']}", {"duration": row["duration"], "QA": []})
        if record["duration"] != row["duration"]:
            raise LitaError(f"{path}: record {number}: {row['vid']} lasts {row['duration']} s, but {record['duration']} s before")
        record["QA"].append({"q": row["question"], "a": row["answer"]})
    return found


def _has_frames(folder: Path) -> bool:
    """Of a folder of thousands, whose others are not looked at."""
    if not folder.is_dir():
        return False
    with os.scandir(folder) as entries:
        return any(entry.name.lower().endswith(_PICTURES) for entry in entries)


def _frame_paths(folder: Path) -> list[Path]:
    """In the order of their names, numbers in them as numbers: 2.jpg comes before 10.jpg."""
    found = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURES] if folder.is_dir() else []
    return sorted(found, key=lambda path: ([(text, int(digits or 0)) for text, digits in _NUMBERS.findall(path.name)], path.name))


def _messages(turns: Turns, medium: dict[str, Any] | None) -> list[dict[str, Any]]:
    messages: list[dict[str, Any]] = []
    for number, (question, answer) in enumerate(turns):
        messages += [user(medium, question) if number == 0 and medium is not None else user(question), assistant(answer)]
    return messages


def _dense_captions(record: Mapping[str, Any], rng: np.random.Generator, name: str) -> Turns:
    question = f"{_pick(strings.DESCRIBE, rng)} {_pick(strings.WITH_TIMES, rng)}"
    return [(question, format_dense_captions(record["timestamps"], record["sentences"], record["duration"]))]


def _event(record: Mapping[str, Any], rng: np.random.Generator, name: str) -> Turns:
    told = _told(record)
    return [_event_turn(record, told[int(rng.integers(len(told)))], rng)]


def _told(record: Mapping[str, Any]) -> list[int]:
    """The numbers of the events that have words."""
    pairs = zip(record["timestamps"], record["sentences"], strict=True)
    return [number for number, (_, sentence) in enumerate(pairs) if sentence.strip(" .")]


def _not_in_clip(record: Mapping[str, Any]) -> str | None:
    """What is wrong with an event that ends before it starts, or has nothing of the clip; one that reaches over an end is cut there."""
    for start, end in record["timestamps"]:
        if end < start or start > record["duration"] or end < 0:
            return f"an event from {start} to {end} s in {record['duration']} s"
    return None


def _moments_cut(record: Mapping[str, Any]) -> int:
    """How many moments lie further outside their clip than half a time token, which is rounding."""
    named = record["timestamps"] if "timestamps" in record else [seconds_in(qa["a"]) for qa in record["QA"]]
    half = record["duration"] / (TIME_TOKENS - 1) / 2
    return sum(not -half <= moment <= record["duration"] + half for moments in named for moment in moments)


def _event_turn(record: Mapping[str, Any], number: int, rng: np.random.Generator) -> tuple[str, str]:
    event = record["sentences"][number].strip().rstrip(".")
    event = event[0].lower() + event[1:] if len(event) > 1 else event
    question = f"{_pick(strings.WHEN, rng).format(event)} {_pick(strings.ONLY_TIMES, rng)}"
    start, end = record["timestamps"][number]
    return question, format_event(start, end, record["duration"])


def _moments(answer: str) -> list[list[float]]:
    """The first two moments of an answer of temporal reasoning, in seconds, as one event; none where there are fewer."""
    times = seconds_in(answer)[:2]
    return [sorted(times)] if len(times) == 2 else []


def _reasoning(record: Mapping[str, Any], rng: np.random.Generator, name: str) -> Turns:
    return [(qa["q"].strip(), format_reasoning(qa["a"], record["duration"]).strip()) for qa in record["QA"]]


def _video_questions(record: Mapping[str, Any], rng: np.random.Generator, name: str) -> Turns:
    return [(format_video_question(qa["q"], name) if qa["q"].strip() else "", qa["a"].strip()) for qa in record["QA"]]


def _picture_questions(record: Mapping[str, Any], rng: np.random.Generator, name: str) -> Turns:
    turns = [(turn["from"], turn["value"].replace("<image>", "").strip()) for turn in record["conversations"]]
    if [speaker for speaker, _ in turns] != ["human", "gpt"] * (len(turns) // 2):
        raise ValueError("questions and answers do not take turns")
    return [(turns[number][1], turns[number + 1][1]) for number in range(0, len(turns), 2)]


_TURNS: dict[str, Callable[[Any, np.random.Generator, str], Turns]] = {
    "dvc": _dense_captions,
    "event_loc": _event,
    "temporal_reasoning": _reasoning,
    "vidqa": _video_questions,
    "imgqa": _picture_questions,
}


def _pick(options: Sequence[str], rng: np.random.Generator) -> str:
    return options[int(rng.integers(len(options)))]
