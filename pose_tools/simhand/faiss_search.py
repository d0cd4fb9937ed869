"""Approximate nearest neighbours among rows of other groups by FAISS: rows lie in lists, by clusters, and the nearest lists are searched.

A group (a video) is searched with all its own rows left out by a selector, so that a video full of like frames hides nothing. What FAISS
finds in float32 is ranked again in float64, as the exact searches of `neighbours.py` do.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.simhand.neighbours import CHUNK, SPARE, Found, rank
from pose_tools.tool_protocol import BackendMissing

PROBES = 32
PER_LIST = 500
MOST_LISTS = 65_536
SAMPLE = 64
"""Rows per list that the clustering is learnt from."""
FEW = 16
"""A group of at most so many rows is not worth a selector: its rows are asked for so many more neighbours instead."""
BLOCK = 1_000_000
"""Rows that go into the lists at a time."""
ON_DISK = 4_000_000
"""Rows above which lists are kept on disk, where there is a place for them."""


class IvfSearch:
    """`points` (N, D) float32 and `groups` (N,) sorted; `search(rows)` for rows in rising order.

    Args:
        lists: number of lists; None is one for 500 rows, 65,536 at most.
        probes: lists that are searched for a row.
        seed: of the clustering.
        scratch: folder for the lists of more than `ON_DISK` rows; they are in memory otherwise (64 bytes a row at D = 14).
        chunk: rows of a chunk; None is `CHUNK`.

    Raises BackendMissing without FAISS.
    """

    def __init__(
        self,
        points: np.ndarray,
        groups: np.ndarray,
        k: int,
        *,
        lists: int | None = None,
        probes: int = PROBES,
        seed: int = 0,
        scratch: Path | None = None,
        chunk: int | None = None,
    ):
        self.faiss = _faiss()
        self.points, self.groups, self.k = points, groups, k
        self.lists = lists or max(1, min(len(points) // PER_LIST, MOST_LISTS))
        self.probes = min(probes, self.lists)
        self.index = self._trained(seed)
        if scratch is None or len(points) <= ON_DISK:
            self._fill(self.index, range(0, len(points), BLOCK))
        else:
            self._fill_on_disk(scratch)
        chunk = chunk or CHUNK
        self.chunks = [np.arange(i, min(i + chunk, len(points))) for i in range(0, len(points), chunk)]
        self.starts = np.flatnonzero(np.diff(groups, prepend=-1))
        self.ends = np.append(self.starts[1:], len(groups))

    def search(self, rows: np.ndarray) -> Found:
        index, distance = np.full((len(rows), self.k), -1, np.int64), np.full((len(rows), self.k), np.inf)
        group = np.searchsorted(self.starts, rows, side="right") - 1
        sizes = self.ends[group] - self.starts[group]
        few = np.flatnonzero(sizes <= FEW)
        parts: list[tuple[np.ndarray, int | None]] = [(few, None)] if len(few) else []
        rest = np.flatnonzero(sizes > FEW)
        for part in np.split(rest, np.flatnonzero(np.diff(group[rest])) + 1) if len(rest) else ():
            parts.append((part, int(group[part[0]])))
        for part, whole in parts:
            index[part], distance[part] = self._of_group(rows[part], whole)
        return index, distance

    def _of_group(self, rows: np.ndarray, group: int | None) -> Found:
        """Neighbours of rows of one large group, or (None) of small groups."""
        found, away = self._ask(rows, group, self.probes)
        if self.probes < self.lists:
            # the lists looked into may hold too few of other groups: all lists then
            own = self.ends - self.starts
            own = own[np.searchsorted(self.starts, rows, side="right") - 1]
            short = (found >= 0).sum(1) < np.minimum(self.k, len(self.points) - own)
            if short.any():
                found[short], away[short] = self._ask(rows[short], group, self.lists)
        return found, away

    def _ask(self, rows: np.ndarray, group: int | None, probes: int) -> Found:
        options: dict[str, Any] = {"nprobe": probes}
        count = self.k + SPARE
        if group is None:
            count += FEW
        else:
            own = self.faiss.IDSelectorRange(int(self.starts[group]), int(self.ends[group]))
            options["sel"] = self.faiss.IDSelectorNot(own)  # which keeps no reference to `own`
        queries = np.ascontiguousarray(self.points[rows])
        _, near = self.index.search(queries, min(count, len(self.points)), params=self.faiss.SearchParametersIVF(**options))
        near = np.where(self.groups[np.maximum(near, 0)] == self.groups[rows][:, None], -1, near)
        return rank(self.points, queries, near, self.k)

    def _trained(self, seed: int) -> Any:
        rows = np.random.default_rng(seed).choice(len(self.points), min(len(self.points), SAMPLE * self.lists), replace=False)
        width = self.points.shape[1]
        index = self.faiss.IndexIVFFlat(self.faiss.IndexFlatL2(width), width, self.lists)
        index.cp.seed, index.cp.min_points_per_centroid = seed, 1
        index.train(np.ascontiguousarray(self.points[np.sort(rows)]))
        return index

    def _fill(self, index: Any, starts: range) -> None:
        for start in starts:
            some = np.ascontiguousarray(self.points[start : start + BLOCK])
            index.add_with_ids(some, np.arange(start, start + len(some)))

    def _fill_on_disk(self, scratch: Path) -> None:
        """Blocks of rows as indexes of their own, merged into lists that are read where they lie."""
        from faiss.contrib.ondisk import merge_ondisk

        blocks = []
        for start in range(0, len(self.points), BLOCK):
            block = self.faiss.clone_index(self.index)
            self._fill(block, range(start, start + 1))
            blocks.append(scratch / f"block-{start}.faiss")
            self.faiss.write_index(block, str(blocks[-1]))
        merge_ondisk(self.index, [str(path) for path in blocks], str(scratch / "lists.faiss"))
        for path in blocks:
            path.unlink()


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise BackendMissing('approximate mining needs FAISS: pip install faiss-cpu (extra "mining"), or use method "exact"') from error
    return faiss
