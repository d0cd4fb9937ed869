"""`answer --image PHOTO --ask "where is my left hand?"`: questions about one picture or clip of yours; several, and those of `--chat`, are
asked with the answers before them."""

from __future__ import annotations

import argparse
import json
import mimetypes
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from pose_tools.files import write_text
from pose_tools.image_io import check_suffix, write_image
from pose_tools.render_path import CLIP_FPS
from vlm.agent import Turn
from vlm.commands.console import DEFAULT_MODEL, CommandError
from vlm.commands.loading import add_load_in, load_model
from vlm.medium import OBSERVED, Medium, frames_of_whole, open_clip, open_picture
from vlm.medium_question import MOST_FUTURES, ask
from vlm.show import as_json, describe, drawn, drawn_clip

CLIP_SUFFIXES = (".mp4",)


def parser() -> argparse.ArgumentParser:
    result = argparse.ArgumentParser(prog="answer", description=__doc__)
    medium = result.add_mutually_exclusive_group(required=True)
    medium.add_argument("--image", type=Path, help="a photograph: JPEG, PNG, WebP …")
    medium.add_argument("--video", type=Path, help="a clip: MP4, MOV, MKV, WebM …; its last 2.5 seconds are looked at")
    words = "look at frames of the whole video, not at its end: for questions about when something happens. LITA's models always do"
    result.add_argument("--whole", action="store_true", help=words)
    words = "the question, such as 'what am I holding in my right hand?'; again for one that follows, with the answers so far in mind"
    result.add_argument("--ask", action="append", default=[], help=words)
    result.add_argument("--chat", action="store_true", help="read further questions from the terminal, until an empty line")
    result.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="a model folder (default: the shipped small model)")
    result.add_argument("--tools", choices=("on", "off"), default="on", help="off: the pixels alone, no hand detector (default on)")
    result.add_argument("--futures", type=int, default=1, help=f"so many futures of a path, 1 to {MOST_FUTURES}; the first is the answer")
    result.add_argument("--seed", type=int, default=0, help="draws the futures; the same seed draws the same (default 0)")
    result.add_argument("--json", type=Path, help="write the answer there; places in pixels of your picture, or of the clip's last frame")
    result.add_argument(
        "--draw", type=Path, help="write the picture or the last frame with the answer drawn on it; as .mp4 the clip with its path"
    )
    add_load_in(result)
    result.add_argument("--device", default="cpu", help="cpu (default), cuda, cuda:1 …")
    return result


def main(arguments: Sequence[str]) -> int:
    options = parser().parse_args(arguments)
    if not options.ask and not options.chat:
        raise CommandError("nothing is asked: give --ask 'where is my left hand?', or --chat")
    if not 1 <= options.futures <= MOST_FUTURES:
        raise CommandError(f"--futures is {options.futures}, expected 1 to {MOST_FUTURES}")
    if options.whole and not options.video:
        raise CommandError("--whole is about a clip: give --video")
    _check_kind(options)
    _check_drawing(options)
    medium = open_clip(options.video) if options.video else open_picture(options.image)
    model, processor = load_model(options.model, device=options.device, load_in=options.load_in)
    whole = frames_of_whole(model.config) or (OBSERVED if options.whole else None)
    if options.video and whole:
        medium = open_clip(options.video, whole=whole)
    medium = replace(medium, look=options.tools == "on")
    torch.manual_seed(options.seed % 2**63)
    if options.chat or len(options.ask) > 1:
        from vlm.commands.chat import converse

        return converse(options, model, processor, medium)
    turn = ask(model, processor, medium, options.ask[0], tools=options.tools == "on", futures=options.futures)
    print("\n".join([*(f"note: {note}" for note in medium.notes), *(describe(answer, medium) for answer in turn.answers)]))
    if options.json:
        record = about(medium, options) | said(medium, options.ask[0], turn)
        write_text(options.json, json.dumps(record, indent=1, ensure_ascii=False) + "\n")
    if options.draw:
        draw(options.draw, medium, turn)
    return 0


def _check_kind(options: argparse.Namespace) -> None:
    """CommandError for a clip given as --image, or a picture as --video, by the file's name."""
    path = options.video or options.image
    kind = (mimetypes.guess_type(path.name)[0] or "").split("/")[0]
    given, meant = ("--video", "--image") if options.video else ("--image", "--video")
    if kind == meant[2:] and path.suffix.lower() != ".gif":  # which may be either
        raise CommandError(f"{given} {path}: {'a picture' if kind == 'image' else 'a clip'} by its name; give it as {meant}")


def _check_drawing(options: argparse.Namespace) -> None:
    """CommandError or ImageError, before anything is asked, for a --draw whose name is not one of a picture, or of a clip."""
    if options.draw is None:
        return
    if options.draw.suffix.lower() not in CLIP_SUFFIXES:
        check_suffix(options.draw)
    elif options.video is None:
        raise CommandError(f"--draw {options.draw}: a picture's answer is drawn as a picture; name a .jpg or .png")


def draw(path: Path, medium: Medium, turn: Turn) -> None:
    """The answers on the picture or the last frame; as .mp4 the clip with its path."""
    if path.suffix.lower() in CLIP_SUFFIXES:
        from pose_tools.video import write_video

        write_video(path, drawn_clip(medium, turn.answers), CLIP_FPS)
    else:
        write_image(path, drawn(medium, turn.answers))


def about(medium: Medium, options: argparse.Namespace) -> dict[str, Any]:
    """What --json says about the picture or clip."""
    return {
        "video" if options.video else "image": str(options.video or options.image),
        "size": list(medium.size),
        **({"times": list(medium.times), "notes": list(medium.notes)} if medium.times is not None else {}),
    }


def said(medium: Medium, question: str, turn: Turn) -> dict[str, Any]:
    """What --json says about one question."""
    return {
        "question": question,
        "text": turn.text,
        "answers": [as_json(answer, medium) for answer in turn.answers],
        "trace": [{"kind": step.kind, "text": step.text, "seconds": round(step.seconds, 3)} for step in turn.trace],
    }
