"""`make run`: four questions about shipped test pictures, one through a tool call; prints and draws answer and truth."""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose_tools.image_io import read_image, write_image
from pose_tools.metrics import box_iou
from pose_tools.render import contact_sheet
from pose_tools.types import Box
from vlm.agent import Turn
from vlm.answers import BoxAnswer, NoneAnswer, ToolCallAnswer
from vlm.commands.answer import ask
from vlm.commands.console import ASSETS, DEFAULT_MODEL, CommandError
from vlm.commands.loading import load_model
from vlm.show import describe, drawn

NEXT = """\
Next:
  your own photograph     {python} scripts/answer.py --image photo.jpg --ask "Where is my left hand?" --draw answer.jpg
                          (first, once: {python} scripts/doctor.py --fetch-hand-models)
  what is there           make doctor
  how good it is          make evaluate, and the card {card}
  train one of your own   README.md, "Train"\
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="demo", description=__doc__)
    result.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    result.add_argument("--pictures", type=Path, default=ASSETS / "pictures", help="a folder with questions.json and its pictures")
    result.add_argument("--out", type=Path, default=Path("outputs/run"), help="where the pictures of the answers go")
    return result


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    list_file = options.pictures / "questions.json"
    if not list_file.is_file():
        raise CommandError(f"{list_file} is missing: the demo's pictures come with the repository; run `make run` in a clone of it")
    model, processor = load_model(options.model)
    pictures, captions = [], []
    for question in json.loads(list_file.read_text(encoding="utf-8")):
        image = read_image(options.pictures / question["image"])
        start = time.perf_counter()
        turn = ask(model, processor, image, question["ask"], offer=None if question["tool"] else ())
        seconds = time.perf_counter() - start
        truth = [Box(tuple(one["bbox_xyxy"]), one["label"]) for one in question["truth"]]
        answer, true = "; ".join(map(describe, turn.answers)), "; ".join(describe(BoxAnswer(box)) for box in truth) or "there is none"
        print(f"{question['ask']}    ({question['image']}, {seconds:.1f} s)")
        for step in turn.trace:
            if step.call is not None:
                print(f"  tool    {step.call.name}({arguments_text(step.call)}) → {step.text}")
        print(f"  answer  {answer}\n  truth   {true}\n  error   {error_text(turn, truth)}\n")
        pictures.append(drawn(image, turn.answers, truth))
        captions.append(f"{question['ask']}\n{error_text(turn, truth)}")
        write_image(options.out / f"{question['name']}.png", pictures[-1])
    write_image(options.out / "overview.png", contact_sheet(pictures, captions, columns=2, cell=480))
    print(f"Pictures of the answers (coloured) beside the truth (white, dashed): {options.out / 'overview.png'}\n")
    print(NEXT.format(python=".venv/bin/python", card=from_here(options.model / "README.md")))
    return 0


def from_here(path: Path) -> Path:
    """The path as short as it can be typed in the present folder."""
    path, here = path.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def arguments_text(call: ToolCallAnswer) -> str:
    return ", ".join(f"{name}={value!r}" for name, value in call.arguments.items())


def error_text(turn: Turn, truth: Sequence[Box]) -> str:
    """How far the answer is from the truth, box by box with the same label: overlap, and distance of the centres in pixels."""
    said = {answer.box.label: answer.box for answer in turn.answers if isinstance(answer, BoxAnswer)}
    if not truth:
        if any(isinstance(answer, NoneAnswer) for answer in turn.answers):
            return "none: there is no such thing, and it says so"
        return "wrong: it names something that is not there" if said else "wrong: it does not say that there is none"
    parts = []
    for box in truth:
        name = box.label or "box"
        if box.label not in said:
            parts.append(f"{name} missed")
            continue
        a, b = (np.asarray(one.bbox_xyxy) for one in (said[box.label], box))
        distance = np.hypot(*((a[:2] + a[2:]) / 2 - (b[:2] + b[2:]) / 2))
        parts.append(f"{name}: overlap (IoU) {float(box_iou(a, b)):.2f}, centre {distance:.0f} pixels off")
    parts += [f"{label or 'box'} is not there" for label in said if label not in {box.label for box in truth}]
    return "; ".join(parts)
