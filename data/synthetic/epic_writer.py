"""Synthetic clips in the layout of EPIC-KITCHENS as HandsOnVLM uses it, beside a journal with everything that layout has no place for.

    SPLIT/EPIC_100_train.csv (EPIC_100_validation.csv for val and test)    an action a row; the row's number is its uid
    SPLIT/P01/rgb_frames/P01_01/frame_0000000046.jpg                        observed frames only, numbered as at 60 fps
    SPLIT/labels/label_0.pkl                                                future points of both hands, in pixels of the last frame
    SPLIT/clips.jsonl  manifest.json                                        a clip a line, see `clips.make_clip`
"""

from __future__ import annotations

import csv
import io
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.epic_kitchens import frame_path, observed_frames
from data.synthetic import clips, factors, journal, scenes, world
from data.synthetic.clip_questions import narration
from data.synthetic.clip_stories import count_before
from pose_tools.files import write_text

CLIP_VERSION = 2
"""Raised whenever the same seed gives other clips."""
START_FRAME = 241
"""Of every action: the last observed frame is a second earlier, at 3 s, and the first one 2.25 s before that."""
FPS = 60.0
CLIPS_PER_PERSON = 99
ANNOTATIONS = {"train": "EPIC_100_train.csv", "val": "EPIC_100_validation.csv", "test": "EPIC_100_validation.csv"}
COLUMNS = (
    "narration_id", "participant_id", "video_id", "narration_timestamp", "start_timestamp", "stop_timestamp", "start_frame", "stop_frame",
    "narration", "verb", "verb_class", "noun", "noun_class", "all_nouns", "all_noun_classes",
)  # fmt: skip
VERBS = ("take", "touch", "reach for", "grab", "push", "pick up", "stop before", "almost touch", "hold", "wait", "rest", "turn")


@dataclass(frozen=True)
class ClipSettings:
    """What the clips of a folder are a function of; frames are `size` pixels wide and high."""

    split: factors.Split
    seed: int = 0
    size: int = world.SIZE[0]

    def manifest(self) -> dict[str, Any]:
        """The part of the manifest that must agree before a folder is continued."""
        what = {"kind": "clips", "split": self.split, "seed": self.seed, "size": self.size, "clips": CLIP_VERSION}
        return {**what, **scenes.world_version()}


def names(index: int) -> tuple[str, str]:
    """Participant and video of clip number `index`: a video of its own, two digits as those of 60 fps have."""
    person, video = divmod(index, CLIPS_PER_PERSON)
    participant = f"P{person + 1:02d}"
    return participant, f"{participant}_{video + 1:02d}"


def encode_clip(settings: ClipSettings, index: int) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Record of one clip and its files by name; a function of the arguments alone."""
    clip = clips.make_clip(settings.seed, settings.split, index, (settings.size, settings.size))
    quality = int(world.picture_rng(settings.seed, settings.split, index, clips.STREAM + 10_000).integers(62, 96))
    participant, video = names(index)
    paths = [frame_path(participant, video, number) for number in observed_frames(START_FRAME, FPS)]
    files = {
        path: cv2.imencode(".jpg", frame[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
        for path, frame in zip(paths, clip.frames, strict=True)
    }
    first = count_before(index)
    actions = [{"uid": first + k, "narration": narration(action), **action} for k, action in enumerate(clip.record["actions"])]
    for action in actions:
        files[f"labels/label_{action['uid']}.pkl"] = label(action, clip.record["homographies"])
    record = {
        "id": f"{settings.split}-clip-{index:06d}", "participant_id": participant, "video_id": video, "start_frame": START_FRAME,
        "frames": paths, **clip.record, "actions": actions,
    }  # fmt: skip
    return record, files


def label(action: dict[str, Any], homographies: list) -> bytes:
    """A label file: plain containers and arrays, as the published ones; a hand that is not there is left out."""
    paths = {"LEFT": action["future"][0], "RIGHT": action["future"][1]}
    content = {
        "hand_trajs": {side: {"traj": np.asarray(path, np.float64)} for side, path in paths.items() if path is not None},
        "homography": np.asarray(homographies, np.float64),
    }
    return pickle.dumps(content, protocol=4)


def write_clip(settings: ClipSettings, folder: Path, index: int) -> str:
    """Writes frames and labels of one clip; returns the record's line."""
    return journal.save(folder, *encode_clip(settings, index))


def make_clips(folder: str | Path, settings: ClipSettings, count: int, workers: int = 1) -> Iterator[int]:
    """Brings a folder to at least `count` clips, then writes its annotation file; see `journal.fill`."""
    folder = Path(folder)
    write = partial(write_clip, settings, folder)
    try:
        yield from journal.fill(folder, "clips.jsonl", "manifest.json", settings.manifest(), write, count, workers)
    finally:
        if (folder / "clips.jsonl").is_file():
            write_text(folder / ANNOTATIONS[settings.split], annotation_rows(read_clip_records(folder)))


def read_clip_records(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a folder of clips. FolderError when there are none."""
    return journal.read_lines(Path(folder) / "clips.jsonl", "make it with scripts/make_synthetic.py clips")


def annotation_rows(records: list[dict[str, Any]]) -> str:
    """The annotation file of clips, in EPIC-KITCHENS-100's columns."""
    out = io.StringIO()
    writer = csv.DictWriter(out, COLUMNS, lineterminator="\n")
    writer.writeheader()
    for record in records:
        for action in record["actions"]:
            writer.writerow(_row(record, action))
    return out.getvalue()


def _row(record: dict[str, Any], action: dict[str, Any]) -> dict[str, Any]:
    start, goal = record["start_frame"], action["goal"]
    noun = goal["name"] if goal else ""
    number = factors.NAMES.index(noun) if noun else -1
    return {
        "narration_id": f"{record['video_id']}_{action['uid']}", "participant_id": record["participant_id"], "video_id": record["video_id"],
        "narration_timestamp": _clock(start), "start_timestamp": _clock(start), "stop_timestamp": _clock(start + 60), "start_frame": start,
        "stop_frame": start + 60, "narration": action["narration"], "verb": action["verb"], "verb_class": VERBS.index(action["verb"]),
        "noun": noun, "noun_class": number, "all_nouns": [noun] if noun else [], "all_noun_classes": [number] if noun else [],
    }  # fmt: skip


def _clock(frame: int) -> str:
    seconds = (frame - 1) / FPS
    return f"{int(seconds // 3600):02d}:{int(seconds // 60 % 60):02d}:{seconds % 60:05.2f}"
