"""A pool of 2-D hand poses with videos, for measuring the mining of similar hands at any size.

Poses vary around one open hand along 42 fixed directions whose standard deviations fall as `SPREAD` · i^−`DECAY` (i = 1 … 42): 14 of
them hold 95 % of the variance. A video has a mean pose of its own (70 % of the deviation), around which its frames
wander slowly (70 %, correlation `MEMORY` from frame to frame), so that most of a pose's neighbours are of its own video.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from data.synthetic.factors import SPLITS
from pose_tools.files import atomic_path

SPREAD, DECAY, MEMORY = 0.1, 0.9, 0.9
VIDEOS = 2000


def mean_pose() -> np.ndarray:
    """(21, 2) the open hand in 0…1 of its crop, FreiHAND order."""
    points = [(0.5, 0.85)]
    for finger in range(5):
        angle = np.deg2rad(-150 + 30 * finger)
        reach = (0.22, 0.36, 0.46, 0.54) if finger else (0.18, 0.28, 0.36, 0.42)
        points += [(0.5 + r * np.cos(angle) * 0.8, 0.85 + r * np.sin(angle) * 1.3) for r in reach]
    return np.array(points)


def keypoint_pool(count: int, *, seed: int = 0, videos: int = VIDEOS) -> tuple[np.ndarray, np.ndarray]:
    """(key points (count, 21, 2) float32 in 0…1 of the crop, video ids (count,) int32), video after video."""
    if not 1 <= videos <= count:
        raise ValueError(f"keypoint_pool: {count} poses cannot be of {videos} videos")
    rng = np.random.default_rng([seed, videos])
    directions = np.linalg.qr(rng.normal(size=(42, 42)))[0]
    deviations = SPREAD * np.arange(1, 43) ** -DECAY
    ids = np.sort(np.arange(count) % videos).astype(np.int32)
    starts = np.flatnonzero(np.diff(ids, prepend=-1))
    lengths = np.diff(starts, append=count)
    keypoints = np.empty((count, 42), np.float32)
    for start, length in zip(starts, lengths, strict=True):
        steps = rng.standard_normal((length, 42), dtype=np.float32) * np.float32(np.sqrt(1 - MEMORY**2))
        steps[0] /= np.float32(np.sqrt(1 - MEMORY**2))
        for row in range(1, length):
            steps[row] += np.float32(MEMORY) * steps[row - 1]
        latent = np.sqrt(0.5) * (rng.standard_normal(42) + steps) * deviations
        keypoints[start : start + length] = latent @ directions.T
    keypoints += mean_pose().ravel().astype(np.float32)
    return keypoints.reshape(-1, 21, 2), ids


def write_keypoint_pool(folder: Path, split: str, seed: int, count: int) -> Iterator[int]:
    """Writes `folder/keypoints-<split>.npz` (keypoints, video_ids; an index for scripts/mine_hands.py); yields how many poses are there.

    A file that is there with as many poses and the same seed is kept.
    """
    path = folder / f"keypoints-{split}.npz"
    if path.is_file():
        with np.load(path, allow_pickle=False) as there:
            if there["seed"] == seed and len(there["video_ids"]) == count:
                yield count
                return
    keypoints, videos = keypoint_pool(count, seed=seed * len(SPLITS) + SPLITS.index(split), videos=min(VIDEOS, count))
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.savez(stream, keypoints=keypoints, video_ids=videos, seed=seed)
    yield count
