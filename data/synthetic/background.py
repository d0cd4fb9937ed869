"""What lies behind a scene: a table seen in perspective, the wall beyond it, flat clutter on it, all drawn from one seed."""

from __future__ import annotations

import cv2
import numpy as np


def noise(rng: np.random.Generator, size: tuple[int, int], cells: tuple[int, int]) -> np.ndarray:
    """(height, width) float32 smooth noise around 0 with about `cells` (across, down) blobs; `size` is (width, height)."""
    small = rng.standard_normal((cells[1] + 1, cells[0] + 1)).astype(np.float32)
    return cv2.resize(small, size, interpolation=cv2.INTER_CUBIC)


def _muted(rng: np.random.Generator, low: float = 0.2, high: float = 0.9) -> np.ndarray:
    """A colour of little saturation: objects are vivid, rooms are not."""
    value, saturation, hue = rng.uniform(low, high), rng.uniform(0.0, 0.38), rng.uniform(0, 360)
    if rng.random() < 0.45:
        hue = rng.uniform(18, 40)
    pixel = np.array([[[hue, saturation, value]]], dtype=np.float32)
    return cv2.cvtColor(pixel, cv2.COLOR_HSV2RGB)[0, 0]


def draw(seed: int, size: tuple[int, int], focal: float, up: np.ndarray, height: float) -> np.ndarray:
    """(height, width, 3) float32 RGB 0..1: the plane `point · up = −height` (camera frame, metres) and a wall.

    `focal` in pixels."""
    rng = np.random.default_rng([seed, 77])
    x, y = np.meshgrid(*((np.arange(n, dtype=np.float32) + 0.5 - n / 2) / focal for n in size))
    up, height = np.asarray(up, dtype=np.float32), np.float32(height)
    drop = -(x * up[0] + y * up[1] + up[2])
    far = drop < 0.18
    reach = height / np.maximum(drop, 0.02)
    forward = np.array([0.0, up[2], -up[1]])
    across, ahead = x * reach, (y * forward[1] + forward[2]) * reach
    cos, sin = np.float32(np.cos(turn := rng.uniform(0, np.pi))), np.float32(np.sin(turn))
    s, t = across * cos + ahead * sin, ahead * cos - across * sin
    picture = _table(rng, size, s, t)
    _clutter(rng, picture)
    wall = _muted(rng) * (1 + 0.06 * noise(rng, size, (4, 4))[..., None])
    picture = np.where(far[..., None], wall, picture)
    return np.clip(picture * (1 + 0.07 * noise(rng, size, (3, 3))[..., None]), 0, 1).astype(np.float32)


def _table(rng: np.random.Generator, size: tuple[int, int], s: np.ndarray, t: np.ndarray) -> np.ndarray:
    kind = rng.choice(["plain", "wood", "tiles", "stripes", "marble"], p=[0.25, 0.3, 0.15, 0.15, 0.15])
    base, other = _muted(rng, 0.25, 0.95), _muted(rng)
    if kind == "wood":
        hue = np.array([1.0, rng.uniform(0.62, 0.82), rng.uniform(0.35, 0.6)], dtype=np.float32)
        base = hue * np.float32(rng.uniform(0.3, 0.85))
        plank = np.floor(s / rng.uniform(0.08, 0.25))
        grain = np.sin((s + 0.02 * noise(rng, size, (3, 6))) * rng.uniform(150, 400) + plank * 7) + 0.8 * noise(rng, size, (60, 14))
        tone = 1 + 0.07 * grain + 0.10 * np.sin(plank * 12.9)
        return base * tone[..., None]
    if kind == "tiles":
        cell = rng.uniform(0.05, 0.2)
        odd = (np.floor(s / cell) + np.floor(t / cell)) % 2
        mix = odd if rng.random() < 0.5 else (np.minimum(np.mod(s / cell, 1), np.mod(t / cell, 1)) < 0.07)
        other = base * rng.uniform(0.6, 0.85) if rng.random() < 0.6 else other
    elif kind == "stripes":
        mix = np.sin(s * rng.uniform(40, 160)) * 0.5 + 0.5 > rng.uniform(0.3, 0.7)
        other = base * rng.uniform(0.55, 0.85) if rng.random() < 0.6 else other
    elif kind == "marble":
        mix = np.abs(np.sin(s * 9 + 2.2 * noise(rng, size, (6, 6)) + 0.6 * noise(rng, size, (20, 20)))) ** 3 * 0.6
    else:
        mix = np.zeros_like(s)
    mix = mix.astype(np.float32)[..., None]
    grain = 1 + rng.uniform(0.0, 0.07) * noise(rng, size, (90, 90))[..., None]
    return ((1 - mix) * base + mix * other) * grain


def _clutter(rng: np.random.Generator, picture: np.ndarray) -> None:
    """Papers, cables, cloths and crumbs: flat muted shapes that are nothing anyone asks for."""
    extent, size = np.array(picture.shape[1::-1]), min(picture.shape[:2])
    for _ in range(rng.integers(0, 7)):
        colour = tuple(float(c) for c in _muted(rng, 0.1, 0.95))
        centre = rng.uniform(0, extent, 2)
        kind = rng.integers(4)
        if kind == 0:
            corners = cv2.boxPoints((tuple(centre), tuple(rng.uniform(0.1, 0.45, 2) * size), rng.uniform(0, 180)))
            corners += rng.normal(0, 0.02 * size, (4, 2)).astype(np.float32)
            cv2.fillPoly(picture, [corners.astype(np.int32)], colour, cv2.LINE_AA)
        elif kind == 1:
            bend = np.cumsum(rng.normal(0, 0.11 * size, (6, 2)), axis=0) + centre
            cv2.polylines(picture, [bend.astype(np.int32)], False, colour, int(rng.integers(1, 4)), cv2.LINE_AA)
        elif kind == 2:
            axes = tuple(int(a) for a in rng.uniform(0.02, 0.15, 2) * size)
            cv2.ellipse(picture, tuple(int(c) for c in centre), axes, rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA)
        else:
            for point in rng.normal(0, 0.06 * size, (8, 2)) + centre:
                cv2.circle(picture, tuple(int(c) for c in point), int(rng.integers(1, 3)), colour, -1, cv2.LINE_AA)
