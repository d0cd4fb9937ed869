"""Sheets of clips with the answer beside the truth: the best, the ordinary and the worst, and one start with all its goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pose_tools.image_io import read_image, write_image
from pose_tools.render import Canvas, contact_sheet
from pose_tools.render_path import FramePaths, draw_paths
from vlm.evaluation.referral import drawn_order
from vlm.evaluation.trajectory import ClipQuestion
from vlm.evaluation.trajectory_baselines import last_position
from vlm.evaluation.trajectory_scoring import PathReply, path_errors

COLUMNS = 6
STILL = 0.025
"""Widths of the frame that a hand may move and still count as resting, in pictures."""


def write_sheets(
    questions: Sequence[ClipQuestion],
    replies: Mapping[str, PathReply],
    penalties: Mapping[str, np.ndarray],
    out: Path,
    *,
    rows: int = 2,
    seed: int = 0,
) -> list[Path]:
    """`sheet_best_to_worst.png`: `rows` rows each of the best, the middle and the worst answers; `sheet_goals.png`: starts that are asked
    about more than once. White and dashed is the truth, the hands' colours the answer with its spread, thin and pale the observed path."""
    asked = [q for q in questions if q.id in replies]
    if not asked:
        return []
    ade = np.nanmean(path_errors(asked, replies, penalties).ade, axis=1)
    order = [int(i) for i in np.argsort(ade, kind="stable") if np.isfinite(ade[i])]
    count = rows * COLUMNS
    chosen = order
    if len(order) > 3 * count:
        middle = (len(order) - count) // 2
        chosen = order[:count] + order[middle : middle + count] + order[-count:]
    paths = []
    for name, title, places in (
        ("best_to_worst", f"best, middle and worst of {len(order)} answers", chosen),
        ("goals", "same start, different goal", _shared_starts(asked, seed, 3 * count)),
    ):
        if places:
            pictures = [picture(asked[i], replies[asked[i].id]) for i in places]
            captions = [caption(asked[i], replies[asked[i].id], ade[i]) for i in places]
            paths.append(out / f"sheet_{name}.png")
            write_image(paths[-1], contact_sheet(pictures, captions, columns=COLUMNS, title=title))
    return paths


def picture(question: ClipQuestion, reply: PathReply) -> np.ndarray:
    """The last observed frame with the observed, true and answered paths, RGB uint8 (H, W, 3)."""
    now = last_position(question)[:, 0]
    seen = np.isfinite(question.past).all(-1).any(-1)
    canvas = Canvas(read_image(question.frames[-1]), least=384)
    canvas.trails(question.past)
    start = np.where(seen[:, None], now, np.nan)
    said = np.full_like(question.future, np.nan) if reply.points is None else reply.points
    moves = np.fmax(_travel(question.future, now), _travel(said, now)) > STILL * question.size[0]
    shown = question.valid & moves[:, None]  # an arrow on a hand that rests would point nowhere
    truth, answer = FramePaths(question.future, shown, start), FramePaths(said, shown, start, reply.spread, reply.futures)
    return draw_paths(canvas, answer, truth=truth, labels=False).array()


def _travel(points: np.ndarray, now: np.ndarray) -> np.ndarray:
    """(2,) how far each hand of a path (2, T, 2) gets from `now` (2, 2); NaN where it has no point."""
    away = np.linalg.norm(points - now[:, None], axis=-1)
    return np.fmax.reduce(away, axis=-1)


def caption(question: ClipQuestion, reply: PathReply, ade: float) -> str:
    """The question, its error and what is wrong with an answer that is none."""
    verdict = f"ADE {ade * question.size[0] / 256:.1f} px" if reply.valid else f"NO ANSWER: {reply.reason}"
    return f"{question.words}\n{verdict}"


def _shared_starts(questions: Sequence[ClipQuestion], seed: int, count: int) -> list[int]:
    """Places of at most `count` questions, start by start, of starts with more than one."""
    by_start: dict[str, list[int]] = {}
    for place, question in enumerate(questions):
        by_start.setdefault(question.start, []).append(place)
    chosen: list[int] = []
    for start in drawn_order(by_start, seed, key=str):
        if 1 < len(by_start[start]) <= count - len(chosen):
            chosen += by_start[start]
    return chosen
