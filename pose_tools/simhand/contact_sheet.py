"""Pairs of similar hands on one sheet, for looking at what mining found."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def contact_sheet(pairs: Sequence[tuple[np.ndarray, np.ndarray]], per_row: int = 5) -> np.ndarray:
    """Pairs of crops uint8 (S, S, 3) → uint8 picture, `per_row` pairs a row, each anchor with its neighbour on its right.

    The published sheet's size; white lines part the pairs.
    """
    if not pairs:
        raise ValueError("contact_sheet: no pairs")
    size = pairs[0][0].shape[0]
    rows = -(-len(pairs) // per_row)
    sheet = np.zeros((rows * size, 2 * per_row * size, 3), np.uint8)
    for number, (anchor, neighbour) in enumerate(pairs):
        row, column = divmod(number, per_row)
        for place, crop in enumerate((anchor, neighbour)):
            left = (2 * column + place) * size
            sheet[row * size : row * size + size, left : left + size] = crop
    line = max(1, size // 56)
    for row in range(1, rows):
        sheet[row * size - line : row * size + line] = 255
    for column in range(1, per_row):
        sheet[:, 2 * column * size - line : 2 * column * size + line] = 255
    return sheet
