"""Boxes ↔ text: round trips, nothing lost silently, nothing that a text can do to the reader."""

import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_tools.grounding import DIALECTS, find_boxes, format_box, format_numbers, parse_boxes

NAMES = st.sampled_from(sorted(DIALECTS))
UNIT = st.floats(0, 1)
SIZES = st.tuples(st.integers(1, 8000), st.integers(1, 8000))


def as_box(a, b, c, d):
    return (min(a, c), min(b, d), max(a, c), max(b, d))


@settings(max_examples=300)
@given(name=NAMES, size=SIZES, corners=st.tuples(UNIT, UNIT, UNIT, UNIT))
def test_round_trip_within_half_a_step(name, size, corners):
    box = [v * side for v, side in zip(as_box(*corners), size * 2, strict=True)]
    problems = []
    (parsed,) = parse_boxes(format_box(box, size, name), size, name, problems=problems)
    assert not problems
    for got, expected, side in zip(parsed.bbox_xyxy, box, size * 2, strict=True):
        assert abs(got - expected) <= side / DIALECTS[name].steps / 2 + 1e-6


@given(name=NAMES, corners=st.tuples(UNIT, UNIT, UNIT, UNIT))
def test_a_written_box_reads_back_to_itself(name, corners):
    text = format_numbers(as_box(*corners), name)
    (found,) = find_boxes(f"left hand {text}, and so on", name)
    assert found.span == (10, 10 + len(text))
    assert format_numbers(found.box, name) == text


def test_examples():
    assert format_box((10, 20, 30, 40), (100, 200)) == "[100, 100, 300, 200]"
    assert format_box((10, 20, 30, 40), (100, 200), "minigpt") == "{<10><10><30><20>}"
    assert format_box((-5, -5, 130, 210), (100, 200)) == "[0, 0, 1000, 1000]"
    left, right = parse_boxes("left hand [0, 0, 500, 250], right hand [1,2, 3 ,4]", (200, 100))
    assert left.bbox_xyxy == (0, 0, 100, 25)
    assert right.bbox_xyxy == pytest.approx((0.2, 0.2, 0.6, 0.4))
    assert parse_boxes("none", (200, 100)) == []
    assert parse_boxes("{<0><0><50><25>}<delim>{<1><2><3><4>}", (200, 100), "minigpt")[0].bbox_xyxy == (0, 0, 100, 25)


@pytest.mark.parametrize(
    ("text", "name", "problem"),
    [
        ("[500, 0, 100, 50]", "norm1000", "inverted"),
        ("[0, 500, 100, 50]", "norm1000", "inverted"),
        ("[0, 0, 1001, 50]", "norm1000", "out of range"),
        ("[0, 0, -5, 50]", "norm1000", "negative"),
        ("[0, 0, 5.5, 50]", "norm1000", "not a whole number"),
        ("[0, 0, 5]", "norm1000", "box of 3 numbers"),
        ("[0, 0, 5, 6, 7]", "norm1000", "box of 5 numbers"),
        ("[0 0 5 6]", "norm1000", "malformed"),
        ("[0, 0, 5", "norm1000", "cut off"),
        ("[0, 0, 5, left hand", "norm1000", "cut off"),
        ("[١, ٢, ٣, ٤]", "norm1000", "digits other"),
        ("[1, 2, ３, 4]", "norm1000", "digits other"),
        ("[" + "9" * 300 + ", 1, 2, 3]", "norm1000", "without end"),
        ("[" + "9" * 30 + ", 1, 2, 3]", "norm1000", "malformed"),
        ("{<50><0><10><5>}", "minigpt", "inverted"),
        ("{<0><0><101><5>}", "minigpt", "out of range"),
        ("{<0> <0><10><5>}", "minigpt", "malformed"),
        ("{<0><0><10>}", "minigpt", "box of 3 numbers"),
        ("{<0><0><1", "minigpt", "cut off"),
        ("{<0><0> and", "minigpt", "cut off"),
    ],
)
def test_what_is_no_box_is_a_problem(text, name, problem):
    (found,) = find_boxes("it is at " + text, name)
    assert found.box is None and problem in found.problem
    problems = []
    good = format_numbers((0, 0, 1, 1), name)
    assert len(parse_boxes(f"{good} {text}", (10, 10), name, problems=problems)) == 1
    assert problems == [found.problem]


def test_a_box_that_begins_within_another_is_read():
    broken, good = find_boxes("[609, 356, 854, right hand [600, 350, 850, 640]")
    assert "cut off" in broken.problem and good.box == (0.6, 0.35, 0.85, 0.64)
    assert find_boxes("the 2 [of 3], see [fig 2] and [1 of them") == []


def test_problems_are_logged_when_nobody_takes_them(caplog):
    assert parse_boxes("[5, 5, 1, 1]", (10, 10)) == []
    assert "1 of 1 boxes could not be read" in caplog.text


def test_the_vlm4hoi_codec_truncates_and_lets_everything_through():
    size = (1920, 1080)
    assert format_box((19, -2.8, 2000, 540), size, "minigpt", compat="vlm4hoi") == "{<0><0><104><50>}"
    assert format_box((900, 540, 100, 20), size, "minigpt", compat="vlm4hoi") == "{<46><50><5><1>}"
    assert format_box((900, 540, 100, 20), size, "minigpt", compat=True) == "{<46><50><5><1>}"
    boxes = parse_boxes("{<33><33><12><104>} {<-3><0.5><1><2>}", size, "minigpt", compat="vlm4hoi")
    assert boxes[0].bbox_xyxy == (633, 356, 230, 1123)
    assert boxes[1].bbox_xyxy == (-57, 5, 19, 21)
    assert find_boxes("{<33> <33><12><104>}", "minigpt", compat="vlm4hoi")[0].box is None
    [long] = parse_boxes("{<12345678901><1.12345678901><2><3>}", (100, 1000), "minigpt", compat="vlm4hoi")
    assert long.bbox_xyxy == (12345678901, 11, 2, 30)


@settings(max_examples=300)
@given(text=st.text(alphabet="[]{}<>,.-+ 0123456789\n٣ax", max_size=300), name=NAMES)
def test_any_text_is_read_without_error(text, name):
    for found in find_boxes(text, name):
        assert (found.box is None) != (found.problem is None)
        assert text[found.span[0]] in "[{"
        if found.box is not None:
            x1, y1, x2, y2 = found.box
            assert 0 <= x1 <= x2 <= 1 and 0 <= y1 <= y2 <= 1


HUGE = ["[" * 500_000, "[1" * 250_000, "[" + "1" * 500_000, "[1, " * 100_000, "[" + " " * 400_000, "[[1, 2, 3, 4]]" * 10_000]


@pytest.mark.parametrize("text", HUGE)
def test_huge_texts_take_linear_time(text):
    start = time.perf_counter()
    found = find_boxes(text)
    assert time.perf_counter() - start < 3  # quadratic work would take hours
    assert len(found) <= len(text)


def test_ten_thousand_boxes_are_all_read():
    assert len(parse_boxes(", ".join(["[1, 2, 3, 4]"] * 10_000), (100, 100))) == 10_000


def test_errors_say_what_was_got():
    with pytest.raises(ValueError, match="x1 <= x2"):
        format_box((5, 5, 1, 9), (10, 10))
    with pytest.raises(ValueError, match="four finite numbers.*nan"):
        format_box((5, 5, float("nan"), 9), (10, 10))
    with pytest.raises(ValueError, match="unknown dialect 'qwen'.*norm1000, minigpt"):
        format_box((1, 1, 2, 2), (10, 10), "qwen")
    with pytest.raises(ValueError, match="only compat='vlm4hoi' with 'minigpt'"):
        parse_boxes("", (10, 10), "norm1000", compat="vlm4hoi")
    with pytest.raises(ValueError, match="positive"):
        parse_boxes("", (0, 10))
