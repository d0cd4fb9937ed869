"""Tool use: is the right tool called with exactly the right arguments when one is needed, and none when none is needed?"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from data.groups import open_groups
from data.sample import Sample
from vlm.answers import Answer, ToolCallAnswer, parse
from vlm.evaluation import records, tables
from vlm.evaluation.referral import drawn_order, split_of

Texts = Callable[[Sequence[list[dict[str, Any]]]], Sequence[str]]


@dataclass(frozen=True)
class ToolQuestion:
    """A conversation up to the model's first turn, and the call it should make there, or None."""

    sample: Sample
    call: dict[str, Any] | None

    @property
    def id(self) -> str:
        return self.sample.id

    @property
    def messages(self) -> list[dict[str, Any]]:
        first = next(i for i, message in enumerate(self.sample.messages) if message["role"] == "assistant")
        return self.sample.messages[:first]


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


def evaluate(questions: Sequence[ToolQuestion], texts: Texts, dialect: str, *, out: Path, batch_size: int = 32) -> str:
    """Asks every question (resumable, in `out/predictions/tools.jsonl`), scores the replies, returns the table as markdown."""

    def answer(batch: Sequence[ToolQuestion]) -> list[dict[str, Any]]:
        return [{"expected": q.call, "output": text} for q, text in zip(batch, texts([q.messages for q in batch]), strict=True)]

    done = records.complete(
        out / "predictions" / "tools.jsonl", questions, answer, key=lambda q: q.id, batch_size=batch_size, title="tool use"
    )
    rows = []
    for title, needed in (("a call is needed: name and arguments exactly right", True), ("no call is needed: none is made", False)):
        members = [q for q in questions if (q.call is not None) == needed]
        judged = [judge(parse(done[q.id]["output"], None, dialect), q.call) for q in members]
        clusters = [q.sample.source.video_id or q.id for q in members]
        right = tables.share([j["right"] for j in judged], clusters)
        called = tables.share([j["called"] for j in judged], clusters, interval=False)
        met = "–" if right.value is None else "met" if right.value >= AIM else "missed"
        rows.append([title, len(members), called, right, f"≥ {AIM:.2f}: {met}"])
    return tables.markdown_table(["question", "n", "tool called", "right", "aim"], rows)


AIM = 0.95
