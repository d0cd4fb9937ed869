"""LITA's formats: what is written is read again, to half a token."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.lita import (
    format_dense_captions,
    format_event,
    format_reasoning,
    format_time,
    parse_dense_captions,
    parse_event,
    parse_reasoning,
    parse_time,
    parse_times,
    temporal_iou,
)  # fmt: skip
from vlm.answers import write

DURATIONS = st.floats(0.5, 5000)
FRACTIONS = st.floats(0, 1)
CAPTIONS = st.text(st.characters(codec="utf-8", exclude_characters="<>", exclude_categories=["Zs", "Zl", "Zp", "Cc"]), min_size=1)


@given(FRACTIONS, DURATIONS)
def test_a_moment_comes_back_to_half_a_token(fraction: float, duration: float):
    back = parse_time(format_time(fraction * duration, duration), duration)
    assert 0 <= back <= duration + 0.005 and abs(back - fraction * duration) <= duration / 198 + 0.006


@given(st.integers(0, 99), DURATIONS)
def test_every_token_comes_back_as_itself(index: int, duration: float):
    duration = max(duration, 10.0)  # below that, two decimals of a second are coarser than tokens
    assert format_time(parse_time(f"<t{index}>", duration), duration) == f"<t{index}>"


def test_published_forms():
    assert format_time(5, 10) == "<t50>" and format_time(99, 10) == "<t99>" and format_time(-1, 10) == "<t0>"
    assert parse_time("<t50>", 10) == 5.05 and parse_times("from <t0> to <t99>.", 12.5) == [0.0, 12.5]
    assert format_event(0, 10, 10) == "<t0> <t99>"
    assert format_dense_captions([(0, 5), (5, 10)], ["Opens a door.", "Leaves."], 10) == "<t0> <t50> Opens a door. <t50> <t99> Leaves."
    assert format_reasoning("It falls at <5.0> since <0> it hangs, <b>.", 10) == "It falls at <t50> since <t0> it hangs, <b>."
    assert parse_reasoning("at <t50>.", 10) == "at <5.05>."
    assert format_reasoning("<.5> <12.> <1:2> <-1> <1.5s>", 20) == "<t2> <t59> <1:2> <-1> <1.5s>"


def test_a_moment_between_two_tokens_is_rounded_as_a_share_of_the_clip():
    """99 · (t / duration), in floating point: not 99 · t / duration, and as answers of `vlm.answers` are written."""
    assert [format_time(t, d) for t, d in ((2.1, 12.6), (2.1, 15.4), (0.7, 19.8), (9.1, 19.8))] == ["<t17>", "<t13>", "<t4>", "<t45>"]
    for tenths in range(127):
        part = {"type": "time", "seconds": tenths / 10, "duration": 12.6}
        assert write([part], None, "norm1000") == format_time(tenths / 10, 12.6)


@given(st.lists(st.tuples(st.integers(0, 99), st.integers(0, 99), CAPTIONS), max_size=4))
def test_dense_captions_come_back(events: list[tuple[int, int, str]]):
    text = format_dense_captions([event[:2] for event in events], [event[2] for event in events], 99)
    assert parse_dense_captions(text, 99) == [(float(a), float(b), caption.strip()) for a, b, caption in events]


@given(st.text(st.sampled_from("<t109> a")), DURATIONS)
def test_any_answer_can_be_read(text: str, duration: float):
    start, end = parse_event(text, duration)
    assert 0 <= start <= end <= duration + 0.005
    assert all(0 <= moment <= duration + 0.005 for row in parse_dense_captions(text, duration) for moment in row[:2])


def test_an_event_needs_two_moments():
    assert parse_event("<t99> then <t0> and <t50>", 99) == (0.0, 99.0)
    assert parse_event("at <t3>", 40) == (0.0, 40.0)


@given(*[st.tuples(FRACTIONS, FRACTIONS).map(sorted)] * 2)
def test_iou_is_symmetric_and_bounded(a: list[float], b: list[float]):
    iou = temporal_iou(tuple(a), tuple(b))
    assert 0 <= iou <= 1 and iou == temporal_iou(tuple(b), tuple(a))
    assert temporal_iou(tuple(a), tuple(a)) == (1.0 if a[0] < a[1] else 0.0)


def test_iou_of_a_known_pair_and_bad_input():
    assert temporal_iou((0, 2), (1, 3)) == pytest.approx(1 / 3)
    nan = float("nan")
    for function, arguments in ((format_time, (1, 0)), (format_time, (nan, 1)), (parse_times, ("<t1>", nan)), (parse_time, ("t1", 10))):
        with pytest.raises(ValueError):
            function(*arguments)
    with pytest.raises(ValueError, match="0 captions for 1 events"):
        format_dense_captions([(0, 1)], [], 10)
