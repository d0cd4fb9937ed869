"""Hands to pre-train on: pictures with 2-D key points, all as right hands, and the mined partner of each."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from pose_tools.simhand.mining import mine
from pose_tools.simhand.pose_space import Normalise
from pose_tools.types import HandSample

CROP_SCALE = 1.3
"""Side of the square, in hand boxes, whose fractions the mined key points are (the published crop)."""


@dataclass(frozen=True)
class Hand:
    """A right hand: picture uint8 (H, W, 3); key points (21, 2) in its pixels; joints (21, 3) metres or NaN, FreiHAND order."""

    image: np.ndarray
    joints_2d: np.ndarray
    joints_3d: np.ndarray


class HandPool(Sequence[Hand]):
    """Samples as right hands: pictures and labels of left ones are mirrored. `numbers`: which of `samples`, all by default.

    Hands of one annotation or recording (`videos` (N,), any integers) are never mined as each other's partner. `right_joints_2d`
    (N, 21, 2): the samples' key points if they are known without their pictures, all of right hands: mining then opens none.
    """

    def __init__(
        self,
        samples: Sequence[HandSample],
        videos: np.ndarray,
        numbers: np.ndarray | None = None,
        right_joints_2d: np.ndarray | None = None,
    ) -> None:
        self.samples = samples
        self.numbers = np.arange(len(samples)) if numbers is None else np.asarray(numbers, np.int64)
        self.videos = np.asarray(videos)[self.numbers]
        self.known = None if right_joints_2d is None else right_joints_2d[self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        sample = self.samples[int(self.numbers[index])]
        image, missing = np.asarray(sample.image), np.full((21, 3), np.nan)
        joints_2d = np.array(missing[:, :2] if sample.joints_2d is None else sample.joints_2d, np.float32)
        joints_3d = np.array(missing if sample.joints_3d is None else sample.joints_3d, np.float64)
        if sample.side == "left":
            image = np.ascontiguousarray(image[:, ::-1])
            joints_2d[:, 0] = image.shape[1] - joints_2d[:, 0]
            joints_3d[:, 0] *= -1
        return Hand(image, joints_2d, joints_3d)

    def take(self, rows: np.ndarray) -> HandPool:
        """The pool of these rows of it."""
        part = copy.copy(self)
        part.numbers, part.videos = self.numbers[rows], self.videos[rows]
        part.known = None if self.known is None else self.known[rows]
        return part

    def in_memory(self) -> HandPool:
        """The same hands, decoded once: 50 KB each at 128 pixels."""
        return HandPool([self.samples[int(number)] for number in self.numbers], self.videos, right_joints_2d=self.known)

    def key_points(self) -> np.ndarray:
        """(N, 21, 2) fractions of the square of `CROP_SCALE` boxes around each hand, NaN where there are none."""
        joints = np.stack([hand.joints_2d for hand in self]) if self.known is None else self.known
        low, high = joints.min(1), joints.max(1)
        sides = np.maximum((high - low).max(1) * CROP_SCALE, 1e-6)
        return ((joints - ((low + high) / 2)[:, None]) / sides[:, None, None] + 0.5).astype(np.float32)

    def partners(self, *, dims: int = 14, normalise: Normalise = "none", rank: int = 0) -> np.ndarray:
        """(N,) number of each hand's `rank`-th most similar hand of another video; −1 where there is none."""
        return mine(self.key_points(), self.videos, rank + 1, dims=dims, normalise=normalise)[0][:, rank]

    def mined_partners(self, indices: np.ndarray, rank: int = 0) -> np.ndarray:
        """As `partners`, from neighbours that were mined before: `indices` (M, k) for all M samples, numbers of samples or −1.

        A neighbour that the pool leaves out gives way to the next one that it has. Raises ValueError for indices of other samples.
        """
        count = len(self.samples)
        if indices.ndim != 2 or len(indices) != count or indices.shape[1] <= rank or indices.max(initial=-1) >= count:
            raise ValueError(f"pairs {indices.shape} are not those of {count} hands, with more than {rank} neighbours each: mine it")
        place = np.full(count + 1, -1, np.int64)  # the last one is for −1
        place[self.numbers] = np.arange(len(self))
        there = place[indices[self.numbers, rank:]]
        return there[np.arange(len(self)), (there >= 0).argmax(1)]
