"""EPIC-KITCHENS-100 as HandsOnVLM uses it: annotations, frames on disk, labels of future hand paths, reasoning questions.

    EPIC_100_train.csv, EPIC_100_validation.csv       one action a row (frame numbers from 1)
    <Pxx>/rgb_frames/<video>/frame_%010d.jpg          456 × 256
    label_<uid>.pkl                                   future hand points, in pixels of the last observed frame
    ek100_questions.json                              the last observed frame's path → questions in one string

Ten frames in 2.5 s are observed, up to 1 s before the action; the path is its next second. Hands are ordered left, right.
"""

from __future__ import annotations

import csv
import logging
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.json_file import read_json
from data.sample import SampleError
from pose_tools.body_models.read import UnsafePickleError, read_plain_pickle

logger = logging.getLogger(__name__)

FRAME_SIZE = (456, 256)
LABEL_STEPS = (0, 5, 10, 15, 20)  # of 21 points at 20 Hz: the last observed moment, then 4 Hz
MISSING = {"LEFT": (0.25, 1.5), "RIGHT": (0.75, 1.5)}  # where a hand without a label is put: below the picture
LATEST = 2**31  # no video has so many frames
_QUOTED = re.compile(r'"([^"]*)"')
_COLUMNS = ("participant_id", "video_id", "start_frame", "stop_frame", "narration", "verb", "noun")


class EpicError(SampleError):
    """An EPIC-KITCHENS file or record that cannot be used; the message names it and the remedy."""


@dataclass(frozen=True)
class Action:
    """One row of an annotation file. `uid` is the row's number, going on from file to file; frames are counted from 1. `start_time` is what
    the row says of it in seconds, None where it says nothing."""

    uid: int
    participant_id: str
    video_id: str
    start_frame: int
    stop_frame: int
    narration: str
    verb: str
    noun: str
    start_time: float | None = None


def observed_frames(
    start_frame: int, fps: float = 60.0, *, count: int = 10, rate: float = 4.0, gap: float = 1.0, start_time: float | None = None
) -> list[int]:
    """Numbers (from 1) of the observed frames of an action that starts at `start_frame` (from 1).

    `count` frames at `rate` Hz, the last `gap` seconds before the action; moments before the video are its first frame. Moments are
    rounded to float32 and multiplied there, as in the published loader: late in a video a number is then one lower than exact
    arithmetic gives, and the published question files are keyed by these numbers. `fps` was 60 for every video there. Raises
    EpicError for an action that starts within the gap (nothing of it is observed), and for numbers that mean nothing. An action that
    starts behind the gap by its annotated `start_time` is kept, as published, also where its frame, counted at `fps`, does not.
    """
    if not (all(0 < number < math.inf for number in (fps, rate)) and count > 0 and 0 <= gap < math.inf):
        raise EpicError(f"{count} frames at {rate} Hz of {fps} fps, {gap} s before the action: expected positive numbers, a gap from 0 on")
    if not start_frame < LATEST:
        raise EpicError(f"an action at frame {start_frame}: expected a frame's number, from 1 on and below {LATEST}")
    last = (start_frame - 1) / fps - gap
    if start_frame < 1 or max(last, -1.0 if start_time is None else start_time - gap) < 0:
        raise EpicError(f"an action at frame {start_frame} of {fps} fps starts before {gap} s of video: there is nothing to observe")
    moments = np.clip((np.arange(1, count + 1) - count) / rate + last, 0, None).astype(np.float32)
    return (np.floor(moments * np.float32(fps)).astype(np.int64) + 1).tolist()


def frame_path(participant_id: str, video_id: str, frame: int) -> str:
    """Where a frame lies under the frames' root; also the key of the question files. Raises EpicError for ids that are no plain names."""
    for name in (participant_id, video_id):
        if not re.fullmatch(r"\w+", name):
            raise EpicError(f"{name!r} is no name of a participant or video; expected letters, digits and underscores, such as P01_102")
    return f"{participant_id}/rgb_frames/{video_id}/frame_{frame:010d}.jpg"


def read_actions(path: str | Path, first_uid: int = 0) -> list[Action]:
    """The actions of an annotation file, in order. `first_uid`: rows of the files before it (validation goes on from train).

    Raises EpicError for a missing file, lacking columns or a broken row: rows are counted from 1 behind the names of the columns.
    """
    path = Path(path)
    if not path.is_file():
        raise EpicError(f"{path}: no such file; the annotations are at github.com/epic-kitchens/epic-kitchens-100-annotations")
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            lacking = [name for name in _COLUMNS if name not in (reader.fieldnames or ())]
            if lacking:
                there = ", ".join(map(repr, reader.fieldnames or ())) or "nothing"
                raise EpicError(f"{path}: no columns {', '.join(lacking)} in its first line, which names {there}; expected an "
                                "EPIC-KITCHENS-100 annotation file, with commas between the cells")  # fmt: skip
            return [_action(row, first_uid + number, f"{path}, row {number + 1}") for number, row in enumerate(reader)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EpicError(f"{path}: no csv file of annotations ({error}); fetch it again, or save it as UTF-8") from None


def check_cells(row: Mapping[Any, Any], where: str) -> None:
    """EpicError for a row of csv.DictReader with text behind its last column: a comma without quotes moves all that follows it."""
    beyond = [cell for cell in row.get(None, ()) if cell.strip()]
    if beyond:
        raise EpicError(f"{where}: {beyond[0]!r} is in no column; a text with a comma in it needs double quotes around it")


def _action(row: Mapping[Any, Any], uid: int, where: str) -> Action:
    check_cells(row, where)
    try:
        start, stop = int(row["start_frame"]), int(row["stop_frame"])
    except (TypeError, ValueError):
        raise EpicError(f"{where}: start_frame {row['start_frame']!r} and stop_frame {row['stop_frame']!r} must be whole numbers") from None
    texts = {name: row[name] for name in _COLUMNS if not name.endswith("_frame")}
    if any(not isinstance(value, str) for value in texts.values()):
        raise EpicError(f"{where}: cut off, it has no {', '.join(name for name, value in texts.items() if value is None)}")
    try:
        frame_path(texts["participant_id"], texts["video_id"], start)
    except EpicError as error:
        raise EpicError(f"{where}: {error}") from None
    return Action(uid=uid, start_frame=start, stop_frame=stop, start_time=_clock_seconds(row.get("start_timestamp")), **texts)


def _clock_seconds(text: Any) -> float | None:
    """Of hours:minutes:seconds; None for anything else."""
    try:
        hours, minutes, seconds = (float(part) for part in text.split(":"))
    except (AttributeError, ValueError):
        return None
    return hours * 3600 + minutes * 60 + seconds


def frames_before(action: Action, fps: float = 60.0, **observation: Any) -> list[int]:
    """`observed_frames` of an action."""
    return observed_frames(action.start_frame, fps, start_time=action.start_time, **observation)


def clip_frames(action: Action, root: str | Path, fps: float = 60.0, **observation: Any) -> list[Path]:
    """The observed frames of an action under `root`; `observation` as for `observed_frames`. Raises EpicError naming the frames that are
    missing."""
    numbers = frames_before(action, fps, **observation)
    paths = [Path(root) / frame_path(action.participant_id, action.video_id, number) for number in numbers]
    missing = [str(path) for path in dict.fromkeys(paths) if not path.is_file()]
    if missing:
        raise EpicError(f"action {action.uid}: {len(missing)} of {len(set(paths))} observed frames are missing, first {missing[0]}")
    return paths


def trajectory_label(
    label: Mapping[str, Any] | str | Path, size: tuple[int, int] = FRAME_SIZE, steps: Sequence[int] = LABEL_STEPS
) -> dict[str, np.ndarray]:
    """A published label, or its file, as fractions of the last observed frame.

    Args:
        label: `hand_trajs[side]["traj"]` (21, 2) pixels of that frame over 1 s, side "LEFT" or "RIGHT"; a missing side is a missing hand.
            Labels of `scripts/prepare_clips.py` also have "valid" (21,) bool: a point that is not only fills a gap.
        size: (width, height) of the frame; (1, 1) gives pixels.
        steps: which of the 21 points, the first being the last observed moment.

    Returns `future_hands` (2, 5, 2) float32, hands left, right: the last observed moment, then +0.25 … +1 s, a missing hand below the
    picture; `future_valid` (2,) bool, whether a hand has a label; `step_known` (2, 5) bool, whether a point is labelled; `step_valid`
    (2, 5) bool, whether it is also inside the picture. Raises EpicError for another shape or points that are not finite,
    UnsafePickleError for a file with code in it.
    """
    where = "trajectory label"
    if isinstance(label, (str, Path)):
        where, label = str(label), read_label(label)
    paths = label.get("hand_trajs") if isinstance(label, Mapping) else None
    if not isinstance(paths, Mapping):
        raise EpicError(f"{where}: hand_trajs is {type(paths).__name__}, expected a dict of RIGHT and LEFT")
    if not set(paths) <= set(MISSING):
        raise EpicError(f"{where}: hand_trajs has {', '.join(map(repr, paths))}, expected RIGHT, LEFT, both or none")
    hands = np.empty((2, len(steps), 2), np.float32)
    known = np.zeros((2, len(steps)), bool)
    for hand, side in enumerate(("LEFT", "RIGHT")):
        hands[hand] = MISSING[side]
        if side in paths:
            hands[hand] = _path(paths[side], f"{where}, {side}")[list(steps)] / np.asarray(size, np.float64)
            known[hand] = _labelled(paths[side], f"{where}, {side}")[list(steps)]
    present = np.array([side in paths for side in ("LEFT", "RIGHT")])
    inside = ((hands >= 0) & (hands < 1)).all(-1)
    return {"future_hands": hands, "future_valid": present, "step_known": known, "step_valid": inside & known}


def read_label(path: str | Path) -> dict[str, Any]:
    """The contents of a `label_<uid>.pkl`, read without running anything in it.

    Raises EpicError for a missing or damaged file, UnsafePickleError for one that asks for code.
    """
    if not Path(path).is_file():
        raise EpicError(f"{path}: no such label")
    try:
        return read_plain_pickle(path, "trajectory label")
    except UnsafePickleError:
        raise
    except ValueError as error:
        raise EpicError(str(error)) from None


def _path(entry: Any, where: str) -> np.ndarray:
    points = entry.get("traj") if isinstance(entry, Mapping) else None
    points = _as_array(np.nan if points is None else points, where)
    if points.shape != (21, 2) or points.dtype.kind not in "fiu":
        raise EpicError(f"{where}: expected traj (21, 2) of numbers, got {points.shape} of {points.dtype}")
    points = points.astype(np.float64)
    finite = np.abs(points) < np.finfo(np.float32).max
    if not finite.all():
        broken = int((~finite).any(-1).sum())
        raise EpicError(f"{where}: {broken} of 21 points are not finite; make the label again or leave it out")
    return points


def _as_array(value: Any, where: str) -> np.ndarray:
    try:
        return np.asarray(value)
    except ValueError:  # lists of several lengths
        raise EpicError(f"{where}: lists of several lengths, expected one value for each of 21 points") from None


def _labelled(entry: Mapping[str, Any], where: str) -> np.ndarray:
    """(21,) bool: which points of a path are labels; all where nothing is said."""
    flags = _as_array(entry.get("valid", np.ones(21, bool)), where)
    if flags.shape != (21,) or flags.dtype != bool:
        raise EpicError(f"{where}: expected valid (21,) of bool, got {flags.shape} of {flags.dtype}")
    return flags


def read_questions(path: str | Path) -> dict[str, list[str]]:
    """Reasoning questions: path of the last observed frame → its questions, each between double quotes in the file's string.

    Frames without any are left out and counted in the log. Raises EpicError for a file of another kind.
    """
    try:
        content = read_json(path)
    except FileNotFoundError:
        raise EpicError(f"{path}: no such file; the question files came with HandsOnVLM's release") from None
    except (OSError, ValueError) as error:
        raise EpicError(f"{path}: not whole json ({error})") from None
    if not isinstance(content, dict):
        raise EpicError(f"{path}: holds a {type(content).__name__}, expected a json object of frame path → string of questions")
    wrong = [key for key, value in content.items() if not isinstance(value, str)]
    if wrong:
        raise EpicError(f"{path}: {wrong[0]!r} has {content[wrong[0]]!r}, expected one string of questions between double quotes")
    strangers = [key for key in content if PurePosixPath(key).is_absolute() or ".." in PurePosixPath(key).parts]
    if strangers:
        raise EpicError(f"{path}: {strangers[0]!r} leaves the frames' folder")
    found = {key: list(_questions(value)) for key, value in content.items()}
    kept = {key: questions for key, questions in found.items() if questions}
    if len(kept) < len(found):
        logger.warning("%s: %d of %d frames have no question between double quotes", path, len(found) - len(kept), len(found))
    return kept


def _questions(text: str) -> Iterator[str]:
    yield from (question.strip() for question in _QUOTED.findall(text) if question.strip())
