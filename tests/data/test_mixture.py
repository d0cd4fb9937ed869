"""Mixtures: the same draws from anywhere, every item once per pass, shares as asked."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.mixture import BLOCK, Mixture, MixtureError

sizes = st.dictionaries(st.text("abcdefgh", min_size=1, max_size=3), st.integers(1, 300), min_size=1, max_size=4)


@settings(max_examples=30, deadline=None)
@given(sizes, st.data(), st.integers(0, 2**31))
def test_entered_anywhere_the_draws_are_the_same(sizes: dict[str, int], data: st.DataObject, seed: int) -> None:
    weights = {name: data.draw(st.floats(0.01, 100)) for name in sizes}
    first = BLOCK - 100  # across the border of two blocks
    mixture = Mixture(sizes, weights, seed=seed)
    whole = [mixture[i] for i in range(first, first + 200)]
    start = data.draw(st.integers(0, 199))
    resumed = Mixture(sizes, weights, seed=seed)
    assert whole[start:] == [resumed[i] for i in range(first + start, first + 200)]


@settings(max_examples=10, deadline=None)
@given(sizes, st.data())
def test_every_pass_gives_every_item_once_and_shares_are_kept(sizes: dict[str, int], data: st.DataObject) -> None:
    weights = {name: data.draw(st.floats(0.1, 10)) for name in sizes}
    mixture = Mixture(sizes, weights, seed=1)
    count = 2 * BLOCK
    draws = [mixture[i] for i in range(count)]
    for name, size in sizes.items():
        mine = [d for d in draws if d.name == name]
        assert abs(len(mine) - mixture.shares[name] * count) <= 2
        passes = Counter(d.epoch for d in mine)
        assert [d.epoch for d in mine] == sorted(d.epoch for d in mine)
        for epoch, drawn in passes.items():
            items = [d.index for d in mine if d.epoch == epoch]
            assert len(set(items)) == drawn and all(0 <= i < size for i in items)
            assert drawn == size or epoch == max(passes)


def test_a_share_of_less_than_one_draw_a_block_still_comes_up() -> None:
    mixture = Mixture({"much": 10, "rare": 5}, {"much": 1.0, "rare": 0.4 / BLOCK}, seed=2)
    rare = [d for d in (mixture[i] for i in range(10 * BLOCK)) if d.name == "rare"]
    assert len(rare) == 4 and len({d.index for d in rare}) == 4


def test_without_weights_the_data_sets_end_together() -> None:
    mixture = Mixture({"a": 3000, "b": 1000, "c": 96}, seed=5)
    assert Counter(mixture[i].name for i in range(4096)) == {"a": 3000, "b": 1000, "c": 96}
    assert {mixture[i].epoch for i in range(4096)} == {0}
    assert {mixture[i].epoch for i in range(4096, 8192)} == {1}


def test_passes_and_seeds_differ_and_the_fingerprint_tells_them_apart() -> None:
    one, two = Mixture({"a": 50}, seed=0), Mixture({"a": 50}, seed=1)
    first, second = [one[i].index for i in range(50)], [one[i].index for i in range(50, 100)]
    assert sorted(first) == sorted(second) == list(range(50)) and first != second
    assert first != [two[i].index for i in range(50)]
    assert one.fingerprint() == Mixture({"a": 50}, {"a": 3.0}, seed=0).fingerprint()
    assert len({m.fingerprint() for m in (one, two, Mixture({"a": 51}), Mixture({"b": 50}))}) == 4


@pytest.mark.parametrize(
    ("sizes", "weights", "message"),
    [
        ({}, None, "at least one"),
        ({"a": 0}, None, "'a' is empty"),
        ({"a": 1, "b": 1}, {"a": 1.0}, r"\['a'\].*\['a', 'b'\]"),
        ({"a": 1}, {"a": 0.0}, "'a' has weight 0.0"),
        ({"a": 1}, {"a": float("nan")}, "'a' has weight nan"),
    ],
)
def test_what_cannot_be_drawn_from_is_named(sizes: dict, weights: dict, message: str) -> None:
    with pytest.raises(MixtureError, match=message):
        Mixture(sizes, weights)
