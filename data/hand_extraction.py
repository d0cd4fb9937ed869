"""Videos → hand shards: frames, the hands in them with 21 key points, square crops with left hands mirrored (`data.hand_shards`).

    for summary in extract_hands(find_sources([folder]), out, Settings(stride=30), workers=8): …

A video is a unit: written whole or not at all, by one process, the same bytes whenever it is written. So a run that was killed goes on
with the videos that are not there, and ends with the folder of one that was not.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np

from data.hand_finders import Finder, Finders, finder
from data.hand_shards import PARTS, ShardError, ShardHand
from data.hand_shards_writer import hand_id, settle, unit_facts, write_index, write_unit
from data.synthetic.parallel import worker_map
from pose_tools.detect import HandDetection
from pose_tools.files import exclusive, write_text
from pose_tools.image_io import ImageError, read_image
from pose_tools.simhand.views import hand_crop, hand_crop_box
from pose_tools.video import VideoError, sampled_frames

VIDEOS = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", ".mpg", ".mpeg")
PICTURES = (".jpg", ".jpeg", ".png", ".webp")

@dataclass(frozen=True)
class Settings:
    """What the crops depend on beside the videos.

    `stride` frames from one that is looked at to the next, or `rate` a second instead; pictures in a folder are all looked at.
    `hands` and `annotations` as of `data.hand_finders.finder`. `least`: hands below this confidence are left out. A crop has `size` pixels
    and shows `scale` hand boxes.
    """

    stride: int = 30
    rate: float | None = None
    hands: Finders = "mediapipe"
    annotations: str | None = None
    least: float = 0.5
    size: int = 224
    scale: float = 1.3


@dataclass(frozen=True)
class Source:
    """A video, or a folder with its frames as pictures."""

    video_id: str
    path: Path


@dataclass
class Summary:
    """Of one video: `frames` looked at, `hands` kept, hands left out for their confidence (`unsure`) or because nothing of them lies in
    the picture (`outside`); `problem` is why the video, or the rest of it, could not be read. `kept`: it was there already."""

    video_id: str
    frames: int = 0
    hands: int = 0
    unsure: int = 0
    outside: int = 0
    problem: str | None = None
    kept: bool = False


def find_sources(paths: Iterable[str | Path]) -> list[Source]:
    """Videos and folders of frames, by name. A file is called by its stem, what lies in a folder by its path below that folder.

    A folder that holds pictures itself is one video. ShardError for a path that is missing, a folder without either, and two videos of
    one name.
    """
    found: list[Source] = []
    for path in map(Path, paths):
        if not path.exists():
            raise ShardError(f"{path}: no such file or folder; expected videos ({', '.join(VIDEOS)}) or folders")
        here = [Source(path.stem, path)] if path.is_file() else _in_folder(path)
        if not here:
            raise ShardError(f"{path}: holds no video ({', '.join(VIDEOS)}) and no picture ({', '.join(PICTURES)})")
        found += here
    found.sort(key=lambda source: source.video_id)
    for one, other in zip(found, found[1:], strict=False):
        if one.video_id == other.video_id:
            raise ShardError(f"{one.path} and {other.path} would both be called {one.video_id!r}: give the folder above both")
    return found


def _in_folder(folder: Path) -> list[Source]:
    files = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() in VIDEOS + PICTURES and path.is_file()]
    videos = [path for path in files if path.suffix.lower() in VIDEOS]
    frames = sorted({path.parent for path in files if path.suffix.lower() in PICTURES})

    def name(path: Path) -> str:
        return path.relative_to(folder).as_posix() if path != folder else folder.resolve().name

    return [Source(name(path.with_suffix("")), path) for path in videos] + [Source(name(path), path) for path in frames]


def extract_hands(sources: Sequence[Source], out: str | Path, settings: Settings, workers: int = 1) -> Iterator[Summary]:
    """Writes the shards and the index of `out`; yields a summary for every source, in order, those that were there already too.

    A video that cannot be read is in its summary and is tried again by the next run; one that breaks off keeps what came before.
    Raises BackendMissing when the detector's models are missing, ShardError for a folder of other settings, FolderBusyError.
    """
    out = Path(out)
    finder(settings.hands, settings.annotations)  # what is missing is said before anything is written
    out.mkdir(parents=True, exist_ok=True)
    with exclusive(out):
        named = {"annotations": settings.annotations and Path(settings.annotations).name}  # it may be called from another folder
        settle(out, {"kind": "extracted", **asdict(settings), **named})
        there = {source.video_id: unit_facts(out, source.video_id) for source in sources}
        missing = [source for source in sources if there[source.video_id] is None]
        with worker_map(partial(extract_video, out, settings), missing, workers, chunksize=1) as written:
            for source in sources:
                facts = there[source.video_id]
                yield next(written) if facts is None else Summary(**facts["summary"] | {"hands": facts["hands"], "kept": True})
        write_index(out, sorted(unquote(path.stem) for path in (out / PARTS).glob("*.parquet")))


def extract_video(out: Path, settings: Settings, source: Source) -> Summary:
    """One video's shards and part; nothing is written when no frame of it can be read."""
    summary = Summary(source.video_id)
    facts: dict[str, Any] = {}
    hands = _hands(source, settings, finder(settings.hands, settings.annotations), summary, facts)
    first = next(hands, None)
    if summary.frames == 0:
        summary.problem = summary.problem or "no frame in it"
        return summary
    summary.hands = write_unit(out, source.video_id, _chain(first, hands), facts)
    return summary


def _chain(first: ShardHand | None, rest: Iterator[ShardHand]) -> Iterator[ShardHand]:
    if first is not None:
        yield first
        yield from rest


def _hands(source: Source, settings: Settings, find: Finder, summary: Summary, facts: dict[str, Any]) -> Iterator[ShardHand]:
    """The hands of a video, frame by frame; counts them in `summary`, which is in `facts` when the last has come."""
    try:
        for number, picture in _frames(source, settings):
            summary.frames += 1
            kept = 0
            for hand in find(source.video_id, number, picture):
                cut = None if hand.score < settings.least else _cut(source.video_id, number, kept, picture, hand, settings)
                if cut is not None:
                    kept += 1
                    yield cut
                elif hand.score < settings.least:
                    summary.unsure += 1
                else:
                    summary.outside += 1
    except (VideoError, ImageError) as error:
        summary.problem = str(error)
    facts["summary"] = asdict(replace(summary, hands=0, kept=False))


def _frames(source: Source, settings: Settings) -> Iterator[tuple[int, np.ndarray]]:
    if source.path.is_file():
        yield from ((number, picture) for number, _, picture in sampled_frames(source.path, stride=settings.stride, rate=settings.rate))
        return
    files = [path for path in source.path.iterdir() if path.suffix.lower() in PICTURES]
    for place, path in enumerate(sorted(files)):
        digits = re.search(r"(\d+)$", path.stem)
        yield int(digits[1]) if digits else place, read_image(path)


def _cut(video_id: str, frame: int, number: int, picture: np.ndarray, hand: HandDetection, settings: Settings) -> ShardHand | None:
    """The crop of a hand, or None when nothing of its box lies in the picture."""
    try:
        box = hand_crop_box((picture.shape[1], picture.shape[0]), hand.bbox_xyxy, settings.scale)
    except ValueError:
        return None
    crop, matrix = hand_crop(picture, hand.bbox_xyxy, side=hand.side, scale=settings.scale, size=settings.size)
    seen = np.full((21, 2), np.nan) if hand.keypoints_2d is None else np.asarray(hand.keypoints_2d, np.float64)
    points = (seen @ matrix[:2, :2].T + matrix[:2, 2]).astype(np.float32)
    return ShardHand(
        hand_id(video_id, frame, number), video_id, frame, hand.side, float(hand.score), np.asarray(hand.bbox_xyxy, np.float32),
        np.asarray(box, np.float32), crop, points,
    )  # fmt: skip


def write_summaries(path: str | Path, summaries: Sequence[Summary]) -> None:
    """The counts of every video as json."""
    write_text(path, json.dumps([asdict(summary) for summary in summaries], indent=1))
