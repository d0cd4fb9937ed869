"""Synthetic scenes as training samples of the small detector: label maps, boxes, names and colours out of records and masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data.synthetic.factors import COLOURS, NAMES
from data.synthetic.placing import OBJECT_ID
from data.synthetic.scenes import read_scenes
from pose_tools.small_detector import FILL, INSTANCES, LABELS, PATCH, STRIDE
from pose_tools.small_detector_losses import IGNORE, centre_weights
from pose_tools.types import SIDES
from pose_tools.views import View, letterbox

LEAST_VISIBLE = 0.15
"""Things that show less of themselves are neither taught as there nor as absent."""
_SWAP = np.arange(256, dtype=np.uint8)
_SWAP[[1, 2, 3, 4]] = 2, 1, 4, 3


class DetectionScenes:
    """The scenes of a folder written by `scripts/make_synthetic.py`.

    With `augment`, pictures are mirrored (sides swapped in every label), scaled, shifted, and mildly changed in light, and half
    of the objects get a random colour without a name, all as a function of (seed, index, epoch). Without it they are letterboxed only.
    """

    def __init__(self, folder: str | Path, *, image_size: int = 192, augment: bool = False, seed: int = 0, limit: int | None = None):
        self.folder, self.image_size, self.augment, self.seed = Path(folder), image_size, augment, seed
        self.records = [_slim(record) for record in read_scenes(folder)[:limit]]

    def __len__(self) -> int:
        return len(self.records)

    def sample(self, index: int, epoch: int = 0) -> dict[str, np.ndarray]:
        """One sample, laid out as in `pose_tools.small_detector_losses`, without the batch axis."""
        record = self.records[index]
        image, ids = _read(self.folder / record["image"], cv2.IMREAD_COLOR), _read(self.folder / record["mask"], cv2.IMREAD_GRAYSCALE)
        image = image[..., ::-1]
        view = letterbox((image.shape[1], image.shape[0]), self.image_size)
        if self.augment:
            rng = np.random.default_rng([self.seed, epoch, index])
            image, record = recolour(rng, image, ids, record)
            if rng.random() < 0.5:
                image, ids, record = image[:, ::-1], _SWAP[ids[:, ::-1]], mirrored(record)
            view = view.then(random_view(rng, self.image_size))
            image = change_light(rng, view.warp(np.ascontiguousarray(image), fill=FILL))
        else:
            image = view.warp(np.ascontiguousarray(image), fill=FILL)
        return {"pixel_values": np.ascontiguousarray(image.transpose(2, 0, 1))} | labels(record, np.ascontiguousarray(ids), view)

    def collate(self, samples: Sequence[dict[str, np.ndarray]]) -> dict[str, torch.Tensor]:
        """Stacks samples into a batch of tensors."""
        return {name: torch.from_numpy(np.stack([sample[name] for sample in samples])) for name in samples[0]}


def _slim(record: dict[str, Any]) -> dict[str, Any]:
    """The record without joints and body parameters, which are most of its memory."""
    hands = [{k: hand[k] for k in ("side", "bbox_xyxy", "visible_fraction", "contact")} for hand in record["hands"]]
    return {k: record[k] for k in ("image", "mask", "width", "height", "objects")} | {"hands": hands}


def _read(path: Path, flag: int) -> np.ndarray:
    image = cv2.imread(str(path), flag)
    if image is None:
        raise ValueError(f"{path}: missing or not a picture: make the scenes again with scripts/make_synthetic.py")
    return image


def mirrored(record: dict[str, Any]) -> dict[str, Any]:
    """The record of the mirrored picture: boxes reflected, sides swapped; hands stay left before right."""
    other = {"left": "right", "right": "left"}

    def box(bbox: Sequence[float]) -> list[float]:
        return [record["width"] - bbox[2], bbox[1], record["width"] - bbox[0], bbox[3]]

    hands = [hand | {"side": other[hand["side"]], "bbox_xyxy": box(hand["bbox_xyxy"])} for hand in record["hands"]]
    objects = [
        thing
        | {"bbox_xyxy": box(thing["bbox_xyxy"])}
        | {k: sorted(other[s] for s in thing[k]) for k in ("held_by", "touched_by") if k in thing}
        for thing in record["objects"]
    ]
    return record | {"hands": sorted(hands, key=lambda hand: hand["side"]), "objects": objects}


def recolour(rng: np.random.Generator, image: np.ndarray, ids: np.ndarray, record: dict[str, Any]) -> tuple[np.ndarray, dict[str, Any]]:
    """Paints half of the objects in a random colour, shading kept. These teach their name only, the others their colour only.

    A split has only some of the pairs of name and colour, so a network that sees both at once tells shapes by their colour.
    """
    image, objects = image.copy(), list(record["objects"])
    for k, thing in enumerate(objects):
        where = ids == OBJECT_ID + k
        paint = rng.random() < 0.5 and where.any()
        objects[k] = thing | ({"colour": None} if paint else {"name": None})
        if paint:
            light = image[where].mean(-1, keepdims=True)
            tinted = light / max(float(np.median(light)), 25.0) * rng.uniform(15, 245, 3)
            image[where] = np.clip(tinted, 0, 255).astype(np.uint8)
    return image, record | {"objects": objects}


def random_view(rng: np.random.Generator, size: int) -> View:
    """A small change of scale (0.85 … 1.25) and place (up to 8 % of the side) on a square grid."""
    scale = float(np.exp(rng.uniform(np.log(0.85), np.log(1.25))))
    shift = (1 - scale) / 2 * size + rng.uniform(-0.08, 0.08, 2) * size
    return View(np.array([[scale, 0, shift[0]], [0, scale, shift[1]]]), (size, size), (size, size))


def change_light(rng: np.random.Generator, image: np.ndarray) -> np.ndarray:
    """Gain, contrast and a slight tint, RGB uint8; too weak to change the word for a colour."""
    gain = rng.uniform(0.85, 1.15) * rng.uniform(0.97, 1.03, 3)
    contrast = rng.uniform(0.88, 1.12)
    levels = (np.arange(256)[:, None] * gain - 110) * contrast + 110
    return cv2.LUT(image, np.clip(levels + 0.5, 0, 255).astype(np.uint8).reshape(1, 256, 3))


def labels(record: dict[str, Any], ids: np.ndarray, view: View) -> dict[str, np.ndarray]:
    """The labels of a picture seen through `view`; `ids` is its mask."""
    size = view.out[0]
    fine = View(np.diag([1 / PATCH, 1 / PATCH, 1.0]) @ view.matrix, view.size, (size // PATCH, size // PATCH))
    ids = fine.warp(ids, interpolation="nearest")
    boxes, present = np.zeros((len(INSTANCES), 4), np.float32), np.zeros(len(INSTANCES), np.int8)
    states = np.full(4, -1, np.int8)
    seen = [_seen(thing, view) for thing in record["objects"]]
    for hand in record["hands"]:
        i = SIDES.index(hand["side"])
        boxes[i], present[i] = _seen(hand, view)
        held = next((k for k, thing in enumerate(record["objects"]) if hand["side"] in thing["held_by"]), None)
        if held is not None:
            boxes[2 + i], present[2 + i] = seen[held]
        if present[i] == 1:
            states[i], states[2 + i] = hand["contact"], held is not None
    return {"label_map": _label_lut(record)[ids], "boxes": boxes, "present": present, "states": states} | _cells(record, ids, seen, size)


def _seen(thing: dict[str, Any], view: View) -> tuple[np.ndarray, int]:
    """Its box on the grid, clipped, and whether it is there: 1 yes, 0 no, −1 too little is left of it to say."""
    whole = view.box_to_grid(thing["bbox_xyxy"])
    box = np.clip(whole, 0, view.out[0])
    area, before = np.prod(box[2:] - box[:2]), np.prod(whole[2:] - whole[:2])
    left = area / max(before, 1e-6)
    if left < 0.02:
        return np.zeros(4, np.float32), 0
    return box.astype(np.float32), -1 if left < 0.4 or thing["visible_fraction"] < LEAST_VISIBLE else 1


def _label_lut(record: dict[str, Any]) -> np.ndarray:
    """Mask value → number in `LABELS`. Forearms are background; what both hands hold has no single label."""
    table = np.zeros(256, np.uint8)
    table[1], table[2] = LABELS.index("left hand"), LABELS.index("right hand")
    table[OBJECT_ID:] = IGNORE
    for k, thing in enumerate(record["objects"]):
        holders = thing["held_by"]
        name = f"object held by {holders[0]}" if len(holders) == 1 else "other object"
        table[OBJECT_ID + k] = IGNORE if len(holders) > 1 else LABELS.index(name)
    return table


def _cells(record: dict[str, Any], ids: np.ndarray, seen: list[tuple[np.ndarray, int]], size: int) -> dict[str, np.ndarray]:
    """For every cell the object that fills most of it (two of its sixteen labels at least), and that object's box, name and colour."""
    cells = size // STRIDE
    shape = (cells, PATCH, cells, PATCH)
    score, box = np.zeros(cells * cells, np.float32), np.zeros((cells * cells, 4), np.float32)
    name, colour = np.full(cells * cells, -1, np.int64), np.full(cells * cells, -1, np.int64)
    most = np.ones(cells * cells)
    boxes = torch.from_numpy(np.stack([b for b, _ in seen])) if seen else torch.zeros(0, 4)
    for k, (centre, thing) in enumerate(zip(centre_weights(boxes, cells).numpy(), record["objects"], strict=True)):
        share = (ids == OBJECT_ID + k).reshape(shape).sum((1, 3)).reshape(-1)
        mine = share > most
        most[mine] = share[mine]
        known = seen[k][1] == 1
        score[mine] = centre[mine] if known else -1
        box[mine] = seen[k][0]
        name[mine] = NAMES.index(thing["name"]) if known and thing["name"] is not None else -1
        colour[mine] = COLOURS.index(thing["colour"]) if known and thing["colour"] is not None else -1
    return {"cell_score": score, "cell_box": box, "cell_name": name, "cell_colour": colour}
