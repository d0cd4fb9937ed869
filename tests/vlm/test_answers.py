"""Answers: writing and reading are inverse, no text makes the reader fail, and nothing that was written is lost."""

from __future__ import annotations

import gc
import time

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.hoi_qa import answer_parts
from pose_tools.grounding import DIALECTS, find_boxes
from pose_tools.types import Box
from pose_tools.views import View, center_crop, letterbox, squash
from vlm.answers import (
    BoxAnswer,
    NoneAnswer,
    TextAnswer,
    TimeAnswer,
    ToolCallAnswer,
    TrajectoryAnswer,
    Unparsed,
    parse,
    write,
)

SIZE = (640, 480)
VIEWS = [View.identity(SIZE), letterbox(SIZE, 224), squash(SIZE, 448), letterbox((480, 640), 100)]
NAMES = sorted(DIALECTS)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-(10**9), 10**9) | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=6,
)
LABELS = st.sampled_from([None, None, "left hand", "right hand", "red cup", "board, chopping", "é—x", "  "])


def box(bbox, label=None):
    return {"type": "box", "bbox_xyxy": list(bbox)} | ({"label": label} if label else {})


def boxes_in(view: View):
    width, height = view.size
    return st.tuples(*[st.floats(0, side) for side in (width, height, width, height)]).map(
        lambda v: (min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3]))
    )


@pytest.mark.parametrize("dialect", NAMES)
@pytest.mark.parametrize("view", VIEWS, ids=["identity", "letterbox", "squash", "portrait"])
@given(data=st.data())
def test_boxes_come_back_where_they_were(dialect, view, data):
    parts = data.draw(st.lists(st.builds(box, boxes_in(view), LABELS), min_size=1, max_size=6))
    answers = parse(write(parts, view, dialect), view, dialect)
    assert len(answers) == len(parts)
    half = max(view.out) / DIALECTS[dialect].steps / 2 / min(view.matrix[0, 0], view.matrix[1, 1])
    for part, answer in zip(parts, answers):
        np.testing.assert_allclose(answer.box.bbox_xyxy, part["bbox_xyxy"], atol=half + 1e-6)
        assert answer.box.label == ((part.get("label") or "").replace(",", "").strip() or None)


@pytest.mark.parametrize("dialect", NAMES)
@given(text=st.text())
@settings(max_examples=300)
def test_no_text_makes_the_reader_fail(dialect, text):
    for view in (VIEWS[0], None):
        assert parse(text, view, dialect)


FRAGMENTS = st.sampled_from(
    "[ ] { } < > <p> </p> <delim> <tool_call> </tool_call> none left hand , . 1 999 1001 -3 ٣ é \n "
    "<hand_traj> <t3> <t999> [1,2,3,4] {<1><2><3><4>}".split(" ")
)


@pytest.mark.parametrize("dialect", NAMES)
@given(text=st.lists(FRAGMENTS | st.sampled_from(['{"name": "a", "arguments": {}}', " ", "[[[[", '"'])).map("".join))
@settings(max_examples=500)
def test_nothing_that_was_written_is_lost(dialect, text):
    """Every letter and digit is in an answer, or in the numbers of one; every attempt at a box outside of calls is an answer."""
    answers = parse(text, VIEWS[1], dialect, np.zeros((2, 3, 2)))
    if all(isinstance(answer, (TextAnswer, Unparsed)) for answer in answers):
        assert [c for answer in answers for c in answer.text if c.isalnum()] == [c for c in text if c.isalnum()]
    if "tool_call>" not in text:
        boxes = [answer for answer in answers if isinstance(answer, (BoxAnswer, Unparsed))]
        assert len(boxes) >= len(find_boxes(text, dialect))


@given(name=st.text(), arguments=st.dictionaries(st.text(), JSON, max_size=3))
def test_tool_calls_come_back(name, arguments):
    parts = [{"type": "tool_call", "name": name, "arguments": arguments}]
    assert parse(write(parts, None, "norm1000"), None, "norm1000") == [ToolCallAnswer(name, arguments)]


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "empty"),
        (" \n", "empty"),
        ("<tool_call>", "does not end"),
        ('<tool_call>{"name": "detect_hands"', "does not end"),
        ("<tool_call>{}</tool_call>", "name"),
        ("<tool_call>[1]</tool_call>", "object"),
        ("<tool_call>{'name': 'a'}</tool_call>", "JSON"),
        ('<tool_call>{"name": "a", "arguments": [1]}</tool_call>', "arguments"),
        ('<tool_call>{"name": "a", "arguments": {"x": NaN}}</tool_call>', "NaN"),
        ('<tool_call>{"name": "\\ud800", "arguments": {}}</tool_call>', "JSON"),
        (f"<tool_call>{'[' * 100_000}</tool_call>", "JSON"),
        (f'<tool_call>{{"name": "a", "arguments": {{"x": {"9" * 5000}}}}}</tool_call>', "JSON"),
        ('{"name": "a"}</tool_call>', "without its beginning"),
        ("[10, 20, 5, 30]", "inverted"),
        ("[10, 20, 1005, 30]", "range"),
        ("[10, 20", "cut off"),
        ("[10, 20, 30]", "3 numbers"),
        ("<hand_traj>", "points for 0"),
        ("<t100>", "beyond"),
    ],
)
def test_what_cannot_be_read_says_why(text, reason):
    (answer,) = parse(text, VIEWS[0], "norm1000")
    assert isinstance(answer, Unparsed) and reason in answer.reason and answer.text == text


def test_lists_sentences_and_the_rest():
    view = View.identity((1000, 1000))
    left, right = Box((1.0, 2.0, 3.0, 4.0), "left hand"), Box((5.0, 6.0, 7.0, 8.0), "right hand")

    def bare(one):
        return BoxAnswer(Box(one.bbox_xyxy))

    def read(text, dialect="norm1000"):
        return parse(text, view, dialect)

    assert read("left hand [1, 2, 3, 4], right hand [5, 6, 7, 8]") == [BoxAnswer(left), BoxAnswer(right)]
    assert read("left hand [1, 2, 3, 4] and right hand [5, 6, 7, 8].") == [BoxAnswer(left), BoxAnswer(right)]
    assert read("[1, 2, 3, 4], [5, 6, 7, 8]") == [bare(left), bare(right)]
    assert read("I see it: [1, 2, 3, 4], it is red.") == [TextAnswer("I see it:"), bare(left), TextAnswer(", it is red.")]
    assert [read(text) for text in ("none", " None.", "NONE\n")] == [[NoneAnswer()]] * 3
    assert read("none of them") == [TextAnswer("none of them")]
    assert read("left hand [1, 2, 3, 4], right hand [5, 6") == [BoxAnswer(left), Unparsed("right hand [5, 6", read("[5, 6")[0].reason)]
    hundred = {k: Box(tuple(v * 10 for v in one.bbox_xyxy), one.label) for k, one in (("l", left), ("r", right))}
    assert read("<p>left hand</p> {<1><2><3><4>} <p>right hand</p> {<5><6><7><8>}", "minigpt") == [BoxAnswer(b) for b in hundred.values()]
    both = read("the <p>left hand</p> {<1><2><3><4>}<delim>{<5><6><7><8>} is there", "minigpt")
    assert both == [TextAnswer("the"), BoxAnswer(hundred["l"]), BoxAnswer(Box(hundred["r"].bbox_xyxy, "left hand")), TextAnswer("is there")]


@given(words=st.lists(st.sampled_from("ab cd? No! 3 é".split()), min_size=1).map(" ".join))
def test_words_come_back(words):
    parts = [{"type": "text", "text": words}]
    for dialect in NAMES:
        assert parse(write(parts, None, dialect), None, dialect) == [TextAnswer(words)]
        mixed = [{"type": "text", "text": words + ":"}, box((0, 0, 64, 48)), {"type": "text", "text": words}, parts[0]]
        first, place, *rest = parse(write(mixed, VIEWS[0], dialect), VIEWS[0], dialect)
        assert (first, place, rest) == (TextAnswer(words + ":"), BoxAnswer(Box((0, 0, 64, 48))), [TextAnswer(f"{words} {words}")])


def test_what_was_read_as_text_passes_through_where_it_means_the_same():
    part = box((64, 48, 320, 240)) | {"verbatim": "{<10><10><49><50>}", "dialect": "minigpt"}
    assert write([part], squash(SIZE, 448), "minigpt") == "{<10><10><49><50>}"
    assert write([part], None, "minigpt") == "{<10><10><49><50>}"
    assert write([part], squash(SIZE, 448), "norm1000") == "[100, 100, 500, 500]"
    assert write([part], letterbox(SIZE, 448), "minigpt") == "{<10><20><50><50>}"
    assert write([part], center_crop(SIZE, 448), "minigpt") == "{<0><10><50><50>}"


ONE, OTHER = "{<10><10><49><50>}", "<p>a cup</p> {<5><6><70><80>}"
BETWEEN = st.sampled_from(["", " ", "<delim>", ", ", "\n", " and ", ": ", "; right:", "(", " ."])


@given(between=st.lists(BETWEEN, min_size=3, max_size=3))
def test_published_answers_are_written_as_they_were_read(between):
    answer = f"both{between[0]}{ONE}{between[1]}{OTHER}{between[2]}".strip()
    parts = answer_parts(answer, SIZE)
    assert write(parts, squash(SIZE, 448), "minigpt") == answer
    bare = [{key: value for key, value in part.items() if key != "gap"} for part in parts]
    for view, dialect in ((squash(SIZE, 448), "norm1000"), (letterbox(SIZE, 448), "minigpt")):  # where the text means something else
        assert write(parts, view, dialect) == write(bare, view, dialect)


def test_writing_refuses_what_it_cannot_write():
    with pytest.raises(ValueError, match="View"):
        write([box((1, 2, 3, 4))], None, "norm1000")
    with pytest.raises(ValueError, match="'image'"):
        write([{"type": "image"}], None, "norm1000")
    for function in (lambda: write([], None, "qwen"), lambda: parse("", None, "qwen")):
        with pytest.raises(ValueError, match="unknown dialect 'qwen'"):
            function()
    (answer,) = parse("[1, 2, 3, 4]", None, "norm1000")
    assert isinstance(answer, Unparsed) and "no picture" in answer.reason


def test_trajectories_and_moments():
    view, points = squash((456, 256), 224), np.arange(16, dtype=float).reshape(2, 4, 2) / 20
    parts = [{"type": "text", "text": "It goes:"}, {"type": "trajectory", "points": points}]
    text = write([*parts, {"type": "time", "seconds": 3.0, "duration": 9.9}], view, "norm1000")
    assert text == "It goes: " + "<hand_traj>" * 4 + " <t30>"
    words, trajectory, moment = parse(text, view, "norm1000", points)
    assert isinstance(trajectory, TrajectoryAnswer)
    np.testing.assert_allclose(trajectory.points, points * (456, 256))
    assert (words, moment) == (TextAnswer("It goes:"), TimeAnswer(30 / 99))
    first, second, third = parse("<hand_traj> <hand_traj><hand_traj> <hand_traj><hand_traj>", view, "norm1000", points)
    np.testing.assert_allclose(np.concatenate([first.points, second.points], 1), points[:, :3] * (456, 256))
    assert isinstance(third, Unparsed) and "points for 1" in third.reason


@pytest.mark.parametrize("dialect", NAMES)
def test_ten_thousand_boxes_take_no_longer_each_than_a_hundred(dialect):
    one = write([box((10, 20, 300, 400), "left hand")], VIEWS[1], dialect) + ", "

    def seconds(count: int, text: str) -> float:
        gc.disable()  # a full collection in a process with torch takes longer than what is measured
        start = time.process_time()
        parse(text * count, VIEWS[1], dialect)
        seconds = time.process_time() - start
        gc.enable()
        return seconds

    for text in (one, "<p>x</p>", "<tool_call>", "left hand ", "<delim>", "[1, 2", " ", "<t5>", "{"):
        few = min(seconds(500, text) for _ in range(3))
        assert seconds(10_000, text) < 5 * 20 * max(few, 0.002)
