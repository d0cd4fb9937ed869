"""The factors a scene is made of, and which of their values each split may use.

A split never shares a (name, colour) pair, a shade of a colour, a shape family, a background seed or a camera bin with
another split, so a test picture shows known words in unseen combinations, tints, shapes, rooms and cameras. Every name
and every colour word occurs in every split.
"""

from __future__ import annotations

import colorsys
import hashlib
import json
from functools import lru_cache
from typing import Any, Literal

import numpy as np

Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")

NAMES = ("cup", "bottle", "bowl", "plate", "box", "ball", "knife", "spoon")
COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "white", "black")

_HUE = {"red": (357, 7), "orange": (25, 5), "yellow": (52, 5), "green": (128, 20), "blue": (218, 14), "purple": (284, 12)}
"""Hue and its spread in degrees."""

TENTHS: dict[Split, tuple[int, ...]] = {"train": (0, 1, 2, 4, 6, 8, 9), "val": (5,), "test": (3, 7)}
"""Which of ten numbered values belong to which split: shades, shape families; backgrounds by the last digit of the seed."""

BACKGROUND_SEEDS = 1_000_000
FIELD_OF_VIEW_BINS = tuple((low, low + 5.0) for low in (52.0, 57.0, 62.0, 67.0, 72.0))
"""Degrees, full angle."""
PITCH_BINS = tuple((low, low + 8.0) for low in (32.0, 40.0, 48.0, 56.0))
"""Degrees the camera looks down from the horizon."""
_CAMERA_BINS: dict[Split, tuple[int, ...]] = {"val": (6, 13), "test": (3, 9, 16)}


def check_split(split: str) -> Split:
    """`split` itself; ValueError unless it is train, val or test."""
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    return split  # type: ignore[return-value]


def pairs(split: Split) -> tuple[tuple[str, str], ...]:
    """The (name, colour) pairs of a split: five colours of every name for train, one for val, two for test."""
    allowed = {"train": range(5), "val": (5,), "test": (6, 7)}[split]
    return tuple((name, COLOURS[j]) for i, name in enumerate(NAMES) for j in range(len(COLOURS)) if (3 * i + j) % 8 in allowed)


def camera_bins(split: Split) -> tuple[int, ...]:
    """Numbers of the camera bins of a split; bin b has field of view `b // 4` and pitch `b % 4`."""
    held_out = {b for bins in _CAMERA_BINS.values() for b in bins}
    every = range(len(FIELD_OF_VIEW_BINS) * len(PITCH_BINS))
    return _CAMERA_BINS[split] if split in _CAMERA_BINS else tuple(b for b in every if b not in held_out)


def draw_background_seed(rng: np.random.Generator, split: Split) -> int:
    """A background seed whose last digit belongs to the split."""
    return int(rng.integers(BACKGROUND_SEEDS // 10)) * 10 + int(rng.choice(TENTHS[split]))


def shade_rgb(colour: str, shade: int) -> np.ndarray:
    """The colour (3,) float in 0..1 of shade 0..9 of a colour word. Neighbouring shades differ in hue and lightness at once."""
    across = (shade * 3 % 10) / 9.0 * 2 - 1
    along = shade / 9.0 * 2 - 1
    if colour == "white":
        return np.array([0.93 + 0.05 * along, 0.93 + 0.05 * along, 0.91 + 0.05 * across])
    if colour == "black":
        return np.array([0.075, 0.075, 0.085]) + 0.03 * along + np.array([0, 0, 0.015]) * across
    hue, spread = _HUE[colour]
    saturation = (0.84 if colour != "purple" else 0.68) + 0.1 * across
    value = {"red": 0.80, "orange": 0.95, "yellow": 0.93, "green": 0.62, "blue": 0.72, "purple": 0.62}[colour] + 0.07 * across
    return np.array(colorsys.hsv_to_rgb(((hue + spread * along) % 360) / 360, min(saturation, 1), min(value, 1)))


def describe() -> dict[str, Any]:
    """Everything that defines the splits, as plain JSON data."""
    return {
        "names": NAMES, "colours": COLOURS, "hue": _HUE, "tenths": TENTHS,
        "pairs": {s: pairs(s) for s in SPLITS}, "camera_bins": {s: camera_bins(s) for s in SPLITS},
        "field_of_view": FIELD_OF_VIEW_BINS, "pitch": PITCH_BINS,
    }  # fmt: skip


@lru_cache(maxsize=1)
def factors_hash() -> str:
    """sha256 of `describe()`; written into every manifest, so two folders of different factor tables are never mixed up."""
    return hashlib.sha256(json.dumps(describe(), sort_keys=True).encode()).hexdigest()
