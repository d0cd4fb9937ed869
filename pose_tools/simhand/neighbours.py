"""Nearest neighbours among rows of other groups, exact: by k-d tree or blocked matrix product (`faiss_search.py` is the approximate way).

All searches give the same order: by distance (float64, of the float32 coordinates), then by row number. Rows of one group (a
video, a picture, or a row of its own) are never each other's neighbours. Rows must be sorted by group, and be asked for in rising order.
"""

from __future__ import annotations

import logging
import time
from typing import Protocol

import numpy as np
import torch
from scipy.spatial import cKDTree
from torch import Tensor

logger = logging.getLogger(__name__)

ROWS, COLUMNS, SET = 256, 8192, 32
SPARE = 4
"""Sets of columns beyond k, so that float32's rounding cannot hide a neighbour."""
OVER_QUERY = 8
MOST_OVER_QUERY = 256
CHUNK = 4096

Found = tuple[np.ndarray, np.ndarray]
"""Row numbers (R, k) int64, −1 where there is none, and distances (R, k) float64, inf there."""


class Search(Protocol):
    """`chunks`: row numbers to search at a time, every row once. `search(rows)`: their neighbours."""

    chunks: list[np.ndarray]

    def search(self, rows: np.ndarray) -> Found: ...


class BlockSearch:
    """Exact by matrix product. `points` (N, D) float32; `groups` (N,) sorted, so that a block's own groups are one run of columns."""

    def __init__(self, points: np.ndarray, groups: np.ndarray, k: int):
        self.points, self.groups, self.k = points, groups, k
        self.columns = _columns(points)
        self.chunks = [np.arange(i, min(i + CHUNK, len(points))) for i in range(0, len(points), CHUNK)]
        # what the approximate squared distances can be off by, at most: rounding of D + 1 products and sums
        reach = 2 * float(np.sqrt((points.astype(np.float64) ** 2).sum(1).max(initial=0.0)))
        self.error = (points.shape[1] + 4) * 2.0**-23 * reach**2

    def search(self, rows: np.ndarray) -> Found:
        return self.search_points(self.points[rows], self.groups[rows])

    def search_points(self, queries: np.ndarray, groups: np.ndarray) -> Found:
        """The same for points (R, D) that need not be among the searched ones; `groups` (R,) sorted."""
        parts = [self._block(queries[i : i + ROWS], groups[i : i + ROWS]) for i in range(0, len(queries), ROWS)]
        return np.concatenate([p[0] for p in parts]), np.concatenate([p[1] for p in parts])

    def _block(self, queries: np.ndarray, groups: np.ndarray) -> Found:
        candidates, bound = candidate_columns(queries, groups, self.columns, self.groups, self.k + SPARE)
        index, distance = rank(self.points, queries, candidates, self.k)
        # nothing that was left out can be as near as the k-th, or nothing legal was left out
        sure = (bound - self.error > distance[:, -1] ** 2) | np.isinf(bound)
        if not sure.all():
            index[~sure], distance[~sure] = _pair_by_pair(self.points, self.groups, queries[~sure], groups[~sure], self.k)
        return index, distance


class TreeSearch:
    """Exact by k-d tree, asking for more than k until k of other groups are there; what does not come is searched by matrix product."""

    def __init__(self, points: np.ndarray, groups: np.ndarray, k: int, block: BlockSearch | None = None):
        self.points, self.groups, self.k = points, groups, k
        self.tree = cKDTree(points)
        self.block = block or BlockSearch(points, groups, k)
        self.chunks = self.block.chunks

    def search(self, rows: np.ndarray) -> Found:
        index = np.full((len(rows), self.k), -1, np.int64)
        distance = np.full((len(rows), self.k), np.inf)
        left, ask = np.arange(len(rows)), self.k + OVER_QUERY
        while len(left) and ask <= MOST_OVER_QUERY:
            there = rows[left]
            far, near = self.tree.query(self.points[there], k=min(ask, len(self.points)), workers=torch.get_num_threads())
            far, near = far.reshape(len(there), -1), near.reshape(len(there), -1)  # one neighbour comes without its axis
            near = np.where(self.groups[np.minimum(near, len(self.points) - 1)] == self.groups[there][:, None], -1, near)
            found, away = rank(self.points, self.points[there], near, self.k)
            # the k-th must be strictly nearer than the farthest seen, or a tie may be waiting outside
            sure = (away[:, -1] < far[:, -1] * (1 - 1e-9)) if ask < len(self.points) else np.ones(len(left), bool)
            index[left[sure]], distance[left[sure]] = found[sure], away[sure]
            left, ask = left[~sure], 4 * ask
        if len(left):
            index[left], distance[left] = self.block.search(rows[left])
        return index, distance


def exact_search(points: np.ndarray, groups: np.ndarray, k: int, sample: int = 256) -> Search:
    """Tree or matrix product, whichever is faster on a sample of rows; their answers are the same."""
    block = BlockSearch(points, groups, k)
    if len(points) <= 4 * ROWS:
        return block
    tree = TreeSearch(points, groups, k, block)
    rows = np.sort(np.random.default_rng(0).choice(len(points), min(sample, len(points)), replace=False))
    seconds = []
    for search in (tree, block):
        began = time.perf_counter()
        search.search(rows)
        seconds.append(time.perf_counter() - began)
    logger.info(
        "exact search of %d poses: tree %.2f ms, matrix product %.2f ms a pose", len(points), *(1e3 * s / len(rows) for s in seconds)
    )
    return tree if seconds[0] <= seconds[1] else block


def candidate_columns(
    rows: np.ndarray, row_groups: np.ndarray, columns: Tensor, column_groups: np.ndarray, count: int
) -> tuple[np.ndarray, np.ndarray]:
    """Columns among which the `count` nearest of each row (R, D) are → numbers (R, C), −1 for none, and a bound (R,).

    `columns` (D + 1, M) as `_columns` makes them; rows and columns sorted by group. Columns are taken in sets of `SET`; the `count` nearest
    ones lie in the `count` sets with the smallest minima, which are returned whole: one product and one minimum per pair are
    all the work. Columns left out are at squared distances of at least the bound (in float32's arithmetic).
    """
    total = len(column_groups)
    width = COLUMNS // SET
    with torch.no_grad():
        left = torch.from_numpy(np.concatenate([-2 * rows, np.ones((len(rows), 1), np.float32)], axis=1))
        runs, first, minima = _own_runs(row_groups, column_groups), 0, []
        for start in range(0, columns.shape[1], COLUMNS):
            panel = left @ columns[:, start : start + COLUMNS]
            while first < len(runs) and runs[first][3] <= start:
                first += 1
            for top, bottom, left_end, right_end in runs[first:]:
                if left_end >= start + COLUMNS:
                    break
                panel[top:bottom, max(left_end - start, 0) : right_end - start] = float("inf")
            minima.append(panel.view(len(rows), SET, width).amin(1))
        lowest, sets = torch.cat(minima, 1).topk(min(count, columns.shape[1] // SET), largest=False)
        bound = lowest[:, -1] + torch.from_numpy((rows**2).sum(1))
    panel_start, offset = np.divmod(sets.numpy(), width)
    members = (panel_start * COLUMNS + offset)[:, :, None] + np.arange(SET) * width
    members = members.reshape(len(rows), -1)
    own = column_groups[np.minimum(members, total - 1)] == row_groups[:, None]
    return np.where((members >= total) | own, -1, members), bound.numpy()


def _own_runs(row_groups: np.ndarray, column_groups: np.ndarray) -> list[tuple[int, int, int, int]]:
    """(first row, last row, first column, last column) of every group that rows and columns share, both sorted; ends exclusive."""
    names, tops = np.unique(row_groups, return_index=True)
    lefts, rights = np.searchsorted(column_groups, names), np.searchsorted(column_groups, names, side="right")
    bounds = zip(tops, [*tops[1:], len(row_groups)], lefts, rights, strict=True)
    return [(int(a), int(b), int(c), int(d)) for a, b, c, d in bounds if c < d]


def rank(points: np.ndarray, queries: np.ndarray, candidates: np.ndarray, k: int) -> Found:
    """The k best rows of `points` for queries (R, D) among candidates (R, C), −1 for none, by exact distance and then row number."""
    difference = points[np.maximum(candidates, 0)].astype(np.float64) - queries.astype(np.float64)[:, None]
    distance = np.sqrt((difference**2).sum(-1))
    distance[candidates < 0] = np.inf
    order = np.lexsort((candidates, distance), axis=1)[:, :k]
    index, distance = np.take_along_axis(candidates, order, 1).astype(np.int64), np.take_along_axis(distance, order, 1)
    if index.shape[1] < k:
        short = ((0, 0), (0, k - index.shape[1]))
        index, distance = np.pad(index, short, constant_values=-1), np.pad(distance, short, constant_values=np.inf)
    return index, distance


def brute_force(points: np.ndarray, groups: np.ndarray, rows: np.ndarray, k: int) -> Found:
    """Every pair in float64, row by row: what the other searches must equal, and their last resort."""
    return _pair_by_pair(points, groups, points[rows], groups[rows], k)


def _pair_by_pair(points: np.ndarray, groups: np.ndarray, queries: np.ndarray, query_groups: np.ndarray, k: int) -> Found:
    index, distance = np.full((len(queries), k), -1, np.int64), np.full((len(queries), k), np.inf)
    wide = points.astype(np.float64)
    for number, (query, group) in enumerate(zip(queries.astype(np.float64), query_groups, strict=True)):
        away = np.sqrt(((wide - query) ** 2).sum(1))
        away[groups == group] = np.inf
        legal = min(k, int(np.isfinite(away).sum()))
        if legal:
            near = np.flatnonzero(away <= np.partition(away, legal - 1)[legal - 1])
            near = near[np.lexsort((near, away[near]))][:legal]
            index[number, :legal], distance[number, :legal] = near, away[near]
    return index, distance


def _columns(points: np.ndarray) -> Tensor:
    """[p, |p|²] (D + 1, M): the product of [−2 q, 1] with it is |p − q|² − |q|². Filled up with infinitely far columns to whole panels."""
    filled = np.zeros((points.shape[1] + 1, -(-len(points) // COLUMNS) * COLUMNS), np.float32)
    filled[:-1, : len(points)], filled[-1, : len(points)], filled[-1, len(points) :] = points.T, (points**2).sum(1), np.inf
    return torch.from_numpy(filled)
