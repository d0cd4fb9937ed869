"""Which of many samples to look at."""

from __future__ import annotations

import numpy as np


def evenly(total: int, most: int) -> np.ndarray:
    """(n,) int64, ascending: at most `most` of the numbers 0 … total − 1, evenly spread, the first and (of two or more) the last too."""
    return np.unique(np.linspace(0, total - 1, min(most, total)).astype(int))
