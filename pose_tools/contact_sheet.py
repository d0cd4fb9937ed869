"""Sheets of pictures with captions, for a look at many at once."""

from __future__ import annotations

import math
from collections.abc import Sequence

import cv2
import numpy as np

from pose_tools import lettering


def contact_sheet(
    images: Sequence[np.ndarray],
    captions: Sequence[str] | None = None,
    *,
    columns: int | None = None,
    cell: int = 320,
    title: str | None = None,
) -> np.ndarray:
    """Pictures of any sizes side by side, each fitted into a cell, with a wrapped caption below: RGB uint8.

    Args:
        images: RGB uint8 (H, W, 3) each. captions: one per picture, up to three lines are shown; line breaks are kept.
        columns: None makes the sheet about as wide as high. cell: width and largest height of a picture, pixels.
    """
    if not images:
        raise ValueError("contact_sheet: no pictures")
    if captions is not None and len(captions) != len(images):
        raise ValueError(f"contact_sheet: {len(captions)} captions for {len(images)} pictures")
    columns = min(len(images), columns or math.ceil(math.sqrt(len(images))))
    paper, ink, gap, size = (250, 250, 248), (25, 25, 28), max(6, cell // 32), max(11, cell // 20)
    cells = []
    for i, image in enumerate(images):
        picture = _fitted(image, cell)
        if captions is not None:
            words = lettering.text_block(lettering.wrap(captions[i], size, cell - 0.7 * size, 3), size, cell, ink, paper)
            picture = np.vstack([np.pad(picture, ((0, 0), (0, cell - picture.shape[1]), (0, 0)), constant_values=paper[0]), words])
        cells.append(picture)
    rows = [cells[k : k + columns] for k in range(0, len(cells), columns)]
    top = np.zeros((0, 0, 3), np.uint8)
    width = columns * (cell + gap) + gap
    if title:
        top = lettering.text_block([lettering.shorten(title, 2 * size, width - 2 * size)], 2 * size, width, ink, paper)
    height = len(top) + sum(max(len(c) for c in row) + gap for row in rows) + gap
    sheet = np.empty((height, width, 3), np.uint8)
    sheet[:] = paper
    sheet[: len(top)] = top if title else sheet[:0]
    y = len(top) + gap
    for row in rows:
        for k, picture in enumerate(row):
            x = gap + k * (cell + gap)
            sheet[y : y + picture.shape[0], x : x + picture.shape[1]] = picture
        y += max(len(c) for c in row) + gap
    return sheet


def _fitted(image: np.ndarray, cell: int) -> np.ndarray:
    if image.dtype != np.uint8 or image.ndim != 3 or image.shape[2] != 3 or 0 in image.shape:
        raise ValueError(f"contact_sheet: a picture is {image.dtype} {image.shape}: expected RGB uint8 (H, W, 3)")
    scale = cell / max(image.shape[:2])
    size = (max(1, round(image.shape[1] * scale)), max(1, round(image.shape[0] * scale)))
    return cv2.resize(image, size, interpolation=cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC)
