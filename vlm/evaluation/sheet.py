"""Sheets of pictures with the answer beside the truth: numbers say how often, pictures say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from pose_tools.image_io import read_image, write_image
from pose_tools.render import Canvas, contact_sheet
from pose_tools.types import Box
from vlm.evaluation.referral import ROWS, Question, drawn_order, image_of
from vlm.evaluation.scoring import Reply

TRUTH, RIGHT, WRONG = (255, 255, 255), (60, 220, 90), (255, 70, 60)


def write_sheets(
    questions: Sequence[Question], replies: Mapping[str, Mapping[str, Reply]], out: Path, count: int = 24, seed: int = 0
) -> list[Path]:
    """One sheet per condition, `sheet_<condition>.png` in `out`: `count` questions drawn by the seed, every row in turn.

    White and dashed is the truth, green a right answer, red a wrong one.
    """
    by_row = [drawn_order([q for q in questions if q.row == row], seed) for row in ROWS]
    turns = [row[place] for place in range(max(map(len, by_row), default=0)) for row in by_row if place < len(row)]
    paths = []
    for condition, answers in replies.items():
        shown = [(q, answers[q.id]) for q in turns[:count] if q.id in answers]
        if shown:
            sheet = contact_sheet(
                [picture(q, reply) for q, reply in shown], [caption(q, reply) for q, reply in shown], columns=6, title=condition
            )
            paths.append(out / f"sheet_{condition.replace(' ', '_')}.png")
            write_image(paths[-1], sheet)
    return paths


def picture(question: Question, reply: Reply) -> np.ndarray:
    """A question's picture with the frames of truth and answer, RGB uint8 (H, W, 3)."""
    colour = RIGHT if question.score(reply).right else WRONG
    canvas = Canvas(read_image(image_of(question)), least=384)
    for boxes, ink, dashed in ((question.sample.targets["boxes"], TRUTH, True), (reply.boxes, colour, False)):
        canvas.boxes([Box(tuple(box)) for box in boxes], colours=[ink] * len(boxes), dashed=dashed)
    return canvas.array()


def caption(question: Question, reply: Reply) -> str:
    """Question, truth and answer, a line each."""
    targets = question.sample.targets
    asked = next(part["text"] for part in question.sample.messages[0]["content"] if part["type"] == "text")
    truth = "none" if question.none else targets["text"] or ", ".join(str([round(v) for v in box]) for box in targets["boxes"])
    said = "none" if reply.none else reply.text or ", ".join(str([round(v) for v in box]) for box in reply.boxes)
    verdict = "right" if question.score(reply).right else "WRONG" if reply.valid else "NOT UNDERSTOOD"
    return f"{asked}\ntruth: {truth}\n{verdict}: {said or reply.output}"
