"""The hand detector's recall on public photographs that we labelled by eye (docs/hand_recall_labels.json), per kind of picture.

The pictures are not part of this repository: DIR holds them as DIR/owner/repository/path, as in checkouts of the repositories named.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image
from tqdm import tqdm

from pose_tools.detect import HandDetection, detect_hands, resolve_backend
from pose_tools.image_io import read_image
from pose_tools.metrics import box_iou

LABELS = Path(__file__).resolve().parents[2] / "docs" / "hand_recall_labels.json"
LEAST_IOU = 0.3
GROUPS = ("egocentric", "other", "HOI-Ref frames")


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="bench.py hand-recall", description=__doc__)
    parser.add_argument("--pictures", type=Path, required=True, metavar="DIR", help="holds owner/repository/path of the labels")
    parser.add_argument("--backend", choices=("mediapipe", "auto", "small"), default="auto")
    options = parser.parse_args(arguments)
    entries = json.loads(LABELS.read_text())["pictures"]
    here = [entry for entry in entries if _file(options.pictures, entry).is_file()]
    if not here:
        wanted = _file(options.pictures, entries[0])
        parser.error(f"none of the {len(entries)} labelled pictures is under {options.pictures}; the first is expected at {wanted}")
    print(
        f"{len(here)} of {len(entries)} pictures, {len(entries) - len(here)} missing; {resolve_backend(options.backend)}; IoU {LEAST_IOU}"
    )
    counts = {group: np.zeros(6, int) for group in GROUPS}
    for entry in tqdm(here, desc="pictures", disable=None):
        picture = _read(_file(options.pictures, entry), entry)
        counted = count(entry["hands"], detect_hands(picture, backend=options.backend), (picture.shape[1], picture.shape[0]))
        for group in [entry["scene"], *(GROUPS[2:] if entry.get("hoi_ref") else ())]:
            counts[group] += (1, *counted)
    print("| pictures | number | found | side right | false |\n|---|---|---|---|---|")
    for group, (number, hands, found, sided, right, false) in counts.items():
        print(f"| {group} | {number} | {found} of {hands} | {right} of {sided} | {false} |")


def count(hands: list[dict[str, Any]], detections: list[HandDetection], size: tuple[int, int]) -> tuple[int, int, int, int, int]:
    """Hands, found, found with a labelled side, side right, false detections; the surest detection takes its best free label."""
    free, found, sided, right, false = list(hands), 0, 0, 0, 0
    for detection in sorted(detections, key=lambda one: -one.score):
        overlaps = [float(box_iou(np.multiply(hand["box"], (*size, *size)), np.array(detection.bbox_xyxy))) for hand in free]
        if max(overlaps, default=0.0) < LEAST_IOU:
            false += 1
            continue
        hand = free.pop(int(np.argmax(overlaps)))
        found, sided, right = found + 1, sided + (hand["side"] is not None), right + (hand["side"] == detection.side)
    return len(hands), found, sided, right, false


def _file(folder: Path, entry: dict[str, Any]) -> Path:
    repository, path = entry["picture"].split(":", 1)
    return folder / repository / path


def _read(path: Path, entry: dict[str, Any]) -> np.ndarray:
    if "frame" in entry:
        with Image.open(path) as animation:
            animation.seek(entry["frame"])
            picture = np.asarray(animation.convert("RGB"))
    else:
        picture = read_image(path)
    x1, y1, x2, y2 = entry.get("crop_xyxy", (0, 0, picture.shape[1], picture.shape[0]))
    return np.ascontiguousarray(picture[y1:y2, x1:x2])
