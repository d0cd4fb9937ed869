"""Sheets of pictures with the answer beside the truth: numbers say how often, pictures say why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from pose_tools.image_io import read_image, write_image
from vlm.evaluation.referral import ROWS, Question, drawn_order, image_of
from vlm.evaluation.scoring import Reply

TILE = 256
CAPTION = 58
TRUTH, RIGHT, WRONG = (255, 255, 255), (60, 220, 90), (255, 70, 60)


def write_sheets(
    questions: Sequence[Question], replies: Mapping[str, Mapping[str, Reply]], out: Path, count: int = 24, seed: int = 0
) -> list[Path]:
    """One sheet per condition, `sheet_<condition>.png` in `out`: `count` questions drawn by the seed, every row in turn.

    White is the truth, green a right answer, red a wrong one.
    """
    by_row = [drawn_order([q for q in questions if q.row == row], seed) for row in ROWS]
    turns = [row[place] for place in range(max(map(len, by_row), default=0)) for row in by_row if place < len(row)]
    paths = []
    for condition, answers in replies.items():
        tiles = [tile(q, answers[q.id]) for q in turns[:count] if q.id in answers]
        if tiles:
            paths.append(out / f"sheet_{condition.replace(' ', '_')}.png")
            write_image(paths[-1], grid(tiles))
    return paths


def tile(question: Question, reply: Reply) -> np.ndarray:
    """One question: its picture with the truth and the answer, and a caption; RGB uint8 (TILE + CAPTION, TILE, 3)."""
    picture = Image.fromarray(read_image(image_of(question)))
    scale = TILE / max(picture.size)
    result = Image.new("RGB", (TILE, TILE + CAPTION), (25, 25, 28))
    result.paste(picture.resize((round(picture.width * scale), round(picture.height * scale)), Image.Resampling.LANCZOS))
    colour = RIGHT if question.score(reply).right else WRONG
    outline(result, question.sample.targets["boxes"], TRUTH, scale, 4)
    outline(result, reply.boxes, colour, scale, 2)
    pen = ImageDraw.Draw(result)
    font = ImageFont.load_default(11)
    asked = next(part["text"] for part in question.sample.messages[0]["content"] if part["type"] == "text")
    said = reply.output if reply.output is not None else reply.text or ("none" if reply.none else "boxes")
    for line, (words, ink) in enumerate(((asked, TRUTH), (f"truth: {truth_text(question)}", TRUTH), (said, colour))):
        pen.text((4, TILE + 3 + 18 * line), words[:46], font=font, fill=ink)
    return np.asarray(result)


def outline(
    picture: Image.Image, boxes: Sequence[Sequence[float]], colour: tuple[int, int, int], scale: float = 1.0, width: int = 2
) -> None:
    """Draws the frames of boxes xyxy, `scale` times as large as given, into `picture`."""
    pen = ImageDraw.Draw(picture)
    for box in boxes:
        (left, top), (right, bottom) = np.sort(np.clip(np.asarray(box, float) * scale, -10, 1e5).reshape(2, 2), axis=0)
        pen.rectangle(
            [left, top, right - 1, bottom - 1] if right - left > 1 and bottom - top > 1 else [left, top, right, bottom],
            outline=colour,
            width=width,
        )


def truth_text(question: Question) -> str:
    """The true answer in a few characters: words, none, or the boxes in whole pixels."""
    targets = question.sample.targets
    if question.none:
        return "none"
    return targets["text"] or ", ".join(str([round(value) for value in box]) for box in targets["boxes"])


def grid(tiles: Sequence[np.ndarray], columns: int = 6) -> np.ndarray:
    """Equal tiles (h, w, 3) in rows of `columns`, with a thin gap; empty places stay dark."""
    height, width = tiles[0].shape[:2]
    columns = min(columns, len(tiles))
    rows = -(-len(tiles) // columns)
    sheet = np.full((rows * (height + 4), columns * (width + 4), 3), 60, np.uint8)
    for number, one in enumerate(tiles):
        y, x = number // columns * (height + 4), number % columns * (width + 4)
        sheet[y : y + height, x : x + width] = one
    return sheet
