"""What a conversation is about: a picture, or frames of a clip, as a person hands it in."""

from __future__ import annotations

import logging
import mimetypes
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.detect import TOKEN_WIDTH, detect_hands, detection_tokens
from pose_tools.image_io import MAX_PIXELS, read_image
from pose_tools.tool_protocol import BackendMissing
from pose_tools.types import Media
from pose_tools.user_error import UserError
from vlm.config import HandVLMConfig

logger = logging.getLogger(__name__)

OBSERVED, RATE = 10, 4.0
"""Frames of a clip that are looked at, and how many of them are a second apart (the time base of HandsOnVLM's EPIC-KITCHENS set)."""


class MediumError(UserError):
    """A picture or clip that is not taken; the message says why and what to do."""


@dataclass(frozen=True)
class Limits:
    """What is taken: `pixels` of a picture or frame, `seconds` of a clip, `megabytes` of a file."""

    pixels: int = MAX_PIXELS
    seconds: float = float("inf")
    megabytes: float = float("inf")


@dataclass(frozen=True, eq=False)
class Medium:
    """`frames`: RGB uint8 (H, W, 3), all of one size; a picture is one frame. `times`: seconds of a clip's frames, the last observed
    one being 0; None for a picture. `name` for people. `notes`: what they should know about how it was read. `look`: whether the hand
    tools look at it."""

    frames: tuple[np.ndarray, ...]
    times: tuple[float, ...] | None = None
    name: str = ""
    notes: tuple[str, ...] = ()
    look: bool = True

    @property
    def is_clip(self) -> bool:
        return self.times is not None

    @property
    def last(self) -> np.ndarray:
        """The picture, or the last observed frame: where boxes and paths lie."""
        return self.frames[-1]

    @property
    def size(self) -> tuple[int, int]:
        """(width, height) in pixels."""
        return self.last.shape[1], self.last.shape[0]

    @property
    def encoder(self) -> str:
        """The pose encoder that reads `hands`."""
        return "track" if self.is_clip else "detection"

    @property
    def part(self) -> dict[str, Any]:
        """The message part."""
        if self.times is None:
            return {"type": "image", "image": self.last}
        return {"type": "video", "video": list(self.frames), "times": list(self.times)}

    @property
    def media(self) -> Media:
        """What tools look at: the picture, or the clip."""
        return Media(frames=self.frames, fps=self.rate) if self.is_clip else Media(images=(self.last,))

    @property
    def rate(self) -> float:
        """Frames a second of a clip (median); 1 for a picture."""
        steps = np.diff(np.unique(self.times or ()))
        return float(1 / np.median(steps)) if len(steps) else 1.0

    @property
    def seconds(self) -> float:
        """From the first to the last frame of a clip; 0 for a picture."""
        return self.times[-1] - self.times[0] if self.times else 0.0

    @cached_property
    def hands(self) -> np.ndarray | None:
        """(2 · frames, 11) float32 pose tokens, frame-major, left then right (columns of `pose_tools.detect.detection_tokens`), each
        frame's own pixels; NaN rows where no hand is seen. None where nobody looks: `look` is off, or there is no detector."""
        if not self.look:
            return None
        try:
            if not self.is_clip:
                return detection_tokens(detect_hands(self.last))
            from pose_tools.track import track_hands, track_tokens

            return track_tokens(track_hands(list(self.frames), self.rate), len(self.frames))
        except BackendMissing as error:
            logger.warning("answering from the pixels alone: %s", error)
            return None

    @property
    def seen(self) -> np.ndarray:
        """(2,) bool: the left and the right hand are seen in some frame; both where nobody looks."""
        return np.ones(2, bool) if self.hands is None else np.isfinite(self._boxes()).all(-1).any(0)

    @property
    def now(self) -> np.ndarray:
        """(2, 2) pixels: centres of the left and right hand's boxes in the last frame; NaN where not seen."""
        if self.hands is None:
            return np.full((2, 2), np.nan)
        boxes = self._boxes()[-1]
        return (boxes[:, :2] + boxes[:, 2:]) / 2

    def _boxes(self) -> np.ndarray:
        """(frames, 2, 4) of `hands`."""
        assert self.hands is not None
        return self.hands.reshape(-1, 2, TOKEN_WIDTH)[..., :4].astype(float)


def open_medium(path: str | Path, limits: Limits | None = None, *, whole: int | None = None) -> Medium:
    """A picture, or a clip (see `open_clip`) where the file's name says video. Raises ImageError, VideoError or MediumError."""
    kind = mimetypes.guess_type(str(path))[0] or ""
    clip = kind.startswith(("video/", "audio/")) or Path(path).suffix.lower() in (".mkv", ".webm", ".avi", ".mov", ".m4v", ".ts")
    return open_clip(path, limits, whole=whole) if clip else open_picture(path, limits)


def open_picture(path: str | Path, limits: Limits | None = None) -> Medium:
    """A picture file. Raises ImageError and MediumError."""
    limits = limits or Limits()
    _check_size(path, limits)
    return Medium((read_image(path, max_pixels=limits.pixels),), name=Path(path).name)


def frames_of_whole(config: HandVLMConfig) -> int | None:
    """How many frames a model looks at that answers about a video as a whole (see `open_clip`); None for one that forecasts paths, which
    go on from the video's end."""
    if config.trajectory is not None or config.clip_settings is None:
        return None
    return config.clip_settings.frames or OBSERVED


def open_clip(path: str | Path, limits: Limits | None = None, *, whole: int | None = None) -> Medium:
    """The last OBSERVED frames of a video file at RATE Hz; with `whole` so many frames, spread evenly from its first to its last, those of
    a shorter one several times. Raises VideoError and MediumError."""
    from pose_tools.video import observe, probe, read_frames

    limits = limits or Limits()
    _check_size(path, limits)
    if np.isfinite(limits.seconds) or limits.pixels < MAX_PIXELS:
        info = probe(path)
        if info.duration > limits.seconds:
            raise MediumError(f"{Path(path).name}: {info.duration:.0f} seconds long; at most {limits.seconds:.0f} are taken, cut it first")
        most = limits.pixels * min(1.0, OBSERVED / (whole or OBSERVED))  # many frames are no more pixels than the usual ones
        if info.width * info.height > most:
            raise MediumError(
                f"{Path(path).name}: frames of {info.width}x{info.height}; at most {most / 1e6:.2g} megapixels are taken, "
                "make it smaller first"
            )
    if whole is not None:
        spread = read_frames(path, count=whole)
        return Medium(spread.frames, tuple(float(time - spread.times[-1]) for time in spread.times), Path(path).name)
    frames, times, info = observe(path, count=OBSERVED, rate=RATE)
    return Medium(frames, tuple(float(time - times[-1]) for time in times), Path(path).name, info.notes)


def _check_size(path: str | Path, limits: Limits) -> None:
    try:
        size = Path(path).stat().st_size / 1e6
    except (OSError, ValueError):
        return  # the reader says what is wrong with it
    if size > limits.megabytes:
        raise MediumError(f"{Path(path).name}: {size:.0f} MB; at most {limits.megabytes:.0f} MB are taken, make it smaller first")
