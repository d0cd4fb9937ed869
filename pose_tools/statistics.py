"""How sure is a score? Intervals and tests that respect that questions about one video are not independent.

`clusters` names the video (or picture) of every value; whole clusters are resampled, never single values.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np

logger = logging.getLogger(__name__)

_BLOCK = 4_000_000  # resampling weights held in memory at a time


class Interval(NamedTuple):
    """Bounds of a mean, in the unit of the values; NaN where a single cluster leaves nothing to resample."""

    low: float
    high: float


class PairedDifference(NamedTuple):
    """Mean of a − b with its interval, and the two-sided p-value of "no difference"."""

    difference: float
    low: float
    high: float
    p_value: float


class Ratio(NamedTuple):
    """Mean of a divided by mean of b, with its interval; bounds are NaN where there is nothing to resample or to divide by."""

    ratio: float
    low: float
    high: float


def clustered_interval(values: Any, clusters: Sequence[Any], level: float = 0.95, seed: int = 0, resamples: int = 2000) -> Interval:
    """Interval of the mean of `values` (n,) by the percentile bootstrap over clusters; the same seed gives the same bounds.

    Raises ValueError for no values, for values that are not finite, and for lengths that differ.
    """
    if not 0 < level < 1:
        raise ValueError(f"level must lie between 0 and 1, got {level}")
    sums, counts = _per_cluster(values, clusters)
    if len(sums) < 2:
        logger.warning("an interval needs at least two clusters, got one: bounds are NaN")
        return Interval(float("nan"), float("nan"))
    rng = np.random.default_rng(seed)
    means = np.concatenate([(w @ sums) / (w @ counts) for w in _weights(rng, len(sums), resamples)])
    low, high = np.quantile(means, [(1 - level) / 2, (1 + level) / 2])
    return Interval(float(low), float(high))


def paired_difference(
    a: Any, b: Any, clusters: Sequence[Any], level: float = 0.95, seed: int = 0, resamples: int = 10_000
) -> PairedDifference:
    """Two systems on the same questions: mean of `a` − `b` (n,), its clustered interval, and a sign-flip permutation p-value.

    Under "no difference" every cluster's sum of differences may as well have the other sign. All sign patterns are tried
    for up to 12 clusters (the smallest p is then 2 / 2^clusters), else `resamples` random ones.
    """
    a, b = _numbers(a, "a"), _numbers(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"paired values must come in pairs, got {len(a)} and {len(b)}")
    sums, _ = _per_cluster(a - b, clusters)
    observed = abs(sums.sum())
    low, high = clustered_interval(a - b, clusters, level, seed)
    # A sum that equals the observed one but for rounding must count as reaching it.
    reach = observed - 1e-12 * max(1.0, np.abs(sums).sum())
    if len(sums) <= 12:
        signs = np.array(list(product((-1.0, 1.0), repeat=len(sums))))
        p_value = float((np.abs(signs @ sums) >= reach).mean())
    else:
        rng = np.random.default_rng(seed)
        hits = 0
        for start in range(0, resamples, 1000):
            signs = rng.choice((-1.0, 1.0), size=(min(1000, resamples - start), len(sums)))
            hits += int((np.abs(signs @ sums) >= reach).sum())
        p_value = (hits + 1) / (resamples + 1)
    return PairedDifference(float((a - b).mean()), low, high, p_value)


def ratio_of_means(a: Any, b: Any, clusters: Sequence[Any], level: float = 0.95, seed: int = 0, resamples: int = 2000) -> Ratio:
    """How many times `b` is `a`, in the mean, on the same questions: mean of `a` (n,) over mean of `b` (n,).

    The interval is the percentile bootstrap over clusters, both means of one resample from the same clusters. Where the mean of
    `b` is zero the ratio is infinite, or NaN when both are.
    """
    a, b = _numbers(a, "a"), _numbers(b, "b")
    if a.shape != b.shape:
        raise ValueError(f"paired values must come in pairs, got {len(a)} and {len(b)}")
    (above, _), (below, _) = _per_cluster(a, clusters), _per_cluster(b, clusters)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = float(above.sum() / below.sum())
        if len(above) < 2 or below.sum() == 0:
            return Ratio(ratio, float("nan"), float("nan"))
        drawn = np.concatenate([(w @ above) / (w @ below) for w in _weights(np.random.default_rng(seed), len(above), resamples)])
    low, high = np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2])
    return Ratio(ratio, float(low), float(high))


def _numbers(values: Any, name: str = "values") -> np.ndarray:
    numbers = np.asarray(values.detach().cpu() if hasattr(values, "detach") else values, dtype=np.float64)
    if numbers.ndim != 1 or numbers.size == 0:
        raise ValueError(f"{name} must be a non-empty list of numbers, got shape {numbers.shape}")
    if not np.isfinite(numbers).all():
        raise ValueError(
            f"{name}: {int((~np.isfinite(numbers)).sum())} of {len(numbers)} are not finite; decide what a missing answer scores first"
        )
    return numbers


def _per_cluster(values: Any, clusters: Sequence[Any]) -> tuple[np.ndarray, np.ndarray]:
    """Sum and number of the values of each cluster."""
    numbers = _numbers(values)
    if len(clusters) != len(numbers):
        raise ValueError(f"every value needs its cluster, got {len(numbers)} values and {len(clusters)} clusters")
    places: dict[Any, int] = {}
    ids = [places.setdefault(cluster.item() if hasattr(cluster, "item") else cluster, len(places)) for cluster in clusters]
    return np.bincount(ids, numbers), np.bincount(ids).astype(float)


def _weights(rng: np.random.Generator, clusters: int, resamples: int) -> Iterator[np.ndarray]:
    """How often each cluster is drawn, (block, clusters) at a time, `resamples` rows in all."""
    block = max(1, _BLOCK // clusters)
    for start in range(0, resamples, block):
        yield rng.multinomial(clusters, np.full(clusters, 1 / clusters), size=min(block, resamples - start)).astype(float)
