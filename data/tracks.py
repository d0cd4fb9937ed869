"""Hand tracks of a folder's clips, made once by the small detector and kept beside them, by content.

A clip is known by the bytes of its frames, so frames that were written again are looked at again, and clips that show the same are
one. The file is named after the detector's weights and what else the tracks depend on.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.detections import BATCH, SAVE_SECONDS, cache_file
from data.sample import SampleError
from pose_tools import track
from pose_tools.detect import THRESHOLDS, TOKEN_WIDTH, HandDetection, sort_detections
from pose_tools.files import atomic_path
from pose_tools.image_io import read_image

logger = logging.getLogger(__name__)

AT_A_TIME = 64
"""Clips whose frames are in memory together as detections."""


def cached_tracks(
    root: str | Path,
    clips: Iterable[tuple[str, Sequence[str | Path]]],
    *,
    fps: float = 4.0,
    detector: str | Path | None = None,
    threshold: float = THRESHOLDS["small"],
    smooth: bool = True,
) -> Mapping[str, np.ndarray]:
    """Track tokens of clips, as `pose_tools.track.track_tokens` makes them: {key: (2 · frames, 11) float32}.

    Args:
        root: the data set's folder (or a file in it); the cache lies there.
        clips: (key, the paths of its frames in order), paths absolute or as seen from here.
        fps: frames per second of all clips.
        detector: the small detector's folder, None is the shipped one.
        threshold: least score of a hand, the default of `detect_hands`.
        smooth: see `track_hands`.

    Frames that several clips share are looked at once, and what was worked out before an interruption is kept. Raises BackendMissing
    when the detector is not there, SampleError for a missing frame, ImageError for one that is no picture.
    """
    from pose_tools.small_detector import load_small_detector

    load_small_detector(detector)  # says what is missing before anything is read
    settings = (track.VERSION, threshold, fps, smooth, track.LONGEST_GAP, track.MOTION)
    file = cache_file(Path(root).absolute(), "tracks", detector, settings)
    known = _read(file)
    contents = _Contents()
    wanted = {key: contents.of_clip(key, [Path(path) for path in paths]) for key, paths in clips}
    missing = [frames for frames in dict.fromkeys(wanted.values()) if _name(frames) not in known]
    if missing:
        logger.info("following hands in %d clips of %s", len(missing), root)
        saved = time.monotonic()
        for frames, tokens in _tracked(missing, contents, fps, detector, threshold, smooth):
            known[_name(frames)] = tokens
            if time.monotonic() - saved > SAVE_SECONDS:
                _write(file, known)
                saved = time.monotonic()
        _write(file, known)
    return {key: known[_name(frames)] for key, frames in wanted.items()}


class _Contents:
    """What the frames hold: a hash of each file's bytes, and one file for each hash."""

    def __init__(self) -> None:
        self.path: dict[bytes, Path] = {}
        self._known: dict[Path, bytes] = {}

    def of_clip(self, key: str, paths: Sequence[Path]) -> tuple[bytes, ...]:
        for path in paths:
            if path not in self._known:
                try:
                    content = hashlib.blake2b(path.read_bytes(), digest_size=16).digest()
                except OSError as error:
                    reason = error.strerror or error
                    raise SampleError(f"clip {key!r}: its frame {path} cannot be read ({reason}); write the clips again") from None
                self._known[path] = content
                self.path.setdefault(content, path)
        return tuple(self._known[path] for path in paths)


def _name(frames: tuple[bytes, ...]) -> str:
    return hashlib.blake2b(b"".join(frames), digest_size=16).hexdigest()


def _tracked(
    clips: Sequence[tuple[bytes, ...]], contents: _Contents, fps: float, detector: str | Path | None, threshold: float, smooth: bool
) -> Iterator[tuple[tuple[bytes, ...], np.ndarray]]:
    """Each clip with its tokens. What frames show is forgotten when no clip of the next `AT_A_TIME` holds them."""
    from pose_tools.small_detector import load_small_detector

    model = load_small_detector(detector)
    seen: dict[bytes, list[HandDetection]] = {}
    with tqdm(total=len(clips), unit="clip", desc="tracks", mininterval=2) as progress:
        for first in range(0, len(clips), AT_A_TIME):
            some = clips[first : first + AT_A_TIME]
            frames = dict.fromkeys(frame for clip in some for frame in clip)
            seen = {frame: hands for frame, hands in seen.items() if frame in frames}
            new = [frame for frame in frames if frame not in seen]
            for start in range(0, len(new), BATCH):
                batch = new[start : start + BATCH]
                found = model.detect_batch([read_image(contents.path[frame]) for frame in batch], least=threshold)
                seen.update(zip(batch, map(sort_detections, found), strict=True))
            for clip in some:
                times = (np.arange(len(clip)) / fps).tolist()
                yield clip, track.track_tokens(track.join([seen[frame] for frame in clip], times, smooth=smooth), len(clip))
            progress.update(len(some))


def _read(file: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        return {}
    with np.load(file, allow_pickle=False) as arrays:
        ends = np.cumsum(arrays["lengths"])[:-1]
        return dict(zip(arrays["clips"].tolist(), np.split(arrays["tokens"], ends), strict=True))


def _write(file: Path, known: Mapping[str, np.ndarray]) -> None:
    tokens = [np.zeros((0, TOKEN_WIDTH), np.float32), *known.values()]
    with atomic_path(file) as temporary:
        with open(temporary, "wb") as stream:
            lengths = np.array([len(rows) for rows in known.values()], np.int64)
            np.savez_compressed(stream, clips=np.array(list(known), str), lengths=lengths, tokens=np.concatenate(tokens))
