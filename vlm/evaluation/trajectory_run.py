"""The whole trajectory evaluation: every question under every condition, beside the baselines, into one table and one folder.

A folder `out` holds `settings.json`, `predictions/<condition>.jsonl` (append-only, resumable, with all points, so that they can be scored
again without the model), the networks of the baselines, `table.md` and `summary.json`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from pose_tools.files import write_text
from vlm.evaluation import records, trajectory_baselines, trajectory_tables
from vlm.evaluation.referral import Condition
from vlm.evaluation.run import predictions_path
from vlm.evaluation.trajectory import ClipQuestion, conversation, other_goals
from vlm.evaluation.trajectory_baselines import FORECASTS, MeanPath
from vlm.evaluation.trajectory_mlp import MLPSettings, goal_point, train_mlp
from vlm.evaluation.trajectory_scoring import PathReply

Ask = Callable[[Sequence[list[dict[str, Any]]], Sequence[str]], Sequence[PathReply]]
"""Conversations and the ids of their questions → replies."""
Tokens = Callable[[ClipQuestion], np.ndarray]
Replies = Mapping[str, PathReply]


def ask_all(
    questions: Sequence[ClipQuestion],
    condition: Condition,
    ask: Ask,
    tokens: Tokens | None,
    *,
    out: Path,
    batch_size: int = 32,
    seed: int = 0,
    share: tuple[int, int] = (0, 1),
) -> dict[str, PathReply]:
    """The model's replies under one condition, by question id; goes on where an earlier run was cut.

    Where the goal is swapped, only questions that share their start with another one are asked. `share` (k, n): what process k of n asks
    (see `records.share_of`).
    """
    partners = other_goals(questions, seed) if not condition.own_question else {q.id: q for q in questions}
    asked = records.share_of([q for q in questions if q.id in partners], batch_size, *share)

    def answer(batch: Sequence[ClipQuestion]) -> list[dict[str, Any]]:
        turns = [conversation(q, condition, tokens=tokens, partner=partners[q.id]) for q in batch]
        return [reply.as_record() for reply in ask(turns, [q.id for q in batch])]

    path = predictions_path(out, condition.name)
    done = records.complete(path, asked, answer, key=lambda q: q.id, batch_size=batch_size, title=condition.name)
    return {name: PathReply.from_record(record) for name, record in done.items()}


def baseline_replies(
    questions: Sequence[ClipQuestion], train: Sequence[ClipQuestion] | None, out: Path, *, steps: int = 4000
) -> dict[str, Replies]:
    """Replies of every baseline that needs no model, by its name; those that learn only with `train` (in `steps` steps).

    Of one moment nothing can be carried on: there all forecasts are "last position", and stand in one row.
    """
    moments = max(question.past.shape[1] for question in questions)
    found = {name: trajectory_baselines.answer_all(questions, FORECASTS[name]) for name in list(FORECASTS)[: None if moments > 1 else 1]}
    if not train:
        return found
    found["train mean path"] = trajectory_baselines.answer_all(questions, MeanPath(train))
    for name, goal in (("past only", False), ("past + goal point", True)):
        if goal and not any(np.isfinite(goal_point(q)).all() for q in train):
            continue
        network = train_mlp(train, MLPSettings(goal=goal, steps=steps), out)
        found[name] = {q.id: PathReply(network.answer(q, goal)) for q in questions}
    return found


def report(
    questions: Sequence[ClipQuestion], replies: Mapping[str, Replies], out: Path, about: Sequence[str], *, compat: bool = False
) -> str:
    """Scores all replies, writes `table.md` and `summary.json` into `out` and returns the markdown.

    `compat` adds what HandsOnVLM's evaluation would have printed.
    """
    scores = trajectory_tables.Scores(questions, replies, trajectory_baselines.penalties(questions))
    lines = scores.lines()
    text = "\n".join([*about, "", *trajectory_tables.sections(scores, lines, compat=compat)])
    write_text(out / "table.md", text + "\n")
    summary: dict[str, Any] = {"rows": [asdict(line) for line in lines], "aims": [asdict(aim) for aim in trajectory_tables.aims(scores)]}
    if compat:
        summary["as published"] = trajectory_tables.published(scores)
    write_text(out / "summary.json", json.dumps(summary, indent=1) + "\n")
    return text
