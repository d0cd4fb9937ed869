"""Questions about a synthetic scene, with their answers: where hands and objects are, what holds what, what touches.

Wordings are kept apart by split: what a kind is asked with in val and test is held out (see `phrasings`).
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from data.sample import Sample, Source, assistant, text, user
from data.synthetic import factors
from pose_tools.types import SIDES

KINDS = ("hand_left", "hand_right", "hands", "held_left", "held_right", "object", "holding_hand", "held_name", "contact")
NONE_SHARE = 0.25
"""How often `object` asks for something that is not there."""

_ASKING = (
    "Where is {x}?", "Find {x}.", "Locate {x}.", "Give the box of {x}.", "Show me {x}.", "Box {x}.", "In which region is {x}?",
    "Point out {x}.",
    "Mark {x}.", "Tell me where {x} is.", "Where can {x} be seen?", "Where can I see {x}?", "What is the box of {x}?", "Can you find {x}?",
    "Do you see {x}, and where?", "Please locate {x}.",
)  # fmt: skip
"""Ways to ask for a place. A kind's held-out ways are trained with other kinds, so that a model that learns language from these
questions alone has met their words, but never in this question."""

_THINGS: dict[str, tuple[str, ...]] = {
    "hand": ("the {side} hand", "my {side} hand", "the {side} hand of the person"),
    "held": (
        "the object in the {side} hand", "the object in my {side} hand", "what the {side} hand is holding", "what my {side} hand holds",
        "the thing held by my {side} hand", "the object that the {side} hand holds", "the thing that the {side} hand has grasped",
        "the object held in the {side} hand",
    ),
    "object": ("the {thing}",),
    "hands": ("my hands", "both hands", "the hands of the person", "the left and the right hand", "all hands", "every hand", "the hands"),
}  # fmt: skip
_HELD_OUT: dict[str, tuple[int, ...]] = {"hand": (8, 10, 13), "held": (2, 7, 9), "object": (4, 11, 15), "hands": (1, 8, 12)}
"""Numbers of the ways of `_ASKING` that a kind is asked in val and test only."""

_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "holding_hand": {
        "train": (
            "Which hand is holding the {thing}?", "Which hand holds the {thing}?", "In which hand is the {thing}?",
            "Who holds the {thing}, left or right?",
            "Name the hand that has the {thing}.", "The {thing} is in which hand?", "Tell me the hand that is holding the {thing}.",
            "What hand has the {thing}?", "Which of my hands is holding the {thing}?",
        ),
        "test": ("What hand is holding the {thing}?", "Which of the hands has the {thing}?", "Tell me which hand holds the {thing}."),
    },
    "held_name": {
        "train": (
            "What is the {side} hand holding?", "What is in my {side} hand?", "Name the object in the {side} hand.",
            "What do I hold in my {side} hand?",
            "Which object does the {side} hand hold?", "Tell what the {side} hand has grasped.", "What am I holding with the {side} hand?",
            "Name the thing that my {side} hand has grasped.", "Tell me what my {side} hand is holding.",
        ),
        "test": ("What am I holding in my {side} hand?", "What is the object in the {side} hand?", "Name what my {side} hand holds."),
    },
    "contact": {
        "train": (
            "Is the {side} hand touching an object?", "Does my {side} hand touch anything?", "Is something touched by the {side} hand?",
            "Is the {side} hand in contact with an object?", "Does the {side} hand hold or touch something?",
            "Is there contact between the {side} hand and an object?", "Am I touching something with my {side} hand?",
            "Is my {side} hand holding a thing?",
        ),
        "test": (
            "Is my {side} hand touching something?", "Does the {side} hand have contact with a thing?",
            "Is the {side} hand holding or touching an object?",
        ),
    },
}  # fmt: skip


def _words(stem: str, held_out: bool) -> tuple[str, ...]:
    if stem in _WORDS:
        return _WORDS[stem]["test" if held_out else "train"]
    ways = [way for number, way in enumerate(_ASKING) if (number in _HELD_OUT[stem]) == held_out]
    return tuple(_grammatical(way.replace("{x}", thing)) for way in ways for thing in _THINGS[stem])


def _grammatical(question: str) -> str:
    """Several hands "are"."""
    if any(several in question for several in ("hands", "left and the right", "all hands")):
        question = question.replace("Where is ", "Where are ").replace("region is ", "region are ")
        question = question.removesuffix(" is.") + " are." if question.endswith(" is.") else question
    return question


@cache
def phrasings(kind: str, split: str) -> tuple[str, ...]:
    """The wordings of a kind for a split; val and test share the held-out ones."""
    return _words(kind.removesuffix("_left").removesuffix("_right"), held_out=split != "train")


def questions(record: dict[str, Any], folder: str | Path, *, split: str, seed: int, kinds: Iterable[str] | None = None) -> list[Sample]:
    """One Sample per kind that can be asked of a scene record (see the reader in `scenes`), in the order of KINDS.

    `folder` is the split's folder, `kinds` a subset of KINDS. The choice of words, sides and things depends only on
    (seed, record id, kind). `targets` holds kind, boxes (pixels, [] for none), labels, text and side. ValueError for an unknown kind.
    """
    split = factors.check_split(split)
    wanted = tuple(KINDS if kinds is None else kinds)
    if unknown := set(wanted) - set(KINDS):
        raise ValueError(f"unknown question kinds {sorted(unknown)}; the kinds are {', '.join(KINDS)}")
    samples = []
    for kind in KINDS:
        if kind not in wanted:
            continue
        rng = np.random.default_rng([seed, zlib.crc32(f"{record['id']}/{kind}".encode())])
        asked = _ask(kind, record, split, rng)
        if asked is not None:
            samples.append(_sample(kind, record, Path(folder), split, rng, *asked))
    return samples


Asked = tuple[dict[str, str], list[dict[str, Any]], str | None, str | None]
"""Words to fill in, answer boxes, answer text, side."""


def _ask(kind: str, record: dict[str, Any], split: factors.Split, rng: np.random.Generator) -> Asked | None:
    hands = {hand["side"]: hand for hand in record["hands"]}
    if kind.startswith("hand_"):
        side = kind.removeprefix("hand_")
        return {"side": side}, [{"bbox_xyxy": hands[side]["bbox_xyxy"]}] if side in hands else [], None, side
    if kind == "hands":
        return {}, [{"bbox_xyxy": hands[s]["bbox_xyxy"], "label": f"{s} hand"} for s in SIDES if s in hands], None, None
    if kind in ("held_left", "held_right"):
        side = kind.removeprefix("held_")
        held = _held(record, hands, side)
        return {"side": side}, [{"bbox_xyxy": held["bbox_xyxy"]}] if held else [], None, side
    if kind == "object":
        return _ask_object(record, split, rng)
    if kind == "holding_hand":
        return _ask_holding_hand(record, rng)
    if kind == "held_name":
        side = str(rng.choice(SIDES))
        held = _held(record, hands, side)
        return {"side": side}, [], thing_name(held) if held else None, side
    if not hands:
        return None
    side = str(rng.choice(sorted(hands)))
    return {"side": side}, [], "yes" if hands[side]["contact"] else "no", side


def thing_name(thing: dict[str, Any]) -> str:
    """ "red cup" of an object's record."""
    return f"{thing['colour']} {thing['name']}"


def _held(record: dict[str, Any], hands: dict[str, Any], side: str) -> dict[str, Any] | None:
    held = hands[side]["held"] if side in hands else None
    return record["objects"][held] if held is not None else None


def _single_things(record: dict[str, Any]) -> list[dict[str, Any]]:
    """The objects that their colour and name describe unmistakably."""
    names = [thing_name(o) for o in record["objects"]]
    return [o for o in record["objects"] if names.count(thing_name(o)) == 1]


def _ask_object(record: dict[str, Any], split: factors.Split, rng: np.random.Generator) -> Asked | None:
    single = _single_things(record)
    if single and rng.random() >= NONE_SHARE:
        thing = single[rng.integers(len(single))]
        return {"thing": thing_name(thing)}, [{"bbox_xyxy": thing["bbox_xyxy"]}], None, None
    present = {(o["name"], o["colour"]) for o in record["objects"]}
    absent = [pair for pair in factors.pairs(split) if pair not in present]
    hard = [p for p in absent if any((p[0] == name) != (p[1] == colour) for name, colour in present)]
    choice = hard if hard and rng.random() < 0.7 else absent
    name, colour = choice[rng.integers(len(choice))]
    return {"thing": f"{colour} {name}"}, [], None, None


def _ask_holding_hand(record: dict[str, Any], rng: np.random.Generator) -> Asked | None:
    single = _single_things(record)
    held = [o for o in single if o["held_by"]]
    free = [o for o in single if not o["held_by"]]
    group = held if held and (not free or rng.random() < 0.7) else free
    if not group:
        return None
    thing = group[rng.integers(len(group))]
    holders = thing["held_by"]
    answer = None if not holders else "both hands" if len(holders) == 2 else f"{holders[0]} hand"
    return {"thing": thing_name(thing)}, [], answer, holders[0] if len(holders) == 1 else None


def as_typed(question: str, rng: np.random.Generator | None) -> str:
    """People also type without capitals and without a mark at the end: a quarter of the training questions each."""
    if rng is not None and rng.random() < 0.25:
        question = question[0].lower() + question[1:]
    return question[:-1] if rng is not None and rng.random() < 0.25 else question


def _sample(kind: str, record: dict[str, Any], folder: Path, split: str, rng: np.random.Generator, words, boxes, answer, side) -> Sample:
    choice = phrasings(kind, split)
    question = as_typed(choice[rng.integers(len(choice))].format(**words), rng if split == "train" else None)
    parts: list[dict[str, Any]] = [{"type": "box", **box} for box in boxes] or (
        [text(answer)] if answer is not None else [{"type": "none"}]
    )
    return Sample(
        id=f"{record['id']}/{kind}",
        messages=[user({"type": "image", "image": str((folder / record["image"]).absolute())}, question), assistant(*parts)],
        source=Source("synthetic", video_id=record["id"], frame=0, licence="Apache-2.0"),
        targets={
            "kind": kind, "boxes": [box["bbox_xyxy"] for box in boxes], "labels": [box["label"] for box in boxes if "label" in box],
            "text": answer, "side": side,
        },
    )  # fmt: skip
