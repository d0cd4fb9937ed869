"""`answer --image PHOTO --ask "where is my left hand?"`: one question about one picture of yours."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from data.sample import user
from pose_tools.detect import detect_hands, detection_tokens
from pose_tools.files import write_text
from pose_tools.image_io import read_image, write_image
from pose_tools.render import Canvas
from pose_tools.tool import TOOLS
from pose_tools.tool_protocol import BackendMissing
from pose_tools.types import Box, Media
from vlm.agent import Agent, Turn
from vlm.answers import Answer, BoxAnswer, NoneAnswer, TextAnswer, Unparsed
from vlm.commands.console import DEFAULT_MODEL
from vlm.commands.loading import load_model
from vlm.training_data import with_pose

ENCODER = "detection"
"""The pose encoder that reads hand detections."""


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="answer", description=__doc__)
    result.add_argument("--image", type=Path, required=True, help="a photograph: JPEG, PNG, WebP …")
    result.add_argument("--ask", required=True, help="the question, such as 'what am I holding in my right hand?'")
    result.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder (default: the shipped small model)")
    result.add_argument("--tools", choices=("on", "off"), default="on", help="off: the pixels alone, no hand detector (default on)")
    result.add_argument("--json", type=Path, help="write the answer there; boxes in pixels of your picture")
    result.add_argument("--draw", type=Path, help="write your picture with the answer drawn on it")
    result.add_argument("--load-in", choices=("8bit", "4bit"), help="the language model in 8 or 4 bits (needs the extra [quant])")
    result.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    return result


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    image = read_image(options.image)
    model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
    turn = ask(model, processor, image, options.ask, tools=options.tools == "on")
    print("\n".join(map(describe, turn.answers)))
    if options.json:
        record = {
            "image": str(options.image),
            "question": options.ask,
            "text": turn.text,
            "answers": [as_json(answer) for answer in turn.answers],
            "trace": [{"kind": step.kind, "text": step.text, "seconds": round(step.seconds, 3)} for step in turn.trace],
        }
        write_text(options.json, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if options.draw:
        write_image(options.draw, drawn(image, turn.answers))
    return 0


def ask(model: Any, processor: Any, image: np.ndarray, question: str, *, tools: bool = True, offer: Sequence[str] | None = None) -> Turn:
    """One question about one picture, RGB uint8 (H, W, 3).

    With `tools` the model sees the detections of the picture as pose tokens (if it has an encoder for them) and may call the tools
    in `offer`, by default all. Without a detector it answers from the pixels, and a line on stderr says so.
    """
    messages = [user({"type": "image", "image": image}, question)]
    if not tools:
        return Agent(model, processor).ask(messages)
    if ENCODER in processor.pose_encoders:
        try:
            messages = with_pose(messages, ENCODER, detection_tokens(detect_hands(image)))
        except BackendMissing as error:
            print(f"warning: answering from the pixels alone: {error}", file=sys.stderr)
    return Agent(model, processor, tuple(TOOLS) if offer is None else offer).ask(messages, Media(images=(image,)))


def describe(answer: Answer) -> str:
    """An answer as one line for people; boxes in whole pixels."""
    if isinstance(answer, BoxAnswer):
        x1, y1, x2, y2 = (round(value) for value in answer.box.bbox_xyxy)
        return f"{answer.box.label or 'box'}: x {x1} to {x2}, y {y1} to {y2}"
    if isinstance(answer, NoneAnswer):
        return "there is none"
    if isinstance(answer, TextAnswer):
        return answer.text
    return f"not understood: {answer.text!r} ({answer.reason})" if isinstance(answer, Unparsed) else str(answer)


def as_json(answer: Answer) -> dict[str, Any]:
    """An answer as json; boxes in pixels of the picture, unrounded."""
    if isinstance(answer, BoxAnswer):
        return {"type": "box", "bbox_xyxy": [float(value) for value in answer.box.bbox_xyxy], "label": answer.box.label}
    if isinstance(answer, NoneAnswer):
        return {"type": "none"}
    if isinstance(answer, TextAnswer):
        return {"type": "text", "text": answer.text}
    if isinstance(answer, Unparsed):
        return {"type": "unparsed", "text": answer.text, "reason": answer.reason}
    return {"type": type(answer).__name__, "value": str(answer)}


def drawn(image: np.ndarray, answers: Sequence[Answer], truth: Sequence[Box] = ()) -> np.ndarray:
    """A copy of a picture, RGB uint8 (H, W, 3), with the answer's boxes in colour and those of the truth dashed in white; a small
    picture is enlarged. An answer without a box is written at the top."""
    canvas = Canvas(image)
    canvas.boxes([Box(box.bbox_xyxy) for box in truth], colours=[(255, 255, 255)] * len(truth), dashed=True)
    canvas.boxes([answer.box for answer in answers if isinstance(answer, BoxAnswer)])
    for answer in answers:
        if not isinstance(answer, BoxAnswer):
            canvas.caption(describe(answer))
    return canvas.array()
