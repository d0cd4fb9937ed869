"""Tool use: is the right tool called with exactly the right arguments when one is needed, and none when none is needed?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.groups import open_groups
from data.sample import Sample
from vlm.answers import Answer, ToolCallAnswer, parse
from vlm.evaluation import records, tables
from vlm.evaluation.referral import drawn_order, split_of
from vlm.evaluation.run import predictions_path
from vlm.evaluation.scoring import Reply, Score, score
from vlm.training_data import with_pose

Ask = Callable[[Sequence[list[dict[str, Any]]]], Sequence[Reply]]
Tokens = Callable[[Any], np.ndarray]
AIM = 0.95


@dataclass(frozen=True)
class ToolQuestion:
    """A conversation up to the model's first turn, and the call it should make there, or None."""

    sample: Sample
    call: dict[str, Any] | None

    @property
    def id(self) -> str:
        return self.sample.id

    @property
    def cluster(self) -> str:
        return self.sample.source.video_id or self.id

    @property
    def messages(self) -> list[dict[str, Any]]:
        first = next(i for i, message in enumerate(self.sample.messages) if message["role"] == "assistant")
        return self.sample.messages[:first]

    def score(self, reply: Reply) -> Score:
        """The final answer of a dialogue with a call, scored as the referral question it is."""
        kind = {"tool_left": "hand_left", "tool_right": "hand_right", "tool_both": "hands"}[self.sample.targets["kind"]]
        return score(reply, self.sample.targets | {"kind": kind})


def read_tool_questions(folder: Path, seed: int = 0, limit: int | None = None) -> list[ToolQuestion]:
    """Every tool dialogue about a folder of synthetic scenes, in the wording of the folder's own split (held out for val and test)."""
    groups = open_groups("tool_dialogues", folder, seed=seed, split=split_of(folder), limit=limit)
    return [tool_question(sample) for index in range(len(groups)) for sample in groups.read(index, 0)]


def tool_question(sample: Sample) -> ToolQuestion:
    """A dialogue's question; the expected call is the tool_call part of its first assistant turn."""
    answer = next(message for message in sample.messages if message["role"] == "assistant")
    calls = [{"name": part["name"], "arguments": part["arguments"]} for part in answer["content"] if part["type"] == "tool_call"]
    return ToolQuestion(sample, calls[0] if calls else None)


def select(questions: Sequence[ToolQuestion], per_row: int, seed: int = 0) -> list[ToolQuestion]:
    """At most `per_row` questions that need a call and as many that need none, drawn by the seed."""
    ordered = drawn_order(questions, seed)
    return [q for needed in (True, False) for q in [q for q in ordered if (q.call is not None) == needed][:per_row]]


def judge(answers: Sequence[Answer], expected: dict[str, Any] | None) -> dict[str, bool]:
    """`called`: a tool was asked for; `right`: just the expected call, argument by argument, or no call where none is expected."""
    calls = [answer for answer in answers if isinstance(answer, ToolCallAnswer)]
    if expected is None:
        return {"called": bool(calls), "right": not calls}
    exact = len(calls) == len(answers) == 1 and calls[0].name == expected["name"] and _same(calls[0].arguments, expected["arguments"])
    return {"called": bool(calls), "right": exact}


def _same(a: Any, b: Any) -> bool:
    return json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)  # 1 and true differ, unlike in Python


def evaluate(
    questions: Sequence[ToolQuestion], ask: Ask, dialect: str, *, out: Path, tokens: Tokens | None = None, batch_size: int = 32
) -> str:
    """Asks every question, and again with the tool's result where the call was right; returns the table as markdown.

    With `tokens` (the detections of a picture, by its path) the model is asked twice: as shipped, with them, and without. Resumable:
    `out/predictions/calls_<condition>.jsonl` and `answers_<condition>.jsonl`.
    """
    conditions = ([("as shipped", tokens)] if tokens is not None else []) + [("pixels only", None)]
    rows = [row for name, shown in conditions for row in _rows(questions, ask, dialect, out, name, shown, batch_size)]
    note = (
        "`right`: name and arguments exactly those that the question fixes; no call; or, after the call, every box with IoU ≥ 0.5 of the "
        "truth (a wrong call is a wrong answer, and so is what the detector missed)."
    )
    return tables.markdown_table(["question", "answered by", "n", "tool called", "right", "aim"], rows) + "\n" + note


def _rows(
    questions: Sequence[ToolQuestion], ask: Ask, dialect: str, out: Path, condition: str, tokens: Tokens | None, batch_size: int
) -> list[list[Any]]:
    def shown(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
        picture = next(part["image"] for part in messages[0]["content"] if part["type"] == "image")
        return messages if tokens is None else with_pose(messages, "detection", tokens(picture))

    def replies(asked: Sequence[ToolQuestion], turns: list[list[dict[str, Any]]], stage: str) -> dict[str, dict[str, Any]]:
        path = predictions_path(out, f"{stage} {condition}")
        return _replies(asked, ask, [shown(turn) for turn in turns], path, batch_size, f"{stage}, {condition}")

    called = replies(questions, [q.messages for q in questions], "calls")
    judged = {q.id: judge(parse(called[q.id]["output"], None, dialect), q.call) for q in questions}
    needed = [q for q in questions if q.call is not None]
    right = [q for q in needed if judged[q.id]["right"]]
    answered = replies(right, [q.sample.messages[:-1] for q in right], "answers")
    rows: list[list[Any]] = []
    for title, members in (("a call is needed", needed), ("no call is needed", [q for q in questions if q.call is None])):
        clusters = [q.cluster for q in members]
        exact = tables.share([judged[q.id]["right"] for q in members], clusters)
        made = tables.share([judged[q.id]["called"] for q in members], clusters, interval=False)
        met = "–" if exact.value is None else "met" if exact.value >= AIM else "missed"
        rows.append([title, condition, len(members), made, exact, f"≥ {AIM:.2f}: {met}"])
    scores = [q.score(Reply.from_record(answered[q.id]) if q.id in answered else Reply(valid=False)) for q in needed]
    after = tables.share([s.right for s in scores], [q.cluster for q in needed])
    return [*rows, ["the answer after the call", condition, len(needed), "", after, ""]]


def _replies(
    questions: Sequence[ToolQuestion], ask: Ask, turns: Sequence[list[dict[str, Any]]], path: Path, batch_size: int, title: str
) -> dict[str, dict[str, Any]]:
    def answer(batch: Sequence[tuple[ToolQuestion, list[dict[str, Any]]]]) -> list[dict[str, Any]]:
        return [{"expected": q.call, **reply.as_record()} for (q, _), reply in zip(batch, ask([turn for _, turn in batch]), strict=True)]

    return records.complete(path, list(zip(questions, turns)), answer, key=lambda pair: pair[0].id, batch_size=batch_size, title=title)
