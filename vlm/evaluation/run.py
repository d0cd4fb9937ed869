"""The whole referral evaluation: every question under every condition, beside the baselines, into one table and one folder.

A folder `out` holds `settings.json`, `predictions/<condition>.jsonl` (append-only, resumable), `table.md` and `summary.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.files import write_text
from vlm.evaluation import baselines, records, tables
from vlm.evaluation.referral import CONDITIONS, ROWS, Condition, Question, conversation, image_of, picture_sizes, shuffled
from vlm.evaluation.scoring import Reply

Ask = Callable[[Sequence[list[dict[str, Any]]]], Sequence[Reply]]
Tokens = Callable[[Any], np.ndarray]
Replies = Mapping[str, Reply]


def ask_all(
    questions: Sequence[Question],
    condition: Condition,
    ask: Ask,
    tokens: Tokens | None,
    *,
    out: Path,
    batch_size: int = 32,
    seed: int = 0,
) -> dict[str, Reply]:
    """The model's replies to all questions under one condition, by question id; goes on where an earlier run was cut."""
    partners = shuffled(questions, seed) if condition.pose == "shuffled" or not condition.own_question else {}

    def answer(batch: Sequence[Question]) -> list[dict[str, Any]]:
        turns = [conversation(q, condition, tokens=tokens, partner=partners.get(q.id, q)) for q in batch]
        return [{"kind": q.kind, **reply.as_record()} for q, reply in zip(batch, ask(turns), strict=True)]

    done = records.complete(
        predictions_path(out, condition.name), questions, answer, key=lambda q: q.id, batch_size=batch_size, title=condition.name
    )
    return {name: Reply.from_record(record) for name, record in done.items()}


def predictions_path(out: Path, condition: str) -> Path:
    """Where an evaluation's folder keeps the predictions of a condition."""
    return out / "predictions" / f"{condition.replace(' ', '_')}.jsonl"


def baseline_replies(questions: Sequence[Question], tokens: Tokens | None, prior: baselines.Prior | None) -> dict[str, Replies]:
    """Replies of every baseline that needs no model, by the baseline's name."""
    found: dict[str, Replies] = {}
    sizes = picture_sizes(questions)
    if tokens is not None:
        found["detector alone"] = baselines.answer_all(questions, lambda q: baselines.detector_alone(tokens(image_of(q)), q.kind))
    if prior is not None:
        found["train average"] = baselines.answer_all(questions, lambda q: prior(sizes[q.id], q.kind))
    found["centre box"] = baselines.answer_all(questions, lambda q: baselines.centre_box(sizes[q.id], q.kind))
    return found


def table_lines(
    questions: Sequence[Question], replies: Mapping[str, Replies], by: Callable[[Question], str] = lambda q: q.row
) -> list[tables.Line]:
    """One line per group of questions (in order of ROWS and their kinds) and per condition that answered the whole group."""
    order = [name for row, kinds in ROWS.items() for name in (row, *kinds)]
    groups = sorted({by(q) for q in questions}, key=order.index)
    lines = []
    for group in groups:
        members = [q for q in questions if by(q) == group]
        for condition, answers in replies.items():
            if all(q.id in answers for q in members):
                scores = [q.score(answers[q.id]) for q in members]
                lines.append(tables.summarise(group, condition, scores, [q.cluster for q in members]))
    return lines


AIMS: tuple[tuple[str, str, str, str, float | None, float | None], ...] = (
    ("hand, box @0.5", "hand", "hit", "≥", 0.85, 0.75),
    ("hand, wrong side", "hand", "wrong_side", "≤", 0.03, 0.03),
    ("held object, box @0.5", "held object", "hit", "≥", 0.60, None),
    ("named object, box @0.5", "named object", "hit", "≥", 0.50, None),
    ("none F1, hand", "hand", "none_f1", "≥", 0.90, None),
    ("none F1, held object", "held object", "none_f1", "≥", 0.90, None),
    ("none F1, named object", "named object", "none_f1", "≥", 0.90, None),
)
"""Name, row, measure, direction, aim as shipped, aim with pixels only (None: no aim, the number is reported)."""


def aims_table(lines: Iterable[tables.Line]) -> str:
    """What was aimed at beside what was reached; a missed aim says so."""
    by_place = {(line.row, line.condition): line for line in lines}

    def cell(row: str, condition: str, measure: str, sign: str, aim: float | None) -> str:
        line = by_place.get((row, condition))
        if line is None:
            return "–"
        value = getattr(line, measure)
        if aim is None or value.value is None:
            return f"{value}"
        met = value.value >= aim if sign == "≥" else value.value <= aim
        return f"{value} (aim {sign} {aim:.2f}: {'met' if met else 'missed'})"

    rows = [
        [name, cell(row, "as shipped", measure, sign, shipped), cell(row, "pixels only", measure, sign, pixels)]
        for name, row, measure, sign, shipped, pixels in AIMS
    ]
    return tables.markdown_table(["measure", "as shipped", "pixels only"], rows)


def report(questions: Sequence[Question], replies: Mapping[str, Replies], out: Path, about: Sequence[str]) -> str:
    """Scores all replies, writes `table.md` and `summary.json` into `out` and returns the markdown."""
    lines = table_lines(questions, replies)
    model_names = {condition.name for condition in CONDITIONS}
    kinds = table_lines(questions, {name: replies[name] for name in replies if name in model_names}, by=lambda q: q.kind)
    text = "\n".join(
        [
            *about,
            "",
            aims_table(lines),
            "All questions and baselines:",
            "",
            tables.referral_table(lines),
            "By kind of question:",
            "",
            tables.referral_table([line for line in kinds if line.condition in ("as shipped", "pixels only")]),
            '`box @0.5`: of the questions with a box as truth, IoU ≥ 0.5 (both hands: every box, with its label); "none" there is a miss. '
            '`all right`: of all questions, "none" included. `wrong side`: IoU ≥ 0.5 with the other hand and < 0.5 with the asked one, of '
            "the questions about one hand where both are seen. What cannot be parsed is wrong. "
            "Brackets: 95 % interval over pictures (or videos). `train average`: the mean box of the kind in training scenes, or its most "
            "frequent words. A row short of questions with the answer \"none\" is filled up with others.",
        ]
    )
    write_text(out / "table.md", text + "\n")
    write_text(out / "summary.json", json.dumps([asdict(line) for line in lines + kinds], indent=1) + "\n")
    return text
