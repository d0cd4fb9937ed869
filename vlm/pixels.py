"""Pictures and the frames of clips → pixels: each distinct one is read, warped and kept once, with its View."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from data.sample import SampleError
from pose_tools.image_io import read_image
from pose_tools.views import View, center_crop, letterbox, squash
from vlm.config import ClipTokenSettings
from vlm.vision import chosen_frames

VIEW_RULES = {"letterbox": letterbox, "center_crop": center_crop, "squash": squash}


@dataclass(frozen=True)
class MediumRows:
    """A picture (`frames` 0) or a clip of so many frames: `rows` its pictures in a Pixels, in order, and the `view` of the last."""

    frames: int
    rows: tuple[int, ...]
    view: View


@dataclass
class Pixels:
    """Distinct pictures (3, S, S) by what they were read from: a path, an array's content, or an object that is kept alive here."""

    rows: dict[Any, int] = field(default_factory=dict)
    pictures: list[torch.Tensor] = field(default_factory=list)
    views: list[View] = field(default_factory=list)
    kept: list[Any] = field(default_factory=list)

    def row(self, source: Any) -> int | None:
        """The row of a picture that is there already."""
        return self.rows.get(_key(source))

    def add(self, source: Any, picture: torch.Tensor, view: View) -> int:
        """Keeps a picture; its row."""
        key = _key(source)
        self.rows[key] = len(self.pictures)
        self.pictures.append(picture)
        self.views.append(view)
        if key == id(source):
            self.kept.append(source)
        return len(self.pictures) - 1


def _key(source: Any) -> Any:
    if isinstance(source, (str, Path)):
        return str(source)
    if isinstance(source, np.ndarray):  # equal pictures are one, whoever holds them
        return source.shape, source.dtype.str, hashlib.blake2b(np.ascontiguousarray(source).tobytes(), digest_size=16).digest()
    return id(source)


def read_media(parts: Sequence[dict[str, Any]], pixels: Pixels, processor: Any) -> list[MediumRows]:
    """The image and video parts of a conversation, in order; new pictures are added to `pixels`.

    Raises SampleError for a clip whose frames are not all of one size, or a model that reads none.
    """
    media = []
    for part in parts:
        if part["type"] == "image":
            row = _read(part["image"], pixels, processor)
            as_clip = processor.clip is not None and ClipTokenSettings.of(processor.clip).pictures
            media.append(MediumRows(1 if as_clip else 0, (row,), pixels.views[row]))
        elif part["type"] == "video":
            if processor.clip is None:
                raise SampleError("a clip, but this model reads pictures only; ask it about one frame, or choose a model that reads clips")
            frames = [part["video"][number] for number in chosen_frames(len(part["video"]), processor.clip)]
            rows = tuple(_read(frame, pixels, processor) for frame in frames)
            sizes = {pixels.views[row].size for row in rows}
            if len(sizes) > 1:
                raise SampleError(f"the frames of a clip are of sizes {sorted(map(str, sizes))}, expected one size; resize them")
            media.append(MediumRows(len(rows), rows, pixels.views[rows[-1]]))
    return media


def _read(source: Any, pixels: Pixels, processor: Any) -> int:
    known = pixels.row(source)
    return pixels.add(source, *grid_pixels(source, processor)) if known is None else known


def grid_pixels(image: Any, processor: Any) -> tuple[torch.Tensor, View]:
    """A picture as the tower takes it, (3, S, S) float32, and its View."""
    mean, std = (torch.tensor(values, dtype=torch.float32).view(3, 1, 1) for values in (processor.image_mean, processor.image_std))
    fill = [round(255 * value) for value in processor.image_mean]  # borders are the mean colour: zero after normalisation
    array = as_rgb(image)
    view = VIEW_RULES[processor.view]((array.shape[1], array.shape[0]), processor.image_size)
    grid = view.warp(array, fill=fill, interpolation=processor.interpolation)
    return (torch.from_numpy(np.ascontiguousarray(grid)).permute(2, 0, 1).float() / 255 - mean) / std, view


def as_rgb(image: Any) -> np.ndarray:
    """A path, bytes, PIL picture or RGB uint8 array → RGB uint8 (H, W, 3)."""
    if isinstance(image, (str, Path, bytes, Image.Image)):
        return read_image(image)
    array = np.asarray(image)
    if array.dtype != np.uint8 or array.ndim != 3 or array.shape[2] != 3:
        raise SampleError(
            f"a picture must be a path, a PIL picture or an RGB uint8 array (H, W, 3), "
            f"got {type(image).__name__} {array.dtype} {array.shape}"
        )
    return array
