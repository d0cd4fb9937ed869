"""Mining of similar hands: each hand's nearest poses among the hands of other videos."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch

from pose_tools.simhand.faiss_search import PROBES, IvfSearch
from pose_tools.simhand.neighbours import BlockSearch, Search, exact_search
from pose_tools.simhand.pose_space import Normalise, PoseSpace, chunks, fit_pose_space, whole_poses

logger = logging.getLogger(__name__)

Exclude = Literal["none", "image", "video"]
Method = Literal["exact", "ivf"]
RECALL_ANCHORS = 2000
BLOCK = 1_000_000
"""Poses that anchors are compared with at a time."""


@dataclass
class Miner:
    """A pool in pose space, made ready to be searched chunk by chunk, in any order and by several processes alike."""

    space: PoseSpace
    whole: np.ndarray
    """Pool row of each pose with all its key points, sorted by group."""
    points: np.ndarray
    groups: np.ndarray
    search: Search
    k: int
    total: int

    def __len__(self) -> int:
        """Number of chunks."""
        return len(self.search.chunks)

    def chunk(self, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rows of the pool (R,), their neighbours' rows (R, k) int64 and distances (R, k) float64; the same whenever it is asked."""
        rows = self.search.chunks[number]
        index, distance = self.search.search(rows)
        return self.whole[rows], np.where(index < 0, -1, self.whole[index]), distance

    def __iter__(self) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        return (self.chunk(number) for number in range(len(self)))

    def recall(self, anchors: int = RECALL_ANCHORS, seed: int = 0) -> float:
        """Share of sampled anchors whose first neighbour is as near as the exact one."""
        some = np.sort(np.random.default_rng(seed).choice(len(self.points), min(anchors, len(self.points)), replace=False))
        exact = np.full(len(some), np.inf)
        for start in range(0, len(self.points), BLOCK):
            part = slice(start, start + BLOCK)
            near = BlockSearch(self.points[part], self.groups[part], 1).search_points(self.points[some], self.groups[some])
            exact = np.minimum(exact, near[1][:, 0])
        return float((self.search.search(some)[1][:, 0] <= exact * (1 + 1e-9)).mean())


def prepare(
    keypoints: Any,
    video_ids: Any,
    k: int,
    *,
    dims: int = 14,
    normalise: Normalise = "none",
    exclude: Exclude = "video",
    image_ids: Any = None,
    method: Method = "exact",
    seed: int = 0,
    probes: int = PROBES,
    scratch: Path | None = None,
) -> Miner:
    """The `Miner` of a pool; arguments as of `mine`.

    `keypoints` may be anything with a length, a shape and slices that are arrays; it is read from front to back, a part at a time.
    With `scratch`, an existing folder, coordinates and lists lie in files there and memory holds 16 bytes a pose ("ivf").
    """
    if method not in ("exact", "ivf"):
        raise ValueError(f"method must be 'exact' or 'ivf', got {method!r}")
    count = len(keypoints)
    if count == 0 or k < 1 or np.shape(keypoints)[1:] != (21, 2):
        raise ValueError(f"mine: expected key points (N, 21, 2) with N ≥ 1 and k ≥ 1, got {np.shape(keypoints)} and k = {k}")
    groups = _groups(count, video_ids, image_ids, exclude)
    space = fit_pose_space(keypoints, dims, normalise)
    whole = np.flatnonzero(np.concatenate([whole_poses(chunk, normalise) for chunk in chunks(keypoints)]))
    if len(whole) < count:
        logger.warning("%d of %d hands have missing key points: they get no neighbour and are nobody's", count - len(whole), count)
    whole = whole[np.argsort(groups[whole], kind="stable")]
    points, groups = _project(space, keypoints, whole, scratch), groups[whole]
    search: Search = (
        exact_search(points, groups, k) if method == "exact" else IvfSearch(points, groups, k, probes=probes, seed=seed, scratch=scratch)
    )
    return Miner(space, whole, points, groups, search, k, count)


def mine(
    keypoints: Any,
    video_ids: Any,
    k: int,
    *,
    dims: int = 14,
    normalise: Normalise = "none",
    exclude: Exclude = "video",
    image_ids: Any = None,
    method: Method = "exact",
    seed: int = 0,
) -> tuple[Any, Any]:
    """The k most similar hands of every hand: key points (N, 21, 2), crop coordinates with left hands mirrored, and video ids (N,) →

    (indices (N, k) int64, distances (N, k) float64), nearest first; ties by lower index. The distance is Euclidean in the first
    `dims` principal directions of the pool's key points. `exclude`: neighbours never share the video, never the picture
    (`image_ids` (N,); without them `video_ids` name the pictures), or merely are another hand. −1 and inf where no (further) legal
    neighbour exists and for hands with missing key points, which nobody gets either; both are counted in the log.

    "exact" equals brute force; "ivf" is FAISS, which looks into the nearest lists of a clustering (seeded), and logs its recall,
    measured on 2,000 anchors. `prepare` gives the same piece by piece. NumPy in, NumPy out; a torch tensor of key points gives
    torch tensors. Raises ValueError for other shapes and names, BackendMissing for "ivf" without FAISS.
    """
    if exclude == "image" and image_ids is None:
        image_ids = video_ids
    miner = prepare(keypoints, video_ids, k, dims=dims, normalise=normalise, exclude=exclude, image_ids=image_ids, method=method, seed=seed)
    indices, distances = np.full((miner.total, k), -1, np.int64), np.full((miner.total, k), np.inf)
    for rows, near, away in miner:
        indices[rows], distances[rows] = near, away
    if method == "ivf":
        logger.info("recall@1 on sampled anchors: %.4f", miner.recall(seed=seed))
    alone = int((indices[:, 0] < 0).sum()) - (miner.total - len(miner.whole))
    if alone:
        logger.warning("%d of %d hands have no legal neighbour (exclude=%r)", alone, miner.total, exclude)
    if isinstance(keypoints, torch.Tensor):
        return torch.from_numpy(indices), torch.from_numpy(distances).to(keypoints.dtype)
    return indices, distances


def _project(space: PoseSpace, keypoints: Any, whole: np.ndarray, scratch: Path | None) -> np.ndarray:
    """(len(whole), D) float32: the coordinates of the poses `whole`, in that order; a file's memory map with `scratch`."""
    shape = (len(whole), space.directions.shape[1])
    if scratch is None or not len(whole):
        points = np.empty(shape, np.float32)
    else:
        points = np.lib.format.open_memmap(scratch / "points.npy", mode="w+", dtype=np.float32, shape=shape)
    place = np.full(len(keypoints), -1, np.int64)
    place[whole] = np.arange(len(whole))
    start = 0
    for chunk in chunks(keypoints):
        to = place[start : start + len(chunk)]
        points[to[to >= 0]] = space.project(chunk)[to >= 0]
        start += len(chunk)
    return points


def _groups(count: int, video_ids: Any, image_ids: Any, exclude: Exclude) -> np.ndarray:
    """(N,) int64: hands of one number are never neighbours."""
    if exclude == "none":
        return np.arange(count)
    if exclude not in ("image", "video"):
        raise ValueError(f"exclude must be 'none', 'image' or 'video', got {exclude!r}")
    ids = video_ids if exclude == "video" else image_ids
    if ids is None:
        raise ValueError(f"exclude={exclude!r} needs {exclude}_ids")
    ids = np.asarray(ids)
    if ids.shape != (count,):
        raise ValueError(f"{exclude}_ids must be ({count},), got {ids.shape}")
    return np.unique(ids, return_inverse=True)[1].astype(np.int64)
