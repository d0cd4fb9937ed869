"""Executed tool calls as training conversations, and their opposite: tools on offer that an ordinary question does not need.

A question that names the detector is answered by a call whose arguments the question fixes, the detector's result as the tool
would have written it, and an answer copied from that result. What the detector missed is answered by "none", as it would be in use.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.detections import known_detections
from data.sample import Sample, SampleError, Source, assistant, text, user
from data.synthetic.questions import questions
from pose_tools.detect import THRESHOLDS, HandDetection, detection_tokens
from pose_tools.detect_tool import TOOL, describe
from pose_tools.image_io import read_image
from pose_tools.tool_protocol import ToolResult
from pose_tools.types import SIDES

Hand = Literal["left", "right", "both"]

KINDS = ("tool_left", "tool_right", "tool_both", "direct")
OFFER = (TOOL.name,)

_ONE = {
    "train": (
        "Use the hand detector: where is my {side} hand?",
        "Run the hand detector and give me the {side} hand.",
        "Detect the {side} hand with the tool.",
        "Ask the detector for my {side} hand.",
        "With the hand detector, find my {side} hand.",
        "Call the tool to find the {side} hand.",
        "Let the detector look for my {side} hand.",
        "Please use your tool: where is the {side} hand?",
        "What does the hand detector say about my {side} hand?",
        "Check with the detector where the {side} hand is.",
        "Find the {side} hand, but use the hand detection tool.",
        "Where is my {side} hand according to the detector?",
        "Where is the {side} hand? Ask the detector.",
        "Find the {side} hand. Use the tool.",
        "Locate the {side} hand by running the detector.",
        "Tell me where the {side} hand is; use the tool.",
        "Show me what the tool finds for my {side} hand.",
        "Give the box of the {side} hand with the detector.",
        "Use the detector to find my {side} hand.",
        "Use the detector and show me the {side} hand.",
        "Run the detector to locate my {side} hand.",
        "By calling the tool, tell me where my {side} hand is.",
    ),
    "test": (
        "Where is my {side} hand? Use the detector.",
        "Use the tool to locate the {side} hand.",
        "Find my {side} hand by calling the hand detector.",
        "Tell me what the detector finds for the {side} hand.",
        "Run the tool and show me where the {side} hand is.",
    ),
}
_BOTH = {
    "train": (
        "Use the hand detector: where are my hands?",
        "Run the hand detector and give me both hands.",
        "Detect the hands with the tool.",
        "Ask the detector for my hands.",
        "With the hand detector, find both hands.",
        "Call the tool to find the hands.",
        "Let the detector look for my hands.",
        "Please use your tool: where are the hands?",
        "What does the hand detector say about both hands?",
        "Check with the detector where the hands are.",
        "Find the hands, but use the hand detection tool.",
        "Where are my hands according to the detector?",
        "Where are the hands? Ask the detector.",
        "Find both hands. Use the tool.",
        "Locate the hands by running the detector.",
        "Tell me where both hands are; use the tool.",
        "Show me what the tool finds for my hands.",
        "Give the boxes of the hands with the detector.",
        "Use the detector to find my hands.",
        "Use the detector and show me both hands.",
        "Run the detector to locate my hands.",
        "By calling the tool, tell me where my hands are.",
    ),
    "test": (
        "Where are my hands? Use the detector.",
        "Use the tool to locate both hands.",
        "Find my hands by calling the hand detector.",
        "Tell me what the detector finds for both hands.",
        "Run the tool and show me where the hands are.",
    ),
}


def phrasings(hand: Hand, split: str) -> tuple[str, ...]:
    """The questions that ask for a call about that hand; val and test share the held-out ones."""
    words = (_BOTH if hand == "both" else _ONE)["train" if split == "train" else "test"]
    return tuple(question.format(side=hand) for question in words)


def dialogues(
    record: dict[str, Any],
    folder: str | Path,
    *,
    split: str,
    seed: int,
    kinds: Iterable[str] | None = None,
    direct: int = 3,
    detector: str | None = None,
    encoders: Sequence[str] = (),
) -> list[Sample]:
    """Dialogues about a synthetic scene: one per kind of call, and `direct` ordinary questions, all with the tool on offer.

    `kinds`: a subset of KINDS. `detector`: folder of the small detector, None is the shipped one; its detections are taken from the
    folder's cache (see `data.detections`) where they are there. `encoders`: the pose encoders whose tokens stand in the tool's turn.
    A function of (seed, record id, kind) and the detections. `targets` holds the truth, not the detector's opinion.
    Raises ValueError for an unknown kind, SampleError for a picture that is not square, BackendMissing without a detector.
    """
    wanted = tuple(KINDS if kinds is None else kinds)
    if unknown := set(wanted) - set(KINDS):
        raise ValueError(f"unknown dialogue kinds {sorted(unknown)}; the kinds are {', '.join(KINDS)}")
    samples = []
    hands = _detections(record, Path(folder), detector) if set(wanted) - {"direct"} else []
    for hand in (*SIDES, "both"):
        if f"tool_{hand}" in wanted:
            asked = _question(record, Path(folder), hand, split, seed)
            result = describe(hands, (record["width"], record["height"]), hand=hand)
            samples.append(replace(asked, messages=with_call(asked.messages, result, hand, encoders)))
    if "direct" in wanted:
        ordinary = questions(record, folder, split=split, seed=seed)
        order = _generator(seed, record["id"], "direct").permutation(len(ordinary))[:direct]
        samples += [without_call(ordinary[i]) for i in sorted(order)]
    return samples


def without_call(sample: Sample) -> Sample:
    """The same conversation with the tool on offer, which it does not need."""
    return Sample(f"{sample.id}/direct", sample.messages, sample.source, sample.targets, tools=OFFER)


def with_call(messages: Sequence[dict[str, Any]], result: ToolResult, hand: Hand, encoders: Sequence[str] = ()) -> list[dict[str, Any]]:
    """A question's messages continued by the call, the tool's result and the answer that follows from it.

    Raises SampleError for a picture that is not square: its numbers in the result would not be those of the model's grid.
    """
    width, height = result.data["image_size"]
    if width != height:
        raise SampleError(f"tool dialogues need square pictures, got {width}x{height}: write the scenes square, or leave the data set out")
    poses = [{"type": "pose", "encoder": name, "tokens": result.tokens[name]} for name in encoders]
    return [
        *messages,
        assistant({"type": "tool_call", "name": TOOL.name, "arguments": {"hand": hand}}),
        {"role": "tool", "content": [text(result.text), *poses]},
        assistant(*_answer(result.text, width, label=hand == "both")),
    ]


def _answer(result: str, size: int, label: bool) -> list[dict[str, Any]]:
    """The parts of an answer with the numbers of the result's text, so that it is a copy of them."""
    boxes = [(side, np.array(box) * size / 1000) for side, box in json.loads(result).items() if box is not None]
    parts = [{"type": "box", "bbox_xyxy": box.tolist()} | ({"label": f"{side} hand"} if label else {}) for side, box in boxes]
    return parts or [{"type": "none"}]


def _question(record: dict[str, Any], folder: Path, hand: Hand, split: str, seed: int) -> Sample:
    choice = phrasings(hand, split)
    question = choice[_generator(seed, record["id"], hand).integers(len(choice))]
    truth = {one["side"]: one["bbox_xyxy"] for one in record["hands"] if hand in (one["side"], "both")}
    return Sample(
        id=f"{record['id']}/tool_{hand}",
        messages=[user({"type": "image", "image": str((folder / record["image"]).absolute())}, question)],
        source=Source("synthetic", video_id=record["id"], frame=0, licence="Apache-2.0"),
        targets={
            "kind": f"tool_{hand}",
            "boxes": [truth[side] for side in SIDES if side in truth],
            "labels": [f"{side} hand" for side in SIDES if side in truth],
            "text": None,
            "side": None if hand == "both" else hand,
        },
        tools=OFFER,
    )


def _generator(seed: int, record_id: str, kind: str) -> np.random.Generator:
    return np.random.default_rng([seed, zlib.crc32(f"{record_id}/tool/{kind}".encode())])


def _detections(record: dict[str, Any], folder: Path, detector: str | None) -> list[HandDetection]:
    """The small detector's hands in a scene's picture, from the folder's cache or made now."""
    known = _known(folder.absolute(), detector)
    if record["image"] not in known:
        from pose_tools.small_detector import load_small_detector

        image = read_image(folder / record["image"])
        known[record["image"]] = detection_tokens(load_small_detector(detector).detect(image, least=THRESHOLDS["small"]))
    return [_as_detection(row) for row in known[record["image"]] if np.isfinite(row[0])]


@lru_cache(maxsize=8)
def _known(folder: Path, detector: str | None) -> dict[str, np.ndarray]:
    return known_detections(folder, detector=detector)


def _as_detection(row: np.ndarray) -> HandDetection:
    """A row of `detection_tokens` as the detection it was made of."""
    x1, y1, x2, y2, side, score = row[:6].tolist()
    held = None if np.isnan(row[6]) else tuple(row[6:10].tolist())
    return HandDetection((x1, y1, x2, y2), SIDES[side > 0], score, object_bbox=held, object_score=None if held is None else float(row[10]))
