"""Clustered intervals and paired tests: coverage, determinism, and that clusters matter."""

import numpy as np
import pytest

from pose_tools.statistics import clustered_interval, paired_difference, ratio_of_means


def test_same_seed_same_bounds_and_order_does_not_matter_within_the_noise():
    rng = np.random.default_rng(0)
    values, clusters = rng.normal(size=200), rng.integers(0, 20, 200)
    first = clustered_interval(values, clusters, seed=3)
    assert first == clustered_interval(values, [f"video {c}" for c in clusters], seed=3)
    assert first != clustered_interval(values, clusters, seed=4)
    assert first.low < values.mean() < first.high


def test_of_single_values_it_is_the_ordinary_interval():
    values = np.random.default_rng(1).normal(size=400)
    low, high = clustered_interval(values, range(400))
    half = 1.96 * values.std(ddof=1) / 20
    assert low == pytest.approx(values.mean() - half, abs=0.1 * half) and high == pytest.approx(values.mean() + half, abs=0.1 * half)


def test_copies_within_a_cluster_add_no_certainty():
    values = np.random.default_rng(2).normal(size=60)
    once = clustered_interval(values, range(60), seed=0)
    ten_times = clustered_interval(np.repeat(values, 10), np.repeat(np.arange(60), 10), seed=0)
    assert ten_times == pytest.approx(once)
    blind = clustered_interval(np.repeat(values, 10), range(600))
    assert blind.high - blind.low < 0.5 * (once.high - once.low)


def test_it_covers_the_truth_about_as_often_as_it_says():
    rng = np.random.default_rng(5)
    covered = 0
    for seed in range(150):
        effects = rng.normal(size=30)
        clusters = np.repeat(np.arange(30), 5)
        low, high = clustered_interval(effects[clusters] + rng.normal(size=150), clusters, level=0.9, seed=seed, resamples=300)
        covered += low <= 0 <= high
    assert 0.8 <= covered / 150 <= 0.97


def test_many_clusters_are_drawn_in_blocks(monkeypatch):
    import pose_tools.statistics as module

    values, clusters = np.arange(50.0), np.arange(50)
    whole = clustered_interval(values, clusters, resamples=100)
    monkeypatch.setattr(module, "_BLOCK", 130)
    assert clustered_interval(values, clusters, resamples=100) == whole


def test_one_cluster_has_no_interval(caplog):
    assert np.isnan(clustered_interval([1, 2, 3], ["a"] * 3)).all()
    assert "at least two clusters" in caplog.text


def test_paired_difference_exact_for_few_clusters():
    result = paired_difference([1.0] * 5, [0.0] * 5, "abcde")
    assert result.difference == 1 and result.low == result.high == 1
    assert result.p_value == pytest.approx(2 / 2**5)
    same = paired_difference([1, 0, 1, 0], [1, 0, 1, 0], "abcd")
    assert same.difference == 0 and same.p_value == 1


def test_paired_difference_finds_what_is_there_and_is_antisymmetric():
    rng = np.random.default_rng(6)
    clusters = np.repeat(np.arange(40), 4)
    hard = rng.normal(size=40)[clusters]  # shared difficulty hides the difference from unpaired tests
    a, b = hard + 0.3 + 0.3 * rng.normal(size=160), hard + 0.3 * rng.normal(size=160)
    result, reverse = paired_difference(a, b, clusters), paired_difference(b, a, clusters)
    assert result.p_value < 0.01 and result.low > 0
    assert reverse.difference == pytest.approx(-result.difference) and reverse.p_value == result.p_value
    null = [paired_difference(*rng.normal(size=(2, 60)), np.repeat(np.arange(20), 3), resamples=300).p_value for _ in range(60)]
    assert 0.3 < np.mean(null) < 0.7


def test_errors_say_what_was_got():
    with pytest.raises(ValueError, match="3 values and 2 clusters"):
        clustered_interval([1, 2, 3], ["a", "b"])
    with pytest.raises(ValueError, match="1 of 2 are not finite"):
        clustered_interval([1, float("nan")], ["a", "b"])
    with pytest.raises(ValueError, match="non-empty"):
        clustered_interval([], [])
    with pytest.raises(ValueError, match="got 2 and 1"):
        paired_difference([1, 2], [1], ["a", "b"])
    with pytest.raises(ValueError, match="level"):
        clustered_interval([1, 2], ["a", "b"], level=95)


def test_a_ratio_is_that_of_the_means_and_scales_with_its_numerator():
    rng = np.random.default_rng(3)
    b, clusters = rng.uniform(1, 3, 300), rng.integers(0, 40, 300)
    a = 0.5 * b + rng.normal(0, 0.3, 300)
    found = ratio_of_means(a, b, clusters)
    assert found.ratio == pytest.approx(a.mean() / b.mean()) and found.low < found.ratio < found.high
    assert ratio_of_means(4 * a, b, clusters) == pytest.approx([4 * value for value in found])
    # Errors that rise and fall together tell more about their ratio than each about its mean.
    assert ratio_of_means(2 * b, b, clusters) == pytest.approx((2.0, 2.0, 2.0))


def test_a_ratio_to_nothing_has_no_bounds():
    assert ratio_of_means([1.0, 2.0], [0.0, 0.0], "ab").ratio == np.inf
    assert np.isnan(ratio_of_means([1.0, 2.0], [0.0, 0.0], "ab")[1:]).all()
    assert np.isnan(ratio_of_means([1.0, 2.0], [1.0, 1.0], "aa")[1:]).all()
    with pytest.raises(ValueError, match="in pairs"):
        ratio_of_means([1.0], [1.0, 2.0], "ab")
