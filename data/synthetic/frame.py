"""The camera of a scene and the table below it."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from data.synthetic import factors


@dataclass(frozen=True)
class Frame:
    """Focal length and `size` (width, height) in pixels, `up` (3,) in the camera frame, `height` metres above the table."""

    focal: float
    size: tuple[int, int]
    up: np.ndarray
    height: float

    @classmethod
    def draw(cls, rng: np.random.Generator, camera_bin: int, size: tuple[int, int]) -> Frame:
        """A camera of a bin, rolled by a few degrees; the bin's field of view is that of the short side."""
        view = np.radians(rng.uniform(*factors.FIELD_OF_VIEW_BINS[camera_bin // len(factors.PITCH_BINS)]))
        pitch = np.radians(rng.uniform(*factors.PITCH_BINS[camera_bin % len(factors.PITCH_BINS)]))
        roll = np.clip(rng.normal(0, np.radians(4)), -0.2, 0.2)
        up = np.array([np.sin(roll) * np.cos(pitch), -np.cos(roll) * np.cos(pitch), -np.sin(pitch)])
        return cls(min(size) / 2 / np.tan(view / 2), size, up, float(rng.uniform(0.35, 0.6)))

    @property
    def extent(self) -> np.ndarray:
        """(2,) `size` as an array."""
        return np.array(self.size, dtype=float)

    @property
    def short(self) -> int:
        """The shorter side, against which sizes are measured."""
        return min(self.size)

    @property
    def intrinsics(self) -> np.ndarray:
        """(3, 3) pixels."""
        return np.array([[self.focal, 0, self.size[0] / 2], [0, self.focal, self.size[1] / 2], [0, 0, 1.0]])

    @property
    def away(self) -> np.ndarray:
        """(3,) the level direction away from the camera."""
        level = np.array([0.0, 0.0, 1.0]) - self.up * self.up[2]
        return level / np.linalg.norm(level)

    def ray(self, pixel: np.ndarray) -> np.ndarray:
        """(3,) the viewing ray of a pixel, at depth 1."""
        return np.array([*(pixel - self.extent / 2) / self.focal, 1.0])

    def project(self, points: np.ndarray) -> np.ndarray:
        """(N, 2) pixels of points (N, 3) metres."""
        return points[:, :2] / np.maximum(points[:, 2:], 0.05) * self.focal + self.extent / 2

    def with_table_below(self, points: list[np.ndarray], gap: float) -> Frame:
        """The same camera with the table `gap` metres below the lowest of the points (N, 3)."""
        return replace(self, height=float(max(-(p @ self.up).min() for p in points) + gap)) if points else self
