"""The synthetic world as an AssemblyHands folder: grey pictures of hands, the camera on a head that moves from frame to frame."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.assembly_hands import FIRST_JOINT, ORDER, VERSION
from data.synthetic import factors, journal, scenes, world
from data.synthetic.labelled_hands import HandPicture, encoded, hand_picture, random_camera
from pose_tools.files import write_text
from pose_tools.joints import convert

FIRST = 80_000
SIZE = (636, 480)
FRAMES = 4
"""Frames of a sequence."""
CAMERA = "HMC_21179183"


def write_assembly_hands(
    folder: str | Path, split: factors.Split, seed: int, count: int, workers: int = 1, *, size: tuple[int, int] = SIZE
) -> Iterator[int]:
    """Brings a split to `count` pictures and writes its three json files; yields how many there are."""
    folder, split = Path(folder), factors.check_split(split)
    settings = {"kind": "assembly_hands", "split": split, "seed": seed, "size": list(size), **scenes.world_version()}
    write = partial(_write_picture, folder, split, seed, size)
    name = f"pictures-{split}.jsonl"
    yield from journal.fill(folder, name, f"manifest-{split}.json", settings, write, count, workers)
    records = journal.read_lines(folder / name, "it was there a moment ago")[:count]
    calibration: dict[str, Any] = {}
    joints: dict[str, Any] = {}
    for record in records:
        sequence, frame = record["image"]["seq_name"], f"{record['image']['frame_idx']:06d}"
        cameras = calibration.setdefault(sequence, {"intrinsics": {}, "extrinsics": {}})
        cameras["intrinsics"][f"{record['image']['camera']}_mono10bit"] = record["intrinsics"]
        cameras["extrinsics"][frame] = {f"{record['image']['camera']}_mono10bit": record["extrinsics"]}
        joints.setdefault(sequence, {})[frame] = {"world_coord": record["world_coord"]}
    contents = {
        "ego_data": {"images": [record["image"] for record in records], "annotations": [record["annotation"] for record in records]},
        "ego_calib": {"calibration": calibration},
        "joint_3d": {"annotations": joints},
    }
    for part, content in contents.items():
        write_text(folder / "annotations" / split / f"assemblyhands_{split}_{part}_{VERSION}.json", json.dumps(content))


def picture_of(split: factors.Split, seed: int, index: int, size: tuple[int, int]) -> HandPicture:
    """The truth of picture `index`."""
    return hand_picture(seed, split, FIRST + index, size, count=None)


def _write_picture(folder: Path, split: factors.Split, seed: int, size: tuple[int, int], index: int) -> str:
    pictured = picture_of(split, seed, index, size)
    rotation, position = random_camera(world.picture_rng(seed, split, FIRST + index, 30_000))
    joints, valid = np.zeros((42, 3)), np.zeros(42, int)
    boxes: dict[str, list[float] | None] = {"right": None, "left": None}
    for hand in pictured.hands:
        part = slice(FIRST_JOINT[hand.side], FIRST_JOINT[hand.side] + 21)
        joints[part] = convert(hand.joints, "freihand", ORDER) @ rotation + position
        valid[part] = 1
        boxes[hand.side] = [*hand.joints_2d.min(0).tolist(), *hand.joints_2d.max(0).tolist()]
    # A camera of its own for each sequence and picture keeps every picture's intrinsics.
    sequence, camera = f"synthetic_{index // FRAMES:04d}", f"{CAMERA}{index % FRAMES}"
    name = f"ego_images_rectified/{split}/{sequence}/{camera}_mono10bit/{index:06d}.jpg"
    record = {
        "id": f"{split}-{index:06d}",
        "image": {
            "id": index, "file_name": name, "seq_name": sequence, "camera": camera, "frame_idx": index, "width": size[0], "height": size[1],
        },
        "annotation": {"id": index, "image_id": index, "bbox": boxes, "joint_valid": valid.tolist()},
        "intrinsics": pictured.intrinsics.tolist(),
        "extrinsics": np.column_stack([rotation, -rotation @ position * 1000]).tolist(),
        "world_coord": (joints * 1000).round(5).tolist(),
    }  # fmt: skip
    grey = (pictured.picture @ [0.299, 0.587, 0.114]).round().astype(np.uint8)
    return journal.save(folder, record, {f"images/{name}": encoded(grey, ".jpg")})
