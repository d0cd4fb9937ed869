#!/usr/bin/env python
"""Chooses the pictures and clips of `make run`: the first of a test split that fit each question, so that nobody picked the good ones.

    python scripts/pick_demo_pictures.py --data cache/synthetic/test --clips cache/clips/test
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.groups import DatasetError, open_groups
from data.sample import Sample
from data.synthetic.scenes import read_scenes
from pose_tools.files import write_text

ASSETS = Path(__file__).resolve().parents[1] / "demos" / "assets" / "pictures"


def hand(record: dict[str, Any], side: str) -> dict[str, Any] | None:
    return next((one for one in record["hands"] if one["side"] == side), None)


def held(record: dict[str, Any], side: str) -> dict[str, Any] | None:
    one = hand(record, side)
    return record["objects"][one["held"]] if one is not None and one["held"] is not None else None


def two_hands(record: dict[str, Any]) -> bool:
    return len(record["hands"]) == 2


# Name, question, tool offered, which scene fits, true boxes by label.
Boxes = Callable[[dict[str, Any]], list[tuple[str | None, list[float]]]]
DEMOS: tuple[tuple[str, str, bool, Callable[[dict[str, Any]], Any], Boxes], ...] = (
    ("left_hand", "Where is my left hand?", False, two_hands, lambda r: [(None, hand(r, "left")["bbox_xyxy"])]),
    (
        "both_hands",
        "Use the tool to locate both hands.",
        True,
        two_hands,
        lambda r: [(f"{one['side']} hand", one["bbox_xyxy"]) for one in r["hands"]],
    ),
    (
        "held_object",
        "Where is the object held in the right hand?",
        False,
        lambda r: held(r, "right"),
        lambda r: [(None, held(r, "right")["bbox_xyxy"])],
    ),
    ("absent_hand", "Where is my right hand?", False, lambda r: hand(r, "left") and not hand(r, "right"), lambda r: []),
)


MOST_BYTES = 300_000
"""Room for the frames of all clips."""


def two_goals(samples: list[Sample]) -> tuple[Sample, Sample] | None:
    """Two questions about one clip in which the same hand reaches for different things."""
    reaches = [sample for sample in samples if sample.targets["action"] == "reach" and sample.targets["valid"].any()]
    for i, first in enumerate(reaches):
        for second in reaches[i + 1 :]:
            if first.targets["side"] == second.targets["side"] and first.targets["goal"] != second.targets["goal"]:
                return first, second
    return None


def pick_clips(data: Path, out: Path, count: int = 1) -> list[dict[str, Any]]:
    """The questions about the first `count` clips with two goals; their frames are copied. Raises DatasetError."""
    groups = open_groups("clip_trajectory", data, split="test")
    pairs = (pair for index in range(groups.size) if (pair := two_goals(groups.read(index, 0))) is not None)
    questions, room = [], MOST_BYTES
    for number, pair in zip(range(1, count + 1), pairs):
        video = pair[0].messages[0]["content"][0]
        (out / f"clip_{number}").mkdir(exist_ok=True)
        names = [f"clip_{number}/{k}.jpg" for k in range(len(video["video"]))]
        for name, frame in zip(names, video["video"]):
            shutil.copyfile(frame, out / name)
            room -= (out / name).stat().st_size
        for sample, letter in zip(pair, "ab"):
            questions.append(clip_question(f"clip_{number}_goal_{letter}", names, sample))
    if len(questions) < 2 * count or room < 0:
        found = f"{len(questions) // 2} of {count} clips with two goals, {MOST_BYTES - room} bytes"
        raise DatasetError(f"{data}: {found}; make more clips, or smaller ones")
    return questions


def clip_question(name: str, frames: list[str], sample: Sample) -> dict[str, Any]:
    """A line of questions.json (see `vlm.examples`)."""
    video, *words = sample.messages[0]["content"]
    truth = sample.targets
    future = [[[round(float(v), 1) for v in point] for point in hand] for hand in np.where(truth["valid"][..., None], truth["future"], 0.0)]
    ask = " ".join(part["text"] for part in words if part["type"] == "text")
    path = {"future": future, "valid": truth["valid"].tolist(), "future_times": list(map(float, truth["future_times"]))}
    times = list(map(float, video["times"]))
    return {"name": name, "clip": frames, "times": times, "ask": ask, "tool": False, **path, "scene": sample.id}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of synthetic test scenes")
    parser.add_argument("--clips", type=Path, help="a folder of synthetic test clips; without it, pictures only")
    parser.add_argument("--out", type=Path, default=ASSETS)
    options = parser.parse_args()
    records = iter(read_scenes(options.data))
    options.out.mkdir(parents=True, exist_ok=True)
    questions = []
    for name, ask, tool, fits, boxes in DEMOS:
        record = next((r for r in records if fits(r)), None)
        if record is None:
            raise DatasetError(f"{options.data}: no scene fits {name!r}; make more scenes")
        shutil.copyfile(options.data / record["image"], options.out / f"{name}.jpg")
        truth = [{"bbox_xyxy": box, "label": label} for label, box in boxes(record)]
        questions.append({"name": name, "image": f"{name}.jpg", "ask": ask, "tool": tool, "truth": truth, "scene": record["id"]})
    if options.clips:
        questions += pick_clips(options.clips, options.out)
    write_text(options.out / "questions.json", json.dumps(questions, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vlm.commands.console import run

    sys.exit(run(lambda _: main()))
