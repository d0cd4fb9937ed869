"""The moments of the user's own videos that are to become clips: the actions of a csv file, or every so many seconds.

The csv needs the columns `video` (the file's name, with or without its ending) and `start`; `stop`, `narration`, `verb`, `noun` and
`participant` may be there. EPIC-KITCHENS-100's own names of columns (`video_id`, `start_timestamp` …) are understood, too. Moments are
seconds, or h:mm:ss.s.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from posixpath import splitext
from typing import Any

import numpy as np

from data.epic_kitchens import EpicError, check_cells
from data.hand_extraction import Source
from pose_tools.video import VideoError, probe

FPS = 60.0
"""Frames are numbered as of this rate, whatever the video's: what the reader of EPIC-KITCHENS folders takes for granted."""
OBSERVED, GAP, HORIZON = 2.25, 1.0, 1.0
"""Seconds from the first observed frame to the last, from there to the action, and of the future that is labelled."""
_COLUMNS = {
    "video": ("video", "video_id"), "start": ("start", "start_timestamp"), "stop": ("stop", "stop_timestamp"), "narration": ("narration",),
    "verb": ("verb",), "noun": ("noun",), "participant": ("participant", "participant_id"),
}  # fmt: skip


@dataclass(frozen=True)
class Window:
    """One action to label. `path` the video, `video_id` its name in the folder; frames from 1 at `FPS`; texts may be empty."""

    path: Path
    video_id: str
    participant_id: str
    start_frame: int
    stop_frame: int
    narration: str = ""
    verb: str = ""
    noun: str = ""


@dataclass(frozen=True)
class Moment:
    """One row of the user's file, times in seconds; `video` as it is named there."""

    video: str
    start: float
    stop: float
    narration: str
    verb: str
    noun: str
    participant: str


def video_names(sources: Sequence[Source]) -> dict[str, Source]:
    """Source by its name in the folder: letters, digits and underscores. EpicError where two would be one, or a source is no video."""
    found: dict[str, Source] = {}
    for source in sources:
        if source.path.is_dir():
            raise EpicError(f"{source.path}: a folder of pictures has no times; give the video")
        name = re.sub(r"\W+", "_", source.video_id)
        if name in found:
            raise EpicError(f"{found[name].path} and {source.path} would both be called {name!r}; rename one")
        found[name] = source
    return found


def sliding(path: Path, video_id: str, participant: str, every: float) -> list[Window]:
    """An action without a narration every `every` seconds, from the first that is fully observed. VideoError."""
    if not (np.isfinite(every) and every > 0):
        raise EpicError(f"an action every {every} s: expected a positive number")
    room = float(probe(path).times[-1]) - OBSERVED - HORIZON
    count = int(np.floor(room / every + 1e-6)) + 1 if room >= 0 else 0
    starts = [1 + round((OBSERVED + GAP + number * every) * FPS) for number in range(count)]
    return [Window(path, video_id, participant, start, start + round(HORIZON * FPS)) for start in starts]


def listed(moments: Sequence[Moment], path: Path, video_id: str, participant: str) -> list[Window]:
    """The actions of one video in their order; `participant` stands where a row names none."""
    return [
        Window(
            path, video_id, moment.participant or participant, 1 + round(moment.start * FPS), 1 + round(moment.stop * FPS),
            moment.narration, moment.verb, moment.noun,
        )
        for moment in moments
    ]  # fmt: skip


def read_moments(path: str | Path) -> list[Moment]:
    """The rows of the user's file, in order. EpicError for a missing file, a missing column or a broken row."""
    path = Path(path)
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            columns = {name: _column(reader.fieldnames or (), names) for name, names in _COLUMNS.items()}
            lacking = [name for name in ("video", "start") if columns[name] is None]
            if lacking:
                there = ", ".join(map(repr, reader.fieldnames or ())) or "nothing"
                raise EpicError(f"{path}: no column {' and no '.join(lacking)} in its first line, which names {there}; it must name the "
                                "columns, with commas between them, such as video,start,narration")  # fmt: skip
            return [_moment(row, columns, f"{path}, row {number + 1}") for number, row in enumerate(reader)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise EpicError(f"{path}: no csv file of actions ({error}); correct the path, or save it as UTF-8") from None


def _column(there: Sequence[str], names: Sequence[str]) -> str | None:
    return next((column for name in names for column in there if column.strip().lower() == name), None)


def _moment(row: Mapping[Any, Any], columns: Mapping[str, str | None], where: str) -> Moment:
    check_cells(row, where)
    values = {name: (row.get(column) or "").strip() if column else "" for name, column in columns.items()}
    start = _seconds(values["start"], f"{where}, {columns['start']}")
    stop = _seconds(values["stop"], f"{where}, {columns['stop']}") if values["stop"] else start + HORIZON
    if not values["video"]:
        raise EpicError(f"{where}: names no video")
    if stop < start:
        raise EpicError(f"{where}: stops at {stop} s, before its start at {start} s")
    if not re.fullmatch(r"\w*", values["participant"]):
        raise EpicError(f"{where}: participant {values['participant']!r}: letters, digits and underscores only")
    named = PurePosixPath(values["video"].replace("\\", "/"))
    return Moment(str(named), start, stop, values["narration"], values["verb"], values["noun"], values["participant"])


def _seconds(text: str, where: str) -> float:
    parts = text.split(":")
    if len(parts) > 3 or not all(re.fullmatch(r"\d+", part) for part in parts[:-1]) or not re.fullmatch(r"\d+(\.\d*)?|\.\d+", parts[-1]):
        raise EpicError(f"{where}: {text!r} is no moment; expected seconds (12.5) or h:mm:ss.s")
    return sum(float(part) * 60**place for place, part in enumerate(reversed(parts)))


def plan(
    sources: Mapping[str, Source], moments: Sequence[Moment] | None, *, every: float, participant: str
) -> tuple[dict[str, list[Window]], dict[str, str]]:
    """Windows by video, and why a video has none because it cannot be read.

    Raises EpicError for rows whose video is not among `sources`, or could be several, and for a participant's name that cannot be one of a
    folder.
    """
    if not re.fullmatch(r"\w+", participant):
        raise EpicError(f"participant {participant!r}: letters, digits and underscores only")
    by_video: dict[str, list[Moment]] = {name: [] for name in sources}
    asked = _sources_of(moments or (), sources)
    for moment in moments or ():
        by_video[asked[moment.video]].append(moment)
    windows: dict[str, list[Window]] = {}
    unread: dict[str, str] = {}
    for name, source in sources.items():
        try:
            if moments is None:
                windows[name] = sliding(source.path, name, participant, every)
            else:
                windows[name] = listed(by_video[name], source.path, name, participant)
                probe(source.path)
        except VideoError as error:
            windows[name], unread[name] = [], str(error)
    return windows, unread


def _sources_of(moments: Sequence[Moment], sources: Mapping[str, Source]) -> dict[str, str]:
    """Which source is meant by each name of a video in the rows: its whole name, or the file's alone, with or without the ending."""
    whole = {alias: {name} for name, source in sources.items() for alias in (name, source.video_id)}
    alone: dict[str, set[str]] = {}
    for name, source in sources.items():
        alone.setdefault(source.path.stem, set()).add(name)
    meant: dict[str, set[str]] = {}
    for video in sorted({moment.video for moment in moments}):
        bare = splitext(video)[0]
        meant[video] = whole.get(video) or whole.get(bare) or alone.get(video) or alone.get(bare, set())
    strangers = [video for video, names in meant.items() if not names]
    if strangers:
        raise EpicError(f"the action file names {len(strangers)} videos that are not there, first {strangers[0]!r}; there are "
                        f"{', '.join(sorted(sources)[:5])}")  # fmt: skip
    for video, names in meant.items():
        if len(names) > 1:
            paths = ", ".join(str(sources[name].path) for name in sorted(names))
            raise EpicError(f"the action file names {video!r}, which may be {paths}; name it with its folder")
    return {video: name for video, (name,) in meant.items()}
