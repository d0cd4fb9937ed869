"""Labels for the user's own clips: where both hands go in the second after the last observed frame, in pixels of that frame.

A hand is followed through the observed frames and 21 more over the next second (`pose_tools.track`); what the camera did meanwhile is
taken back by the homographies between these (`pose_tools.camera_motion`). A point counts where both are known. The folder is the one
that `data.epic_clips.EpicClips` reads:

    P01/rgb_frames/<video>/frame_0000000136.jpg    observed frames, numbered as at 60 fps
    EPIC_100_train.csv   labels/label_<uid>.pkl    what can be used; the row's number is its uid
    windows.jsonl  prepared.json                   every window with its points, homographies, and why it was left out
    videos.json                                    counts of every video
"""

from __future__ import annotations

import csv
import io
import json
import pickle
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.clip_windows import FPS, GAP, Window
from data.epic_kitchens import LABEL_STEPS, EpicError, frame_path, observed_frames
from data.synthetic import journal
from data.synthetic.epic_writer import COLUMNS
from pose_tools.camera_motion import move, register
from pose_tools.files import FolderBusyError, atomic_path, exclusive, write_text
from pose_tools.track import Detector, track_hands
from pose_tools.types import SIDES
from pose_tools.video import VideoError, probe, read_frames

VERSION = 1
"""Raised whenever the same video gives other labels."""
FUTURE = np.arange(21) / 20
JOURNAL, MANIFEST, ANNOTATIONS = "windows.jsonl", "prepared.json", "EPIC_100_train.csv"
FAR = 1.0
"""A point so many picture sizes outside the picture is no label."""
NO_HAND, NO_CAMERA = "have no hand", "have no homography"


@dataclass(frozen=True)
class LabelSettings:
    """What labels depend on beside videos and windows. `size`: pixels of a frame's shorter side (larger frames are made smaller);
    `hands`: the detector's name, for the record."""

    size: int = 256
    hands: str = "small"


def make_labels(
    out: str | Path, windows: Sequence[Window], settings: LabelSettings, workers: int = 1, detector: Detector | None = None
) -> Iterator[int]:
    """Labels every window that has none yet; yields how many are done, first those that were there; then writes labels and csv.

    Stopped at any moment and taken up again it ends with the same files as uninterrupted. `detector` as of `track_hands`. Raises
    journal.FolderError for a folder of other settings, windows or things, FolderBusyError.
    """
    out = Path(out)
    _check_folder(out)
    _check_windows(out, windows)
    write = partial(_write_window, out, settings, detector)
    about = {"kind": "prepared clips", "version": VERSION, "size": settings.size, "hands": settings.hands}
    try:
        # one at a time, for each takes seconds
        yield from journal.fill(out, JOURNAL, MANIFEST, about, write, len(windows), workers, jobs=windows, chunksize=1)
    finally:
        if (out / JOURNAL).is_file():
            with suppress(FolderBusyError), exclusive(out):  # who else is writing here ends with the folder himself
                write_folder(out)


def read_windows(out: str | Path) -> list[dict[str, Any]]:
    """The records of a prepared folder. FolderError when there are none."""
    return journal.read_lines(Path(out) / JOURNAL, "make it with scripts/prepare_clips.py")


def _check_folder(out: Path) -> None:
    """Another data set's labels and annotation file would be written over."""
    if (out / MANIFEST).is_file() or (out / JOURNAL).is_file() or not out.is_dir():
        return
    others = sorted(path.name for path in out.iterdir() if not path.name.startswith("."))
    if others:
        raise journal.FolderError(
            f"{out}: holds other things ({', '.join(others[:5])}{' …' if len(others) > 5 else ''}) that were not made by prepare_clips.py; "
            "name a new folder as --out"
        )


def _check_windows(out: Path, windows: Sequence[Window]) -> None:
    """What was labelled must be the beginning of what is to be labelled."""
    there = read_windows(out) if (out / JOURNAL).is_file() else []
    for number, (record, window) in enumerate(zip(there, windows, strict=False)):
        got, asked = _identity(record), _identity(_about(window))
        if got != asked:
            raise journal.FolderError(
                f"{out / JOURNAL}, line {number + 1}: labels {got} where {asked} is asked for now; videos and actions may only be added "
                "behind those that are there. Choose another --out, or delete the folder"
            )
    if len(there) > len(windows):
        raise journal.FolderError(f"{out / JOURNAL}: labels {len(there)} windows, {len(windows)} are asked for now; choose another --out")


def _identity(record: Mapping[str, Any]) -> tuple[Any, ...]:
    return tuple(record[key] for key in ("video_id", "participant_id", "start_frame", "stop_frame", "narration"))


def _about(window: Window) -> dict[str, Any]:
    return {
        "video_id": window.video_id, "participant_id": window.participant_id, "start_frame": window.start_frame,
        "stop_frame": window.stop_frame, "narration": window.narration, "verb": window.verb, "noun": window.noun,
    }  # fmt: skip


def _write_window(out: Path, settings: LabelSettings, detector: Detector | None, window: Window) -> str:
    """Writes a window's frames; returns its record's line."""
    record, files = label_window(window, settings, detector)
    return journal.save(out, record, files)


def label_window(window: Window, settings: LabelSettings, detector: Detector | None = None) -> tuple[dict[str, Any], dict[str, bytes]]:
    """The record of one window and its frames' files; a window that cannot be labelled has no files, and `left_out` says why."""
    about = _about(window)
    try:
        numbers = observed_frames(window.start_frame, FPS, gap=GAP)
        frames, times = _read(window, numbers, settings.size)
    except (EpicError, VideoError, ValueError) as error:
        reasons: dict[type[Exception], str] = {EpicError: "begin before anything is observed", VideoError: "cannot be decoded"}
        return {**about, "left_out": reasons.get(type(error), "end after the video"), "problem": str(error)}, {}
    distinct = len(set(numbers))
    tracks = {track.side: track for track in track_hands(frames, FPS, detector=detector, times=times)}
    boxes = np.full((len(frames), 2, 4), np.nan)
    for hand, side in enumerate(SIDES):
        if side in tracks:
            boxes[:, hand] = tracks[side].bbox_xyxy
    camera = register(frames[distinct - 1 :], list(boxes[distinct - 1 :]))
    height, width = frames[0].shape[:2]
    points, known = future_points(boxes[distinct - 1 :], camera.homographies, (width, height))
    record = {
        **about, "left_out": _problem(boxes[distinct - 1 :], known),
        "frames": [frame_path(window.participant_id, window.video_id, number) for number in numbers], "size": [width, height],
        "points": [[None if np.isnan(p).any() else p for p in hand] for hand in points.round(3).tolist()], "known": known.tolist(),
        "homographies": [None if np.isnan(h).any() else h for h in camera.homographies.round(9).tolist()],
        "matches": camera.matches.tolist(),
    }  # fmt: skip
    if record["left_out"]:
        return record, {}
    paths = dict.fromkeys(record["frames"])
    files = {path: _jpeg(frame) for path, frame in zip(paths, frames[:distinct], strict=True)}
    return record, files


def _problem(boxes: np.ndarray, known: np.ndarray) -> str | None:
    """Why none of the points that are learnt from is known."""
    if known[:, list(LABEL_STEPS[1:])].any():
        return None
    return NO_HAND if np.isnan(boxes[list(LABEL_STEPS[1:])]).all() else NO_CAMERA


def future_points(boxes: np.ndarray, homographies: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """The middles of `boxes` (T, 2, 4), pixels of their own frames, as (2, T, 2) pixels of the first frame, and which are known (2, T).

    NaN where a hand or a homography (T, 3, 3) is missing, or the point lies far outside of the picture of `size` (width, height).
    """
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2
    points = np.stack([move(middle, homography) for middle, homography in zip(middles, homographies, strict=True)], axis=1)
    reach = FAR * np.array(size, float)
    with np.errstate(invalid="ignore"):
        known: np.ndarray = np.all((points > -reach) & (points < np.array(size) + reach), axis=-1)
    return np.where(known[..., None], points, np.nan), known


def _read(window: Window, numbers: Sequence[int], size: int) -> tuple[list[np.ndarray], list[float]]:
    """The distinct observed frames, then the 20 of the future, and their times in the video. VideoError, ValueError: beyond its end."""
    info = probe(window.path)
    longest = max(1, round(size * max(info.width, info.height) / min(info.width, info.height)))
    observed = [(number - 1) / FPS for number in dict.fromkeys(numbers)]
    times = [*observed, *(observed[-1] + FUTURE[1:]).tolist()]
    if times[-1] > info.times[-1] + 1e-6:
        raise ValueError(f"{window.path}: the future of this action ends at {times[-1]:.2f} s, the video at {info.times[-1]:.2f} s")
    return list(read_frames(window.path, times=times, longest=longest).frames), times


def _jpeg(frame: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 95])[1].tobytes()


def write_folder(out: Path) -> None:
    """Labels, the annotation file and the counts, of the windows that are done; a function of the journal."""
    windows = read_windows(out)
    used = [record for record in windows if not record["left_out"]]
    for uid, record in enumerate(used):
        with atomic_path(out / "labels" / f"label_{uid}.pkl") as path:
            path.write_bytes(label(record))
    for stale in (out / "labels").glob("label_*.pkl"):
        if int(stale.stem.split("_")[1]) >= len(used):
            stale.unlink()
    write_text(out / ANNOTATIONS, annotation_rows(used))
    write_text(out / "videos.json", json.dumps(counts(windows), indent=1))


def label(record: Mapping[str, Any]) -> bytes:
    """A label file in the published form: plain containers and arrays. What is not known is filled in from its neighbours, and marked."""
    hands = {}
    for side, path, known in zip(SIDES, record["points"], np.array(record["known"], bool), strict=True):
        if known.any():
            points = np.array([[np.nan, np.nan] if p is None else p for p in path], np.float64)
            filled = np.stack([np.interp(FUTURE, FUTURE[known], points[known, axis]) for axis in range(2)], axis=1)
            hands[side.upper()] = {"traj": filled, "valid": known}
    homographies = [np.full((3, 3), np.nan) if h is None else h for h in record["homographies"]]
    return pickle.dumps({"hand_trajs": hands, "homography": np.array(homographies, np.float64)}, protocol=4)


def annotation_rows(records: Sequence[Mapping[str, Any]]) -> str:
    """The annotation file, in EPIC-KITCHENS-100's columns."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for uid, record in enumerate(records):
        start, stop = (f"{(record[key] - 1) / FPS:.2f}" for key in ("start_frame", "stop_frame"))
        writer.writerow({
            "narration_id": f"{record['video_id']}_{uid}", "participant_id": record["participant_id"], "video_id": record["video_id"],
            "narration_timestamp": start, "start_timestamp": start, "stop_timestamp": stop, "start_frame": record["start_frame"],
            "stop_frame": record["stop_frame"], "narration": record["narration"], "verb": record["verb"], "verb_class": -1,
            "noun": record["noun"], "noun_class": -1, "all_nouns": [record["noun"]] if record["noun"] else [], "all_noun_classes": [],
        })  # fmt: skip
    return out.getvalue()


def counts(records: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """By video: windows, those used, why the others are not, hands that have a path, and the shares of its points that are known."""
    found: dict[str, dict[str, Any]] = {}
    for name in dict.fromkeys(record["video_id"] for record in records):
        own = [record for record in records if record["video_id"] == name]
        used = [record for record in own if not record["left_out"]]
        known = np.array([record["known"] for record in used], bool).reshape(-1, 2, len(FUTURE))
        cameras = [h is not None for record in own if "homographies" in record for h in record["homographies"]]
        found[name] = {
            "windows": len(own), "used": len(used), "left_out": dict(Counter(r["left_out"] for r in own if r["left_out"])),
            **{side: int(known[:, hand].any(1).sum()) for hand, side in enumerate(SIDES)},
            "points_known": round(float(known[known.any(2)].mean()), 4) if known.any() else None,
            "frames_registered": round(float(np.mean(cameras)), 4) if cameras else None,
        }  # fmt: skip
    return found
