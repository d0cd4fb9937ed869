"""`make run`: questions about shipped test pictures and clips, one through a tool call; prints and draws answer and truth."""

from __future__ import annotations

import argparse
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pose_tools.image_io import write_image
from pose_tools.metrics import box_iou, trajectory_errors
from pose_tools.render import contact_sheet
from pose_tools.render_path import CLIP_FPS, FramePaths
from pose_tools.types import Box
from pose_tools.video import write_video
from vlm.agent import Turn
from vlm.answers import BoxAnswer, NoneAnswer, TrajectoryAnswer
from vlm.commands.console import ASSETS, DEFAULT_MODEL
from vlm.commands.loading import load_model
from vlm.examples import Example, read_examples
from vlm.medium_question import ask
from vlm.show import call_text, describe, drawn, drawn_clip

NEXT = """\
Next:
  your own photograph     {python} scripts/answer.py --image photo.jpg --ask "Where is my left hand?" --draw answer.jpg
                          (first, once: {python} scripts/doctor.py --fetch-hand-models)
  a page to ask on        make demo
  what is there           make doctor
  how good it is          make evaluate, and the card {card}
  train one of your own   README.md, "Train"\
"""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="run_demo_questions", description=__doc__)
    result.add_argument("--model", type=Path, default=DEFAULT_MODEL)
    result.add_argument("--pictures", type=Path, default=ASSETS / "pictures", help="a folder with questions.json and its pictures")
    result.add_argument("--out", type=Path, default=Path("outputs/run"), help="where the pictures of the answers go")
    return result


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    examples = read_examples(options.pictures)
    model, processor = load_model(options.model)
    pictures, captions = [], []
    for example in examples:
        medium = example.open()
        start = time.perf_counter()
        turn = ask(model, processor, medium, example.ask, offer=None if example.tool else ())
        seconds = time.perf_counter() - start
        error = error_text(turn, example.boxes) if example.paths is None else path_error_text(turn, example.paths)
        answer = "; ".join(describe(answer, medium) for answer in turn.answers)
        print(f"{example.ask}    ({example.name}, {seconds:.1f} s)")
        for step in turn.trace:
            if step.call is not None:
                print(f"  tool    {call_text(step.call)} → {step.text}")
        print(f"  answer  {answer}\n  truth   {truth_text(example)}\n  error   {error}\n")
        pictures.append(drawn(medium, turn.answers, example.boxes, true_paths=example.paths))
        captions.append(f"{example.ask}\n{error}")
        write_image(options.out / f"{example.name}.png", pictures[-1])
        if medium.is_clip:
            write_video(options.out / f"{example.name}.mp4", drawn_clip(medium, turn.answers), CLIP_FPS)
    write_image(options.out / "overview.png", contact_sheet(pictures, captions, columns=2, cell=480))
    print(f"Pictures of the answers (coloured) beside the truth (white, dashed): {options.out / 'overview.png'}\n")
    print(NEXT.format(python=".venv/bin/python", card=from_here(options.model / "README.md")))
    return 0


def from_here(path: Path) -> Path:
    """The path as short as it can be typed in the present folder."""
    path, here = path.absolute(), Path.cwd()
    return path.relative_to(here) if path.is_relative_to(here) else path


def truth_text(example: Example) -> str:
    if example.paths is not None:
        return describe(TrajectoryAnswer(example.paths.points, presence=np.asarray(example.paths.valid, float)))
    return "; ".join(describe(BoxAnswer(box)) for box in example.boxes) or "there is none"


def path_error_text(turn: Turn, truth: FramePaths) -> str:
    """How far the answered path is from the true one, over the valid steps of both hands: mean and last distance in pixels."""
    said = next((answer for answer in turn.answers if isinstance(answer, TrajectoryAnswer)), None)
    if said is None or said.points.shape != truth.points.shape:
        return "wrong: it gives no path"
    assert truth.valid is not None
    found = trajectory_errors(said.points[None, None], truth.points[None], truth.valid[None])
    return f"path: {float(found['ade']):.0f} pixels off on average (ADE), {float(found['fde']):.0f} at its end (FDE)"


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
