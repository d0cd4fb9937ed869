"""What people ask about a clip: where a hand goes to do something, in words kept apart by split like those about pictures."""

from __future__ import annotations

from typing import Any

import numpy as np

from data.synthetic import factors
from data.synthetic.questions import as_typed

_ASKING = (
    "Where will {who} go to {do}?", "Where should {who} move to {do}?", "Where does {who} go if I {do}?", "Show the path of {who} to {do}.",
    "I want to {do}. Where will {who} go?", "Predict where {who} will be if I {do}.", "Show where {who} should be to {do}.",
    "Tell me the path of {who} to {do}.", "If I {do}, how will {who} move?", "How should {who} go to {do}?",
    "What is the path of {who} if I want to {do}?",
    "Where will {who} move to {do}?", "If I want to {do}, where will {who} go?", "Predict the path of {who} to {do}.",
    "Show where {who} should go to {do}.",
)  # fmt: skip
_ASKING_NOTHING = ("Where will my hands go next?", "Where will the hands be in a moment?", "Show the path of my hands.")
_HELD_OUT = (11, 12, 13, 14)
"""Numbers of the ways of `_ASKING` that are asked in val and test only; all their words are trained."""

_WHO = {
    "left": ("my left hand", "the left hand"), "right": ("my right hand", "the right hand"),
    None: ("my hand", "the hand"), "both": ("my hands", "the hands"),
}  # fmt: skip


def narration(action: dict[str, Any]) -> str:
    """What is done, as EPIC-KITCHENS narrates it: "take the red cup", "turn the bowl to the right"."""
    goal = action["goal"]
    thing = f"the {goal['colour']} {goal['name']}" if goal else ""
    direction = f"to the {action['direction']}" if action["direction"] else ""
    return " ".join(word for word in (action["verb"], thing, direction) if word)


def ways(split: str) -> tuple[str, ...]:
    """The wordings of a split; val and test share the held-out ones."""
    return tuple(way for number, way in enumerate(_ASKING) if (number in _HELD_OUT) == (split != "train"))


def question(
    words: str, rng: np.random.Generator, split: str, side: str | None = None, *, name_side: bool = True, plural: bool = False
) -> str:
    """A question about a narrated action.

    Args:
        words: what is done, an infinitive without "to"; "" where that is not known.
        side: the acting hand; None where the data set does not say, or both act (`plural`).
        name_side: whether the hand must be named; otherwise it is in half of the questions.
    """
    split = factors.check_split(split)
    if not words.strip():
        return as_typed(_ASKING_NOTHING[rng.integers(len(_ASKING_NOTHING))], rng if split == "train" else None)
    named = side if side is not None and (name_side or rng.random() < 0.5) else None
    choice, who = ways(split), _WHO["both" if plural else named]
    text = choice[rng.integers(len(choice))].format(who=who[rng.integers(len(who))], do=words)
    if plural:
        text = text.replace("Where does ", "Where do ")
    return as_typed(text, rng if split == "train" else None)
