"""Questions that only the detections can answer: the picture is another one, so the model must read its pose tokens.

A model that is trained on drawn pictures sees nothing it knows in a photograph, but a detector made for photographs does. These
conversations teach it to believe the detections about hands and what they hold, whatever it makes of the pixels.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.sample import Sample, assistant, user
from data.synthetic.questions import questions
from pose_tools.types import SIDES

KINDS = ("hand_left", "hand_right", "hands", "held_left", "held_right")
NOISE_SHARE = 0.5
"""How often the picture is noise; otherwise it is another scene's."""


def trusted_detections(
    record: dict[str, Any],
    other: dict[str, Any],
    folder: str | Path,
    tokens: Mapping[str, np.ndarray],
    *,
    split: str,
    seed: int,
) -> list[Sample]:
    """Hand questions about a scene's detections, shown with noise or with the picture of the scene `other`.

    `tokens`: the detections of the folder's pictures, {path in the folder: (2, 11)}, rows left, right
    (see `pose_tools.detect.detection_tokens`).
    Answers and targets are what the detections say: a box, or none for an empty row or a hand without an object.
    A function of (seed, record id).
    """
    folder = Path(folder)
    rng = np.random.default_rng([seed, zlib.crc32(record["id"].encode()), 3])
    found = np.asarray(tokens[record["image"]], dtype=np.float32)
    size = (record["height"], record["width"])
    picture = noise(rng, size) if rng.random() < NOISE_SHARE else str((folder / other["image"]).absolute())
    media = ({"type": "image", "image": picture}, {"type": "pose", "encoder": "detection", "tokens": found})
    return [_answered(sample, media, found) for sample in questions(record, folder, split=split, seed=seed, kinds=KINDS)]


def noise(rng: np.random.Generator, size: tuple[int, int]) -> np.ndarray:
    """A picture of nothing: RGB uint8 (height, width, 3), coloured noise of a random grain and contrast."""
    grain = int(rng.integers(2, 24))
    small = rng.normal(rng.uniform(40, 215), rng.uniform(5, 70), (size[0] // grain + 2, size[1] // grain + 2, 3))
    return np.clip(cv2.resize(small.astype(np.float32), size[::-1], interpolation=cv2.INTER_CUBIC), 0, 255).astype(np.uint8)


def _answered(sample: Sample, media: tuple[dict[str, Any], ...], found: np.ndarray) -> Sample:
    kind = sample.targets["kind"]
    column = 6 if kind.startswith("held") else 0
    sides = SIDES if kind == "hands" else (sample.targets["side"],)
    rows = {side: found[SIDES.index(side)] for side in sides}
    boxes = {side: [float(v) for v in row[column : column + 4]] for side, row in rows.items() if not np.isnan(row[column])}
    labels = {side: {"label": f"{side} hand"} if kind == "hands" else {} for side in boxes}
    parts = [{"type": "box", "bbox_xyxy": box, **labels[side]} for side, box in boxes.items()] or [{"type": "none"}]
    words = [part for part in sample.messages[0]["content"] if part["type"] == "text"]
    return replace(
        sample,
        id=f"{sample.id}/trusted",
        messages=[user(*media, *words), assistant(*parts)],
        targets={**sample.targets, "boxes": list(boxes.values()), "labels": [label["label"] for label in labels.values() if label]},
    )
