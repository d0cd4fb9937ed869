"""The synthetic world as an InterHand2.6M folder: pictures of one or two hands, each seen by a camera of its own somewhere in the world."""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from data.interhand import FIRST_JOINT, ORDER
from data.synthetic import factors, hands, journal, scenes, world
from data.synthetic.labelled_hands import HandPicture, encoded, hand_picture, move, random_camera
from pose_tools.files import write_text
from pose_tools.joints import convert

FIRST = 40_000
SIZE = (512, 334)
FRAMES = 4
"""Pictures of a sequence."""


def write_interhand(
    folder: str | Path, split: factors.Split, seed: int, count: int, workers: int = 1, *, size: tuple[int, int] = SIZE
) -> Iterator[int]:
    """Brings a split to `count` pictures and writes its four json files; yields how many there are."""
    folder, split = Path(folder), factors.check_split(split)
    settings = {"kind": "interhand", "split": split, "seed": seed, "size": list(size), **scenes.world_version()}
    write = partial(_write_picture, folder, split, seed, size)
    name = f"pictures-{split}.jsonl"
    yield from journal.fill(folder, name, f"manifest-{split}.json", settings, write, count, workers)
    records = journal.read_lines(folder / name, "it was there a moment ago")[:count]
    cameras: dict[str, Any] = {key: {} for key in ("campos", "camrot", "focal", "princpt")}
    for record in records:
        for key, values in cameras.items():
            values[record["image"]["camera"]] = record["camera"][key]
    frames = {str(record["image"]["frame_idx"]): record for record in records}
    contents = {
        "data": {"images": [record["image"] for record in records], "annotations": [record["annotation"] for record in records]},
        "camera": {"0": cameras},
        "joint_3d": {"0": {frame: record["joint_3d"] for frame, record in frames.items()}},
        "MANO_NeuralAnnot": {"0": {frame: record["mano"] for frame, record in frames.items()}},
    }
    for part, content in contents.items():
        write_text(folder / "annotations" / f"InterHand2.6M_{split}_{part}.json", json.dumps(content))


def picture_of(split: factors.Split, seed: int, index: int, size: tuple[int, int]) -> HandPicture:
    """The truth of picture `index`: every second one has two hands."""
    return hand_picture(seed, split, FIRST + index, size, count=1 + index % 2, tips="smplx")


def _write_picture(folder: Path, split: factors.Split, seed: int, size: tuple[int, int], index: int) -> str:
    pictured = picture_of(split, seed, index, size)
    rotation, position = random_camera(world.picture_rng(seed, split, FIRST + index, 30_000))
    joints, valid = np.zeros((42, 3)), np.zeros(42, int)
    fits: dict[str, Any] = {"left": None, "right": None}
    for hand in pictured.hands:
        part = slice(FIRST_JOINT[hand.side], FIRST_JOINT[hand.side] + 21)
        joints[part] = convert(hand.joints, "freihand", ORDER) @ rotation + position
        valid[part] = 1
        orient, transl = move(hand, rotation.T, position)
        relative = hand.hand_pose - hands.mano(hand.side).hands_mean.double().numpy()
        fits[hand.side] = {"pose": [*orient, *relative], "shape": hand.betas.tolist(), "trans": transl.tolist()}
    seen = np.concatenate([hand.joints_2d for hand in pictured.hands])
    low, high = seen.min(0), seen.max(0)
    intrinsics, camera = pictured.intrinsics, str(400_000 + index)
    name = f"Capture0/{index // FRAMES:04d}_synthetic/cam{camera}/image{index}.jpg"
    record = {
        "id": f"{split}-{index:06d}",
        "image": {
            "id": index, "file_name": name, "capture": 0, "seq_name": f"{index // FRAMES:04d}_synthetic", "camera": camera,
            "frame_idx": index, "width": size[0], "height": size[1],
        },
        "annotation": {
            "id": index, "image_id": index, "bbox": [*low.tolist(), *(high - low).tolist()], "joint_valid": valid.tolist(),
            "hand_type": "interacting" if len(pictured.hands) == 2 else pictured.hands[0].side, "hand_type_valid": 1,
        },
        "camera": {
            "campos": (position * 1000).tolist(), "camrot": rotation.tolist(), "focal": [intrinsics[0, 0], intrinsics[1, 1]],
            "princpt": intrinsics[:2, 2].tolist(),
        },
        "joint_3d": {"world_coord": (joints * 1000).round(5).tolist(), "joint_valid": valid[:, None].tolist()},
        "mano": fits,
    }  # fmt: skip
    return journal.save(folder, record, {f"images/{split}/{name}": encoded(pictured.picture, ".jpg")})
