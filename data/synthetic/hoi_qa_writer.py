"""The synthetic world as a HOI-QA folder: frames and the published json files, so that reader, training and scoring run without
the licensed data.

Even pictures are EPIC-KITCHENS frames (16:9), odd ones Ego4D frames (4:3), 16 to a video. Boxes in training files are truncated
hundredths, in test files pixels of the nominal frames (1920 × 1080, 1440 × 1080), as published. There is no published val split:
ours has the form of the training files. Training wordings are ours, several for a question; test questions are those the published
scorer tells apart.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.hoi_qa import NOMINAL_FRAMES
from data.synthetic import factors, journal, scenes, world
from pose_tools.files import write_text
from pose_tools.grounding import format_box

FRAME_SIZES = {"EPIC-KITCHENS": (480, 270), "Ego4D": (360, 270)}
_ROOTS = {"EPIC-KITCHENS": "EPIC_Kitchens/frames", "Ego4D": "Ego4D/v2/frames"}
_TRAINING_FILES = {"EPIC-KITCHENS": "epic-kitchens-{}.json", "Ego4D": "ego4d-{}.json"}
_PER_VIDEO = 32

WORDINGS: dict[str, tuple[str, ...]] = {
    "refer": ("[refer] Where is the {noun}?", "[refer] Where is the {noun}", "[refer] Find the {noun}.", "[refer] Locate the {noun}"),
    "refer to a hand": ("[refer] Where is the person's {noun}?", "[refer] Where can the {noun} of the person be seen?"),
    "both hands": ("[refer] Where are both hands of the person?", "[refer] Where are the person's hands?", "[refer] Find the hands."),
    "held, its box": (
        "[refer] Where is the object being moved by the {side} hand?",
        "[refer] Where is the object being manipulated by the {side} hand?",
        "[refer] Locate the object that is in the {side} hand",
    ),
    "held, its name": (
        "[vqa] What does the person hold in their {side} hand?",
        "[vqa] What is the object held by the {side} hand?",
        "[vqa] Which object is in the {side} hand?",
    ),
    "holder, its box": ("[refer] Which hand holds the {noun}?", "[refer] Where is the hand that has the {noun}?"),
    "holder, its name": ("[vqa] Which hand is holding the {noun}?", "[vqa] In what hand is the {noun}?"),
}
"""Training questions; those about interactions are not the tests'."""


def write_hoi_qa(folder: str | Path, split: factors.Split, seed: int, count: int, workers: int = 1) -> Iterator[int]:
    """Brings a folder to `count` frames of a split and writes its json files; yields the number of frames there are."""
    folder, split = Path(folder), factors.check_split(split)
    name, manifest = f"frames-{split}.jsonl", f"manifest-{split}.json"
    settings = {"kind": "hoi-qa", "split": split, "seed": seed, **scenes.world_version()}
    yield from journal.fill(folder, name, manifest, settings, partial(_write_frame, folder, split, seed), count, workers)
    records = journal.read_lines(folder / name, "it was there a moment ago")
    for file, content in _files(records, split, seed).items():
        write_text(folder / "hoiqa_dataset" / file, json.dumps(content, indent=1))


def _write_frame(folder: Path, split: factors.Split, seed: int, index: int) -> str:
    source = "EPIC-KITCHENS" if index % 2 == 0 else "Ego4D"
    scene = world.make_scene(seed, split, index, FRAME_SIZES[source])
    image = f"{_ROOTS[source]}/synthetic_{split}_{index // _PER_VIDEO:05d}/frame_{index:010d}.jpg"
    picture = cv2.imencode(".jpg", scene.picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    return journal.save(folder, {"id": scenes.scene_id(split, index), "source": source, "image": image, **scene.record}, {image: picture})


def _files(records: list[dict[str, Any]], split: str, seed: int) -> dict[str, Any]:
    """File name → content."""
    if split != "test":
        return {
            name.format(split): [c for r in records if r["source"] == source for c in conversations(r, seed)]
            for source, name in _TRAINING_FILES.items()
        }
    direct = {source: {k: v for r in records if r["source"] == source for k, v in referrals(r).items()} for source in FRAME_SIZES}
    visor = [q for r in records if r["source"] == "EPIC-KITCHENS" for q in interactions(r)]
    return {"epic-test.json": direct["EPIC-KITCHENS"], "ego4d-test.json": direct["Ego4D"], "epic-visor-test.json": visor}


def _named_boxes(record: dict[str, Any]) -> list[tuple[str, list[float]]]:
    """(noun, box) of the hands and of the objects whose name occurs once."""
    names = [o["name"] for o in record["objects"]]
    return [(f"{h['side']} hand", h["bbox_xyxy"]) for h in record["hands"]] + [
        (o["name"], o["bbox_xyxy"]) for o in record["objects"] if names.count(o["name"]) == 1
    ]


def _held(record: dict[str, Any]) -> list[tuple[str, dict[str, Any], dict[str, Any]]]:
    """(side, hand, object) of every hand that holds something."""
    return [(h["side"], h, record["objects"][h["held"]]) for h in record["hands"] if h["held"] is not None]


def conversations(record: dict[str, Any], seed: int) -> list[dict[str, Any]]:
    """Training records of a frame: one to three questions each, of the eight published kinds as far as the frame allows."""
    rng = np.random.default_rng([seed, int(record["id"].rsplit("-", 1)[1]), 5])
    write: Callable[[list[float]], str] = lambda box: format_box(box, (record["width"], record["height"]), "minigpt", compat="vlm4hoi")  # noqa: E731
    pairs: list[tuple[str, str]] = []
    ask: Callable[..., str] = lambda kind, **words: str(rng.choice(WORDINGS[kind])).format(**words)  # noqa: E731
    for noun, box in _named_boxes(record):
        pairs += [
            (f"[identify] {write(box)}", noun),
            (ask("refer", noun=noun), write(box)),
            (f"[detection] {noun}", f"<p>{noun}</p> {write(box)}"),
        ]
    hands = {h["side"]: write(h["bbox_xyxy"]) for h in record["hands"]}
    pairs += [(ask("refer to a hand", noun=f"{side} hand"), box) for side, box in hands.items()]
    if len(hands) == 2:
        pairs.append((ask("both hands"), "<delim>".join(hands.values())))
    names = [o["name"] for o in record["objects"]]
    for side, _, held in _held(record):
        noun, box = held["name"], write(held["bbox_xyxy"])
        pairs += [
            (ask("held, its box", side=side), box),
            (ask("held, its name", side=side), noun),
            ("[grounding] Describe what the person is doing.", f"The {side} hand holds a <p>{noun}</p> {box}"),
        ]
        if len(held["held_by"]) == 1 and names.count(noun) == 1:
            pairs += [(ask("holder, its box", noun=noun), hands[side]), (ask("holder, its name", noun=noun), f"{side} hand")]
    for hand in record["hands"]:
        touched = [o["name"] for o in record["objects"] if hand["side"] in o["touched_by"]]
        answer = f"The {hand['side']} hand touches the {touched[0]}." if touched else f"The {hand['side']} hand touches nothing."
        pairs.append((f"[vqa] Does the {hand['side']} hand hold or touch an object?", answer))
    pairs.append(("[vqa] What is going on in the picture?", _caption(record)))
    order, out = rng.permutation(len(pairs)), []
    while len(order):
        take, order = order[: (n := int(rng.integers(1, 4)))], order[n:]
        turns = [{"from": who, "value": value} for k in take for who, value in zip(("human", "gpt"), pairs[k], strict=True)]
        turns[0]["value"] = f"<image>\n{turns[0]['value']}"
        key = "image" if record["source"] == "EPIC-KITCHENS" else "image_path"
        picture = record["image"].removesuffix(".jpg") if key == "image" else record["image"]
        out.append({"id": f"{record['id']}-{len(out)}", key: picture, "conversations": turns})
    return out


def _caption(record: dict[str, Any]) -> str:
    doing = [f"holds a {held['name']} in the {side} hand" for side, _, held in _held(record)]
    return f"The person {' and '.join(doing)}." if doing else "The person holds nothing."


def _nominal(record: dict[str, Any], box: list[float]) -> list[float]:
    """A box in pixels of the nominal frame."""
    size, nominal = (record["width"], record["height"]), NOMINAL_FRAMES[record["source"]]
    return [round(v * whole / side, 3) for v, side, whole in zip(box, size * 2, nominal * 2, strict=True)]


def referrals(record: dict[str, Any]) -> dict[str, Any]:
    """Entries of the direct test files: key → image_path, noun, bbox."""
    return {
        f"{record['id']}_{number}": {"image_path": record["image"], "noun": noun, "bbox": _nominal(record, box)}
        for number, (noun, box) in enumerate(_named_boxes(record))
    }


def interactions(record: dict[str, Any]) -> list[dict[str, Any]]:
    """Entries of the interaction test file; questions begin as the published scorer expects them to."""
    asked: list[tuple[str, Any]] = []
    hands = {h["side"]: _nominal(record, h["bbox_xyxy"]) for h in record["hands"]}
    asked += [(f"[refer] Where is the {side} hand of the person?", box) for side, box in hands.items()]
    if len(hands) == 2:
        both = "".join("{" + "".join(f"<{v}>" for v in box) + "}" for box in hands.values())
        asked.append(("[refer] Where are the hands of the person?", both))
    names = [o["name"] for o in record["objects"]]
    for side, _, held in _held(record):
        asked.append((f"[refer] Locate the object being manipulated by the {side} hand", _nominal(record, held["bbox_xyxy"])))
        asked.append((f"[vqa] What is the object in the {side} hand?", held["name"]))
        if len(held["held_by"]) == 1 and names.count(held["name"]) == 1:
            asked.append((f"[refer] Which hand has the {held['name']}?", hands[side]))
            asked.append((f"[vqa] What hand is holding the {held['name']}?", f"{side} hand"))
    return [
        {"id": f"{record['id']}_{number}", "image_path": record["image"], "question": question, "answer": answer}
        for number, (question, answer) in enumerate(asked)
    ]
