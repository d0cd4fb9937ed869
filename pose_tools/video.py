"""Clips in and out (PyAV): frames with their times, sampling by index or time, H.264 files that browsers play.

Frames are RGB uint8 (H, W, 3), turned upright by the file's rotation mark. Times are seconds after the first frame. A file's packets are
listed first (no decoding), so that "frame 57" and "at 3.2 s" mean the same for every frame rate, also a varying one; reading then seeks
to the key frame before a target and decodes forward.
"""

from __future__ import annotations

import itertools
import logging
import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.files import atomic_path
from pose_tools.image_io import MAX_PIXELS
from pose_tools.user_error import UserError

logger = logging.getLogger(__name__)

# Containers only: a play list (HLS, concat …) would make the decoder open other files and addresses.
CONTAINERS = "mov,mp4,matroska,webm,avi,mpegts,mpeg,flv,asf,ogg,gif,mjpeg,h264,hevc,m4v"


class VideoError(UserError):
    """A clip that cannot be read or written; the message names the file, what is wrong and what to do."""


@dataclass(frozen=True)
class VideoInfo:
    """`width`, `height` in pixels of the upright picture; `times` (T,) seconds of all frames; `fps` their average rate."""

    width: int
    height: int
    fps: float
    times: np.ndarray

    @property
    def frame_count(self) -> int:
        return len(self.times)

    @property
    def duration(self) -> float:
        """Seconds from the first frame until the last one has been shown."""
        return float(self.times[-1]) + 1 / self.fps


@dataclass(frozen=True)
class ObservedInfo(VideoInfo):
    """What `observe` met: how many of its moments lay before the video (`repeated` its first frame) and how many could not be decoded
    (`damaged`, a neighbour stands for each); `scale` = pixels of a returned frame / pixels of the upright picture, at most 1."""

    repeated: int = 0
    damaged: int = 0
    scale: float = 1.0

    @property
    def notes(self) -> tuple[str, ...]:
        """The same in sentences for people; empty where all went well."""
        notes = []
        if self.repeated:
            notes.append(f"the clip is shorter than what is looked at: its first frame stands for {self.repeated} moments before it")
        if self.damaged:
            notes.append(f"{self.damaged} of the frames looked at are damaged: their neighbours stand for them")
        if self.scale < 1:
            notes.append(f"frames of {self.width}x{self.height} were made smaller, by {self.scale:.3g}")
        return tuple(notes)


@dataclass(frozen=True)
class Clip:
    """Some `frames` of a video, in the order asked for, with their `indices` and `times` (T,) in it; `fps` is the whole video's."""

    frames: tuple[np.ndarray, ...]
    indices: np.ndarray
    times: np.ndarray
    fps: float


def probe(path: str | os.PathLike) -> VideoInfo:
    """Size, rate and frame times of a video, without decoding more than its first frame. Raises VideoError."""
    listing = _list_frames(path)
    with _open(path) as (container, stream):
        first = next(_decode(container, stream, path))
        height, width = _upright(first).shape[:2]
        return VideoInfo(width, height, listing.fps, listing.times)


def read_frames(
    path: str | os.PathLike,
    *,
    indices: Sequence[int] | None = None,
    times: Sequence[float] | None = None,
    count: int | None = None,
    longest: int | None = None,
) -> Clip:
    """Frames by number (`indices`), by time (`times`, seconds: what is on the screen then), or `count` of them evenly spread.

    Exactly one of the three is given; repeats and any order are fine, as are more frames than there are (`count` then repeats some).
    `longest`: larger frames are scaled to it while they are read. Raises VideoError for what cannot be read, and ValueError for indices
    or times outside the video.
    """
    if sum(value is not None for value in (indices, times, count)) != 1:
        raise ValueError("read_frames: give exactly one of indices, times and count")
    listing = _list_frames(path)
    wanted = _wanted(listing, path, indices, times, count)
    with _open(path) as (container, stream):
        scale = min(1.0, (longest or float("inf")) / max(stream.width, stream.height))
        chosen = _seek_and_decode(container, stream, listing, sorted(set(wanted)), path)
        found = {index: _upright(frame, scale) for index, frame, _ in chosen}
    return Clip(tuple(found[i] for i in wanted), np.array(wanted, dtype=int), listing.times[wanted], listing.fps)


def observe(
    path: str | os.PathLike, count: int = 10, rate: float = 4.0, end: float | None = None, *, longest: int | None = None
) -> tuple[tuple[np.ndarray, ...], np.ndarray, ObservedInfo]:
    """The `count` frames at `rate` Hz up to the moment `end`: what a person saw before it.

    Args:
        path: a video file.
        count: number of frames, at least 1.
        rate: frames per second, whatever the file's own rate, also a varying one: what is on the screen at each moment.
        end: seconds, the moment of the last frame; None is the file's last frame.
        longest: larger frames are scaled, while they are read, so that their longer side has so many pixels.

    Returns:
        frames: RGB uint8 (H, W, 3), upright, all of one size; moments before the video have its first frame.
        times: (count,) seconds of the moments, evenly spaced; negative before the video.
        info: size and frame times of the file, and what had to be made up for (`info.notes`).

    Raises:
        VideoError: not a video, or nothing in it can be decoded. One damaged frame is no error.
        ValueError: a count below 1, a rate that is not positive, or a moment outside the video.
    """
    if count < 1 or not (np.isfinite(rate) and rate > 0):
        raise ValueError(f"observe: needs a count of at least 1 and a positive rate, got {count} and {rate}")
    if longest is not None and longest < 1:
        raise ValueError(f"observe: longest is {longest}, expected at least 1 pixel")
    listing = _list_frames(path)
    last = float(listing.times[-1]) if end is None else float(end)
    _wanted(listing, path, None, [last], None)  # refuses an end outside the video, by its own number
    moments = last - np.arange(count - 1, -1, -1) / rate
    wanted = _wanted(listing, path, None, np.maximum(moments, 0).tolist(), None)
    with _open(path) as (container, stream):
        scale = min(1.0, (longest or float("inf")) / max(stream.width, stream.height))
        found, damaged, turned = {}, set(), False
        for index, frame, exact in _seek_and_decode(container, stream, listing, sorted(set(wanted)), path, skip_damaged=True):
            found[index] = _upright(frame, scale)
            damaged |= set() if exact else {index}
            turned = round(frame.rotation / 90) % 2 == 1
        width, height = (stream.height, stream.width) if turned else (stream.width, stream.height)
    frames = tuple(found[i] for i in wanted)
    repeated = int((moments < -1e-6).sum())
    return frames, moments, ObservedInfo(width, height, listing.fps, listing.times, repeated, sum(i in damaged for i in wanted), scale)


def iterate_frames(path: str | os.PathLike) -> Iterator[tuple[float, np.ndarray]]:
    """Every frame in order with its time, one in memory at a time. Raises VideoError, also in the middle of a damaged file."""
    return ((time, frame) for _, time, frame in sampled_frames(path))


def sampled_frames(path: str | os.PathLike, *, stride: int = 1, rate: float | None = None) -> Iterator[tuple[int, float, np.ndarray]]:
    """Numbers, times and pictures of frames 0, `stride`, 2 · `stride` … or, with `rate`, of the first frame at or after each 1/`rate` s.

    One picture is in memory at a time; those in between are decoded but not converted. Raises VideoError, also in the middle of a
    damaged file.
    """
    if stride < 1 or (rate is not None and not (np.isfinite(rate) and rate > 0)):
        raise ValueError(f"sampled_frames: needs a stride of at least 1 and a positive rate, got {stride} and {rate}")
    with _open(path) as (container, stream):
        first, frames_per_second, due = None, _rate(stream), 0.0
        for number, frame in enumerate(_decode(container, stream, path)):
            timed = frame.pts is not None and not _without_times(container)
            time = float(frame.pts * frame.time_base) if timed else number / frames_per_second
            first = time if first is None else first
            if rate is None and number % stride:
                continue
            if rate is not None:
                if time - first < due - 1e-6:
                    continue
                due = (np.floor((time - first) * rate + 1e-6) + 1) / rate
            yield number, time - first, _upright(frame)


def sample_indices(frame_count: int, count: int) -> list[int]:
    """`count` frame numbers evenly spread over 0 … frame_count − 1, both ends included (halves to the even number)."""
    if frame_count < 1 or count < 1:
        raise ValueError(f"sample_indices: needs frames and a count of at least 1, got {frame_count} and {count}")
    return np.rint(np.linspace(0, frame_count - 1, count)).astype(int).tolist()


def write_video(path: str | os.PathLike, frames: Iterable[np.ndarray], fps: float, *, crf: int = 18) -> None:
    """Writes RGB uint8 frames (H, W, 3) of one size as H.264 yuv420p .mp4, whole or not at all.

    H.264 stores even sizes only: an odd side gets one more row or column, a copy of the last. `crf` 0–51, smaller is better.
    """
    import av

    if not (np.isfinite(fps) and fps > 0):
        raise VideoError(f"{path}: fps must be positive, got {fps}")
    frames = iter(frames)
    first = next(frames, None)
    if first is None:
        raise VideoError(f"{path}: no frames to write")
    shape = np.asarray(first).shape
    if len(shape) != 3 or shape[2] != 3 or 0 in shape:
        raise VideoError(f"{path}: frames must be uint8 (H, W, 3), the first is {shape}")
    try:
        with atomic_path(path) as temporary:
            _encode(temporary, itertools.chain([first], frames), shape, fps, crf, path)
    except (av.FFmpegError, OSError) as error:
        raise VideoError(f"{path}: cannot be written ({_reason(error)}); is there room, and may we write there?") from error


def _encode(temporary: Path, frames: Iterable[np.ndarray], shape: tuple[int, ...], fps: float, crf: int, path: Any) -> None:
    import av

    with av.open(str(temporary), "w", format="mp4") as container:
        stream = container.add_stream("libx264", rate=Fraction(fps).limit_denominator(10_000))
        stream.width, stream.height = (shape[1] + 1) // 2 * 2, (shape[0] + 1) // 2 * 2
        stream.pix_fmt, stream.options = "yuv420p", {"crf": str(crf)}
        for number, frame in enumerate(frames):
            frame = np.asarray(frame)
            if frame.shape != shape or frame.dtype != np.uint8:
                raise VideoError(f"{path}: frame {number} is {frame.dtype} {frame.shape}, expected uint8 (H, W, 3) as the first, {shape}")
            even = np.pad(frame, [(0, shape[0] % 2), (0, shape[1] % 2), (0, 0)], mode="edge")
            container.mux(stream.encode(av.VideoFrame.from_ndarray(even, format="rgb24")))
        container.mux(stream.encode(None))


@dataclass(frozen=True)
class _Listing:
    """All frames in the order they are shown: time stamps `pts` (None where the file has none), `times`, which are `keys`
    (key frames). `indexed`: the container has an index, so that a seek lands where it should; others are read from the start."""

    pts: np.ndarray | None
    times: np.ndarray
    keys: np.ndarray
    fps: float
    indexed: bool

    def __post_init__(self) -> None:
        self.times.flags.writeable = False  # shared by all who ask for this file


@contextmanager
def _open(path: str | os.PathLike) -> Iterator[tuple[Any, Any]]:
    import av

    path = Path(path)
    try:
        size = path.stat().st_size
    except (OSError, ValueError) as error:  # ValueError: a zero character in the path
        raise VideoError(f"{path}: cannot be read ({_reason(error)}); check the path") from error
    if path.is_dir() or size == 0:
        raise VideoError(f"{path}: {'is a folder, not a video' if path.is_dir() else 'the file is empty (0 bytes)'}")
    try:
        container = av.open(f"file:{path.resolve()}", options={"format_whitelist": CONTAINERS}, metadata_errors="ignore")
    except (av.FFmpegError, OSError, ValueError) as error:
        raise VideoError(f"{path}: not a video we can read, or cut off ({size} bytes; {_reason(error)}); get the file again") from error
    with container:
        if not container.streams.video:
            kinds = ", ".join(sorted({s.type for s in container.streams})) or "no"
            raise VideoError(f"{path}: has no picture track, only {kinds} data")
        stream = container.streams.video[0]
        if stream.codec_context is None:
            raise VideoError(f"{path}: no decoder for its picture track")
        if stream.width * stream.height > MAX_PIXELS:
            raise VideoError(f"{path}: refused, frames of {stream.width}x{stream.height} are more than {MAX_PIXELS / 1e6:.0f} megapixels")
        stream.thread_type = "AUTO"
        yield container, stream


def _list_frames(path: Any) -> _Listing:
    """The time stamps of all packets, nothing decoded; a file that breaks off lists what is there. Many clips of one video list it once."""
    facts = os.stat(path) if os.path.exists(path) else None  # what is wrong with a path is said when it is opened
    return _listed(path, facts.st_mtime_ns if facts else 0, facts.st_size if facts else 0)


@lru_cache(maxsize=8)
def _listed(path: Any, changed: int, size: int) -> _Listing:
    import av

    packets = []
    with _open(path) as (container, stream):
        try:
            packets = [(p.pts, p.is_keyframe) for p in container.demux(stream) if p.size and not p.is_discard]
        except av.FFmpegError as error:
            logger.warning("%s: damaged after %d frames (%s), the rest is left out", path, len(packets), _reason(error))
        rate, time_base, without_times = _rate(stream), float(stream.time_base), _without_times(container)
        indexed = container.format.name.startswith(("mov", "matroska"))
    if not packets:
        raise VideoError(f"{path}: its picture track holds no frames")
    if without_times or any(pts is None for pts, _ in packets):
        numbers = np.arange(len(packets))
        return _Listing(None, numbers / rate, numbers == 0, rate, indexed=False)
    packets.sort()
    pts = np.array([p for p, _ in packets], dtype=np.int64)
    times = (pts - pts[0]) * time_base
    fps = float((len(times) - 1) / times[-1]) if times[-1] > 0 else rate
    return _Listing(pts, times, np.array([key for _, key in packets]), fps, indexed)


def _wanted(listing: _Listing, path: Any, indices: Sequence[int] | None, times: Sequence[float] | None, count: int | None) -> list[int]:
    total = len(listing.times)
    if count is not None:
        return sample_indices(total, count)
    if times is not None:
        asked = np.asarray(times, dtype=np.float64).reshape(-1)
        end = listing.times[-1] + 1 / listing.fps
        if not ((asked >= 0) & (asked <= end)).all():
            raise ValueError(
                f"{path}: times must lie between 0 and {end:.3f} s, got {asked[~((asked >= 0) & (asked <= end))][:5].tolist()}"
            )
        # A microsecond of grace: 2 / 30 s must find frame 2 although both numbers are rounded.
        return (np.searchsorted(listing.times, asked + 1e-6, side="right") - 1).tolist()
    wanted = [int(i) for i in (indices if indices is not None else ())]
    if any(not 0 <= i < total for i in wanted):
        raise ValueError(f"{path}: frame numbers must lie between 0 and {total - 1}, got {[i for i in wanted if not 0 <= i < total][:5]}")
    return wanted


def _seek_and_decode(
    container: Any, stream: Any, listing: _Listing, wanted: list[int], path: Any, skip_damaged: bool = False
) -> Iterator[tuple[int, Any, bool]]:
    """Decodes the `wanted` frame numbers (ascending), seeking wherever a key frame lies between here and the next of them.

    Yields number, frame and whether it is that frame: with `skip_damaged` the next sound one stands for it, or the last there is.
    """
    keys = np.flatnonzero(listing.keys)
    decoder, position, frame = _decode(container, stream, path, skip_damaged=skip_damaged), -1, None
    for index in wanted:
        key = int(keys[max(0, int(np.searchsorted(keys, index, side="right")) - 1)]) if keys.size else 0
        if listing.pts is not None and listing.indexed and key > position + 1:
            decoder = _decode(container, stream, path, int(listing.pts[key]), skip_damaged)
        while position < index and (decoded := next(decoder, None)) is not None:
            frame = decoded
            position = position + 1 if listing.pts is None else int(np.searchsorted(listing.pts, frame.pts))
        if frame is None or (position < index and not skip_damaged):
            raise VideoError(f"{path}: frame {index} of {len(listing.times)} cannot be decoded, the file is damaged or cut off")
        yield index, frame, position == index


def _decode(container: Any, stream: Any, path: Any, seek_to: int | None = None, skip_damaged: bool = False) -> Iterator[Any]:
    import av

    count = 0
    try:
        if seek_to is not None:
            container.seek(seek_to, stream=stream)
        for frame in _sound_frames(container, stream) if skip_damaged else container.decode(stream):
            yield frame
            count += 1
    except av.FFmpegError as error:
        raise VideoError(f"{path}: damaged after {count} decoded frames ({_reason(error)}); get the file again") from error
    if count == 0 and not skip_damaged:
        raise VideoError(f"{path}: no frame could be decoded, the file is damaged or cut off")


def _sound_frames(container: Any, stream: Any) -> Iterator[Any]:
    """The frames that can be decoded; packets that cannot, and frames that the decoder knows to be damaged, are passed over."""
    import av

    for packet in container.demux(stream):
        try:
            frames = packet.decode()
        except av.FFmpegError:
            continue
        yield from (frame for frame in frames if not frame.is_corrupt)


def _upright(frame: Any, scale: float = 1.0) -> np.ndarray:
    """RGB array of a decoded frame, made smaller by `scale`, turned as the file's display matrix says (ffmpeg counts counter-clockwise)."""
    turns = round(frame.rotation / 90)
    if scale < 1:
        frame = frame.reformat(max(1, round(frame.width * scale)), max(1, round(frame.height * scale)), "rgb24", interpolation="AREA")
    return np.ascontiguousarray(np.rot90(frame.to_ndarray(format="rgb24"), turns))


def _without_times(container: Any) -> bool:
    """AVI stores no time stamps; what ffmpeg makes up for it is wrong where frames are stored in decoding order."""
    return container.format.name == "avi"


def _rate(stream: Any) -> float:
    rate = stream.average_rate or stream.base_rate or stream.guessed_rate
    return float(rate) if rate else 25.0


def _reason(error: Exception) -> str:
    return getattr(error, "strerror", None) or str(error)
