"""Questions about a synthetic scene, with their answers: where hands and objects are, what holds what, what touches.

Wordings are kept apart by split: what the model was trained on is `_WORDS[kind]["train"]`, what it is asked in val and test is held out.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np

from data.sample import Sample, Source, assistant, text, user
from data.synthetic import factors
from pose_tools.types import SIDES

KINDS = ("hand_left", "hand_right", "hands", "held_left", "held_right", "object", "holding_hand", "held_name", "contact")
NONE_SHARE = 0.25
"""How often `object` asks for something that is not there."""

_WORDS: dict[str, dict[str, tuple[str, ...]]] = {
    "hand": {
        "train": (
            "Where is the {side} hand?", "Find the {side} hand.", "Locate my {side} hand.", "Give the box of the {side} hand.",
            "Show me the {side} hand.", "Point out the {side} hand of the person.", "In which region is my {side} hand?",
            "Box the {side} hand.",
        ),
        "test": ("Where can the {side} hand be seen?", "Where is my {side} hand?", "Mark the {side} hand.",
            "Tell me where the {side} hand is."),
    },
    "hands": {
        "train": (
            "Where are my hands?", "Find both hands.", "Locate the hands of the person.", "Give the boxes of all hands.", "Box every hand.",
            "Show me the hands.", "Which hands are there, and where?", "Find the left and the right hand.",
        ),
        "test": ("Where are the hands?", "Mark all hands you can see.", "Tell me where both hands are.", "Locate every hand."),
    },
    "held": {
        "train": (
            "Where is the object in the {side} hand?", "Find what the {side} hand is holding.", "Locate the thing held by my {side} hand.",
            "Give the box of the object in my {side} hand.", "Show me the object that the {side} hand holds.",
            "Box what my {side} hand holds.",
            "Where is the thing that the {side} hand has grasped?",
        ),
        "test": ("Where is the object held in the {side} hand?", "Mark what my {side} hand is holding.",
            "Tell me where the thing in the {side} hand is."),
    },
    "object": {
        "train": (
            "Where is the {thing}?", "Find the {thing}.", "Locate the {thing}.", "Give the box of the {thing}.", "Show me the {thing}.",
            "Box the {thing}.", "In which region is the {thing}?",
        ),
        "test": ("Where can I see the {thing}?", "Mark the {thing}.", "Tell me where the {thing} is.", "Is there a {thing}, and where?"),
    },
    "holding_hand": {
        "train": (
            "Which hand is holding the {thing}?", "Which hand holds the {thing}?", "In which hand is the {thing}?",
            "Who holds the {thing}, left or right?",
            "Name the hand that has the {thing}.", "The {thing} is in which hand?",
        ),
        "test": ("What hand is holding the {thing}?", "Which of the hands has the {thing}?", "Tell me which hand holds the {thing}."),
    },
    "held_name": {
        "train": (
            "What is the {side} hand holding?", "What is in my {side} hand?", "Name the object in the {side} hand.",
            "What do I hold in my {side} hand?",
            "Which object does the {side} hand hold?", "Tell what the {side} hand has grasped.",
        ),
        "test": ("What am I holding in my {side} hand?", "What is the object in the {side} hand?", "Name what my {side} hand holds."),
    },
    "contact": {
        "train": (
            "Is the {side} hand touching an object?", "Does my {side} hand touch anything?", "Is something touched by the {side} hand?",
            "Is the {side} hand in contact with an object?", "Does the {side} hand hold or touch something?",
            "Is there contact between the {side} hand and an object?",
        ),
        "test": ("Is my {side} hand touching something?", "Does the {side} hand have contact with a thing?",
            "Is the {side} hand holding or touching an object?"),
    },
}  # fmt: skip


def phrasings(kind: str, split: str) -> tuple[str, ...]:
    """The wordings of a kind for a split; val and test share the held-out ones."""
    stem = kind.removesuffix("_left").removesuffix("_right")
    return _WORDS[stem]["train" if split == "train" else "test"]


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


def _sample(kind: str, record: dict[str, Any], folder: Path, split: str, rng: np.random.Generator, words, boxes, answer, side) -> Sample:
    choice = phrasings(kind, split)
    question = choice[rng.integers(len(choice))].format(**words)
    parts: list[dict[str, Any]] = [{"type": "box", **box} for box in boxes] or (
        [text(answer)] if answer is not None else [{"type": "none"}]
    )
    return Sample(
        id=f"{record['id']}/{kind}",
        messages=[user({"type": "image", "image": str((folder / record["image"]).resolve())}, question), assistant(*parts)],
        source=Source("synthetic", video_id=record["id"], frame=0, licence="Apache-2.0"),
        targets={
            "kind": kind, "boxes": [box["bbox_xyxy"] for box in boxes], "labels": [box["label"] for box in boxes if "label" in box],
            "text": answer, "side": side,
        },
    )  # fmt: skip
