#!/usr/bin/env python
"""Chooses the pictures of `make run`: the first scenes of a test split that fit each question, so that nobody picked the good ones.

    python scripts/pick_demo_pictures.py --data cache/synthetic/test
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from data.groups import DatasetError
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


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of synthetic test scenes")
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
    write_text(options.out / "questions.json", json.dumps(questions, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    from vlm.commands.console import run

    sys.exit(run(lambda _: main()))
