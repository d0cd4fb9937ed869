"""`answer --chat`, or several `--ask`: a conversation about one picture or clip, each question with the answers before it, paths too."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from data.sample import SampleError
from pose_tools.files import write_text
from vlm.agent import Turn
from vlm.answers import TextAnswer
from vlm.commands.answer import about, draw, said
from vlm.medium import Medium
from vlm.page.conversation import Session, Settings, reply
from vlm.show import describe

PROMPT = "> "
LOST = "note: earlier turns left out: with them the model lost its thread"


def converse(options: argparse.Namespace, model: Any, processor: Any, medium: Medium) -> int:
    """Asks `options.ask` in order, then with `options.chat` what is typed; returns the exit status.

    On a terminal an answer is shown word by word as it is written. --json has all turns, --draw the last answer; both are written anew
    after every turn, so that an interruption loses nothing.
    """
    session = Session(medium)
    settings = Settings(tools=options.tools == "on", futures=options.futures)
    turns: list[dict[str, Any]] = []
    for note in medium.notes:
        print(f"note: {note}")
    for question in _questions(options):
        try:
            turn, session, alone, shown = _answer(model, processor, session, question, settings)
        except SampleError as error:
            if not options.chat:
                raise
            print(f"error: {error}", file=sys.stderr)
            continue
        lines = [LOST] if alone else []
        lines += [describe(answer, medium) for answer in turn.answers if not (shown and isinstance(answer, TextAnswer))]
        if lines:
            print("\n".join(lines), flush=True)
        turns.append(said(medium, question, turn) | ({"earlier_turns_left_out": True} if alone else {}))
        if options.json:
            write_text(options.json, json.dumps(about(medium, options) | {"turns": turns}, indent=1, ensure_ascii=False) + "\n")
        if options.draw:
            draw(options.draw, medium, turn)
    return 0


def _questions(options: argparse.Namespace) -> Iterator[str]:
    for question in options.ask:
        print(f"{PROMPT}{question}")
        yield question
    while options.chat:
        try:
            question = input(PROMPT if sys.stdin.isatty() else "")
        except (EOFError, KeyboardInterrupt):
            print()
            return
        if not question.strip():
            return
        if not sys.stdin.isatty():
            print(f"{PROMPT}{question}")
        yield question


def _answer(model: Any, processor: Any, session: Session, question: str, settings: Settings) -> tuple[Turn, Session, bool, bool]:
    """The turn, the session that goes on from it, whether the earlier turns had to be left out, and whether its words are on the screen."""
    shown, last = "", None
    for last in reply(model, processor, session, question, settings):
        if sys.stdout.isatty() and last.turn is None:
            if not last.text.startswith(shown):  # it is asked again
                print()
                shown = ""
            print(last.text[len(shown) :], end="", flush=True)
            shown = last.text
    if shown:
        print()
    assert last is not None and last.turn is not None and last.session is not None
    return last.turn, last.session, last.alone, bool(shown)
