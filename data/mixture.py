"""A weighted mixture of named data sets: an endless, deterministic order of draws that can be entered anywhere.

Draw `i` is a function of (seed, weights, sizes, i) alone: no state is kept, so resuming at a position, another number of
processes or of loader workers gives the same draws. Every data set is gone through without repetition, in a new order on
each pass.
"""

from __future__ import annotations

import hashlib
import json
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from pose_tools.user_error import UserError

BLOCK = 4096
"""Draws whose data sets are chosen together; the shares are kept to one draw within each block."""


class MixtureError(UserError):
    """A mixture that cannot be drawn from; the message names the data set."""


@dataclass(frozen=True)
class Draw:
    """One draw: item `index` of data set `name`, in that data set's pass number `epoch` (from 0)."""

    name: str
    index: int
    epoch: int


class Mixture:
    """`mixture[i]` is the i-th Draw, for any i ≥ 0.

    `sizes`: items per data set. `weights`: share of the draws per data set, in any unit; without it, shares follow the sizes
    (so that all data sets end together). Raises MixtureError for an empty data set, a weight that is not positive or a missing one.
    """

    def __init__(self, sizes: Mapping[str, int], weights: Mapping[str, float] | None = None, *, seed: int = 0) -> None:
        weights = dict(sizes) if weights is None else weights
        if not sizes:
            raise MixtureError("a mixture needs at least one data set")
        if set(weights) != set(sizes):
            raise MixtureError(f"weights are given for {sorted(weights)}, the data sets are {sorted(sizes)}; give all of them one, or none")
        for name, size in sizes.items():
            if size < 1:
                raise MixtureError(f"data set {name!r} is empty")
            if not np.isfinite(weights[name]) or weights[name] <= 0:
                raise MixtureError(f"data set {name!r} has weight {weights[name]}, expected a positive number; remove the data set instead")
        self.names = list(sizes)
        self.sizes = {name: int(size) for name, size in sizes.items()}
        total = float(sum(weights.values()))
        self.shares = {name: float(weights[name]) / total for name in self.names}
        self.seed = int(seed)
        self._blocks: OrderedDict[int, tuple[np.ndarray, np.ndarray]] = OrderedDict()
        self._orders: OrderedDict[tuple[str, int], np.ndarray] = OrderedDict()

    def __getitem__(self, position: int) -> Draw:
        if position < 0:
            raise IndexError(f"position {position}: positions start at 0")
        block, offset = divmod(int(position), BLOCK)
        choice, rank = self._block(block)
        name = self.names[choice[offset]]
        epoch, place = divmod(int(rank[offset]), self.sizes[name])
        return Draw(name, int(self._order(name, epoch)[place]), epoch)

    def fingerprint(self) -> str:
        """Identity of the order of draws: equal for two mixtures exactly when they draw alike."""
        what = [[name, self.sizes[name], self.shares[name]] for name in self.names]
        return hashlib.sha256(json.dumps([what, self.seed, BLOCK]).encode()).hexdigest()[:16]

    def _quotas(self, blocks: np.ndarray) -> np.ndarray:
        """Draws per data set in each of `blocks`: (len(blocks), data sets), every row adding up to BLOCK.

        Systematic sampling: cumulative shares shifted by an offset that runs through [0, 1) evenly (golden ratio), then cut to
        whole numbers, so that a share of less than one draw a block comes up as often as it should.
        """
        edges = np.cumsum([0.0, *self.shares.values()]) * BLOCK
        edges[-1] = BLOCK
        offset = (blocks * 0.6180339887498949) % 1.0
        return np.diff(np.floor(edges + offset[:, None]), axis=1).astype(np.int64)

    def _block(self, block: int) -> tuple[np.ndarray, np.ndarray]:
        """For the draws of one block: (number of the data set, how many draws of that data set came before)."""
        if block not in self._blocks:
            quotas = self._quotas(np.arange(block + 1))
            before = quotas[:-1].sum(0)
            choice = np.repeat(np.arange(len(self.names)), quotas[-1])
            np.random.default_rng([self.seed, block]).shuffle(choice)
            rank = np.empty(BLOCK, dtype=np.int64)
            for number in range(len(self.names)):
                mine = np.flatnonzero(choice == number)
                rank[mine] = before[number] + np.arange(len(mine))
            _keep(self._blocks, block, (choice, rank), 4)
        return self._blocks[block]

    def _order(self, name: str, epoch: int) -> np.ndarray:
        if (name, epoch) not in self._orders:
            key = int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
            order = np.random.default_rng([self.seed, key, epoch]).permutation(self.sizes[name])
            _keep(self._orders, (name, epoch), order, 2 * len(self.names))
        return self._orders[name, epoch]


def _keep(cache: OrderedDict, key: object, value: object, limit: int) -> None:
    cache[key] = value
    while len(cache) > limit:
        cache.popitem(last=False)
