"""The shipped questions about pictures and clips, with their truth: what `make run` asks and the page offers.

`questions.json` is a list of

    {"name", "ask", "tool": whether tools are offered, "scene": id in its data set,
     "image": "a.jpg", "truth": [{"bbox_xyxy", "label"}]}
or
    {…, "clip": ["0.jpg", …], "times": [seconds, …], "future": (2, T, 2), "valid": (2, T), "future_times": [seconds, …]}

with file names relative to the list, places in pixels of the picture or the last frame, hands left, right.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pose_tools.image_io import read_image
from pose_tools.render_path import FramePaths
from pose_tools.types import Box
from pose_tools.user_error import UserError
from vlm.medium import Medium


class ExamplesError(UserError):
    """A list of examples that cannot be read; the message names the file and what to do."""


@dataclass(frozen=True, eq=False)
class Example:
    """A question about `files` (a picture, or a clip's frames at `times` seconds) and its truth: `boxes`, or `paths` for a clip."""

    name: str
    ask: str
    tool: bool
    files: tuple[Path, ...]
    times: tuple[float, ...] | None = None
    boxes: tuple[Box, ...] = ()
    paths: FramePaths | None = None

    @property
    def thumbnail(self) -> Path:
        return self.files[-1]

    def open(self) -> Medium:
        """Raises ImageError."""
        return Medium(tuple(read_image(file) for file in self.files), self.times, self.name)


def read_examples(folder: Path) -> list[Example]:
    """The examples of a folder's questions.json. Raises ExamplesError."""
    list_file = folder / "questions.json"
    if not list_file.is_file():
        raise ExamplesError(f"{list_file} is missing: the examples come with the repository; run this in a clone of it")
    try:
        return [_example(record, folder) for record in json.loads(list_file.read_text(encoding="utf-8"))]
    except (KeyError, TypeError, ValueError) as error:
        raise ExamplesError(f"{list_file}: not a list of questions ({type(error).__name__}: {error}); copy it again") from error


def _example(record: dict, folder: Path) -> Example:
    common = {"name": record["name"], "ask": record["ask"], "tool": bool(record["tool"])}
    if "clip" not in record:
        boxes = tuple(Box(tuple(one["bbox_xyxy"]), one["label"]) for one in record["truth"])
        return Example(**common, files=(folder / record["image"],), boxes=boxes)
    times = tuple(float(time) for time in record["times"])
    points, valid = np.array(record["future"], float), np.array(record["valid"], bool)
    if len(times) != len(record["clip"]) or points.ndim != 3 or points.shape[::2] != (2, 2) or valid.shape != points.shape[:2]:
        raise ValueError(f"{record['name']}: {len(record['clip'])} frames, {len(times)} times, future {points.shape}, valid {valid.shape}")
    paths = FramePaths(points, valid, seconds=float(record["future_times"][-1]))
    return Example(**common, files=tuple(folder / name for name in record["clip"]), times=times, paths=paths)
