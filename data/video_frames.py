"""The frames of a video file as a clip of a Sample: named now, decoded when they are looked at."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.video import read_frames


class VideoFrames(Sequence):
    """`count` frames of a file, spread evenly with the first and the last among them; those of a shorter video come several times.

    Items are RGB uint8 (H, W, 3). Nothing is opened before the first is asked for, and a process keeps the frames of one video only.
    Raises VideoError then, where the file cannot be read.
    """

    def __init__(self, path: str | Path, count: int) -> None:
        self.path, self.length = str(path), count

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: Any) -> Any:
        return _decoded(self.path, self.length)[number]

    def __repr__(self) -> str:
        return f"VideoFrames({self.path!r}, {self.length})"


@lru_cache(maxsize=1)
def _decoded(path: str, count: int) -> tuple[np.ndarray, ...]:
    return read_frames(path, count=count).frames
