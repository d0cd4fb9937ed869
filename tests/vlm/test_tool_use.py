"""Tool use is scored on the call as written, argument by argument, and on the answer that follows from its result."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest

from data.sample import Sample, Source, assistant, user
from data.tool_dialogues import OFFER, with_call
from pose_tools.detect import HandDetection
from pose_tools.detect_tool import describe
from pose_tools.views import View
from vlm.answers import parse, write
from vlm.evaluation.asking import reply_of
from vlm.evaluation.scoring import Reply
from vlm.evaluation.tool_use import ToolQuestion, evaluate, judge, select, tool_question

BOX = (20.0, 40.0, 60.0, 90.0)
VIEW = View.identity((100, 100))
CALL = {"name": "detect_hands", "arguments": {"hand": "left"}}


def dialogue(number: int, hand: str = "left") -> ToolQuestion:
    result = describe([HandDetection(BOX, "left", 0.9)], (100, 100), hand=hand)
    messages = with_call([user({"type": "image", "image": f"/nowhere/{number}.jpg"}, "?")], result, hand)
    targets = {"kind": f"tool_{hand}", "boxes": [list(BOX)], "labels": ["left hand"], "text": None, "side": "left"}
    return tool_question(Sample(f"call-{number}", messages, Source("t", f"v{number}"), targets, OFFER))


def direct(number: int) -> ToolQuestion:
    messages = [user({"type": "image", "image": f"/nowhere/{number}.jpg"}, "?"), assistant({"type": "none"})]
    return tool_question(Sample(f"direct-{number}", messages, Source("t", f"v{number}"), {"kind": "object", "boxes": []}, OFFER))


@pytest.mark.parametrize(
    "text, expected, right",
    [
        ('<tool_call>{"name": "detect_hands", "arguments": {"hand": "left"}}</tool_call>', CALL, True),
        ('<tool_call>{"arguments": {"hand": "left"}, "name": "detect_hands"}</tool_call>', CALL, True),
        ('<tool_call>{"name": "detect_hands", "arguments": {"hand": "right"}}</tool_call>', CALL, False),
        ('<tool_call>{"name": "detect_hands", "arguments": {"hand": "left", "image": 0}}</tool_call>', CALL, False),
        ('<tool_call>{"name": "find_hands", "arguments": {"hand": "left"}}</tool_call>', CALL, False),
        ('sure <tool_call>{"name": "detect_hands", "arguments": {"hand": "left"}}</tool_call>', CALL, False),
        ('<tool_call>{"name": "detect_hands", "arguments"', CALL, False),
        ("[1, 2, 3, 4]", CALL, False),
        ("[1, 2, 3, 4]", None, True),
        ("none", None, True),
        ('<tool_call>{"name": "detect_hands", "arguments": {"hand": "left"}}</tool_call>', None, False),
    ],
)
def test_a_call_is_right_only_as_the_question_fixes_it(text: str, expected: dict | None, right: bool) -> None:
    assert judge(parse(text, None, "norm1000"), expected)["right"] is right


def test_an_argument_of_another_type_is_another_argument() -> None:
    call = '<tool_call>{"name": "f", "arguments": {"image": true}}</tool_call>'
    assert not judge(parse(call, None, "norm1000"), {"name": "f", "arguments": {"image": 1}})["right"]


def oracle(questions: Sequence[ToolQuestion]):
    """Answers as the dialogues do, from the part of the conversation it is shown."""
    by_picture = {q.sample.messages[0]["content"][0]["image"]: q for q in questions}

    def ask(turns: Sequence[list[dict]]) -> list[Reply]:
        dialogues = [by_picture[turn[0]["content"][0]["image"]].sample.messages for turn in turns]
        return [reply_of(write(d[len(turn)]["content"], VIEW, "norm1000"), VIEW, "norm1000") for d, turn in zip(dialogues, turns)]

    return ask


def test_the_table_of_a_perfect_model_and_of_one_that_never_calls(tmp_path: Path) -> None:
    questions = [dialogue(n, "left" if n % 2 else "both") for n in range(6)] + [direct(n) for n in range(6, 12)]
    perfect = evaluate(questions, oracle(questions), "norm1000", out=tmp_path / "a", batch_size=4)
    assert perfect.count("1.000 [1.000, 1.000]") == 3 and perfect.count("met") == 2 and ": missed" not in perfect
    never = evaluate(questions, lambda turns: [Reply(none=True, output="none")] * len(turns), "norm1000", out=tmp_path / "b")
    assert never.count("0.000 [0.000, 0.000]") == 2 and never.count("1.000 [1.000, 1.000]") == 1 and ": missed" in never
    assert evaluate(questions, lambda turns: 1 / 0, "norm1000", out=tmp_path / "a") == perfect  # nothing is asked twice


def test_as_many_questions_with_a_call_as_without() -> None:
    questions = [dialogue(n) for n in range(30)] + [direct(n) for n in range(50)]
    chosen = select(questions, 20)
    assert sum(q.call is not None for q in chosen) == sum(q.call is None for q in chosen) == 20
    assert {q.id for q in select(questions[::-1], 20)} == {q.id for q in chosen}
