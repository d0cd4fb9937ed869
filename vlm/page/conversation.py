"""What one visitor of the page has open and has said, and how the model goes on from there. No Gradio here."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from data.sample import user
from pose_tools.tool import tools_for
from vlm.agent import Agent, Messages, Turn
from vlm.answers import TRAJECTORY_TOKEN, Unparsed
from vlm.medium import Medium, MediumError
from vlm.medium_question import generation, opening

EARLIER = 4
"""So many earlier turns go with a question at most."""
ROOM = 128
"""Tokens kept free for the answer."""


@dataclass(frozen=True)
class Settings:
    """`tools`: the hand detector or tracker is looked through and may be called; `futures` of a path; `history`: earlier turns go along."""

    tools: bool = True
    futures: int = 1
    history: bool = True


@dataclass(frozen=True, eq=False)
class Session:
    """One visitor's: the open `medium` and, oldest first, the `turns` about it (user turn without the medium … assistant turn). Replaced,
    never changed, so that nothing of it can reach another visitor."""

    medium: Medium | None = None
    turns: tuple[Messages, ...] = ()


@dataclass(frozen=True, eq=False)
class Reply:
    """An answer as it grows: the `text` so far; at its end the `turn`, the `session` that goes on from it, and the `medium` as it was
    looked at. `alone`: the earlier turns were left out because with them the model wrote nothing that can be read."""

    text: str
    turn: Turn | None = None
    session: Session | None = None
    medium: Medium | None = None
    alone: bool = False


def reply(model: Any, processor: Any, session: Session, question: str, settings: Settings) -> Iterator[Reply]:
    """Answers `question` about the open medium, word by word; the last Reply has the turn.

    A small model may lose its thread after several turns: an answer that cannot be read is asked for once more without them.
    Raises MediumError when nothing is open, SampleError for a question that cannot be asked.
    """
    if session.medium is None:
        raise MediumError("nothing is open yet: choose a picture or a clip first")
    medium = session.medium if settings.tools else replace(session.medium, look=False)
    agent = Agent(
        model, processor, tools_for(medium.media) if settings.tools else (), overlay=True, **generation(model, settings.futures)
    )
    first = opening(medium, processor, tools=settings.tools)
    earlier = _that_fit(agent, first, session.turns[-EARLIER:], question) if settings.history else []
    for alone in (False, True) if earlier else (False,):
        turns = [] if alone else earlier
        messages = conversation(first, turns, question)
        stream, written = agent.ask(messages, medium.media, stream=True), ""
        for piece in stream:
            written += piece
            yield Reply(written.replace(TRAJECTORY_TOKEN, " ·"), alone=alone)
        turn = stream.turn
        assert turn is not None
        if not any(isinstance(answer, Unparsed) for answer in turn.answers):
            break
    new = [user(question), *turn.messages[len(messages) :]]
    yield Reply(written, turn, replace(session, turns=(*session.turns, new)), medium, alone)


def conversation(first: list[dict[str, Any]], turns: list[Messages], question: str) -> Messages:
    """The messages of `turns` and the new question, with `first` (the medium) at the very beginning."""
    messages = [message for turn in turns for message in turn] + [user(question)]
    return [{**messages[0], "content": [*first, *messages[0]["content"]]}, *messages[1:]]


def _that_fit(agent: Agent, first: list[dict[str, Any]], turns: tuple[Messages, ...], question: str) -> list[Messages]:
    """The latest turns that the language model has room for beside the question and its answer."""
    room = getattr(agent.model.config.text_config, "max_position_embeddings", None)
    kept = list(turns)
    while kept and room is not None:
        batch = agent.processor(conversation(first, kept, question), tools=agent.schemas or None)
        if batch["input_ids"].shape[1] + ROOM <= room:
            break
        kept = kept[1:]
    return kept
