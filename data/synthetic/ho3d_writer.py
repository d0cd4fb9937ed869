"""The synthetic world as an HO-3D folder: sequences of four pictures of right hands, annotations in OpenGL's frame.

A left hand of the world enters mirrored. `train` fills the training part, the other splits the evaluation part, whose truth is written
beside the lists.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np

from data.ho3d import OPENGL, SIZE
from data.synthetic import factors, journal, scenes
from data.synthetic.labelled_hands import LabelledHand, as_right, encoded, hand_picture, move
from pose_tools.files import write_text
from pose_tools.joints import convert

FIRST = 20_000
"""Number of the first picture: no two data sets share one."""
FRAMES = 4
"""Pictures of a sequence."""
NAMES = ("AB", "CD", "EF", "GH", "IJ", "KL", "MN", "OP", "QR", "ST")


def write_ho3d(
    folder: str | Path,
    split: factors.Split,
    seed: int,
    count: int,
    workers: int = 1,
    *,
    size: tuple[int, int] = SIZE,
    version: Literal["v2", "v3"] = "v2",
) -> Iterator[int]:
    """Brings a part to `count` frames and writes its list; yields how many there are."""
    folder, split = Path(folder), factors.check_split(split)
    part = part_of(split)
    settings = {"kind": "ho3d", "split": split, "seed": seed, "size": list(size), "version": version, **scenes.world_version()}
    write = partial(_write_frame, folder, split, seed, size, version)
    yield from journal.fill(folder, f"frames-{part}.jsonl", f"manifest-{part}.json", settings, write, count, workers)
    records = journal.read_lines(folder / f"frames-{part}.jsonl", "it was there a moment ago")[:count]
    write_text(folder / f"{part}.txt", "".join(record["id"] + "\n" for record in records))
    if part == "evaluation":
        for name in ("xyz", "verts"):
            write_text(folder / f"evaluation_{name}.json", json.dumps([record[name] for record in records]))


def part_of(split: str) -> str:
    return "train" if split == "train" else "evaluation"


def hand_of(split: factors.Split, seed: int, index: int, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray, LabelledHand]:
    """Picture, intrinsics and hand of frame `index`: the truth in our frame."""
    pictured = as_right(hand_picture(seed, split, FIRST + index, size, tips="ho3d"), tips="ho3d")
    return pictured.picture, pictured.intrinsics, pictured.hands[0]


def _write_frame(folder: Path, split: factors.Split, seed: int, size: tuple[int, int], version: str, index: int) -> str:
    picture, intrinsics, hand = hand_of(split, seed, index, size)
    sequence, part = f"{NAMES[index // FRAMES % len(NAMES)]}{index // FRAMES // len(NAMES) + 1}", part_of(split)
    name = f"{sequence}/{index % FRAMES:04d}"
    joints = convert(hand.joints, "freihand", "ho3d") @ OPENGL
    orient, transl = move(hand, OPENGL, np.zeros(3))
    meta: dict[str, Any] = {"camMat": intrinsics, "objName": "none", "objRot": np.zeros((3, 1)), "objTrans": np.zeros(3)}
    if part == "train":
        pose = np.concatenate([orient, hand.hand_pose])
        meta |= {"handPose": pose, "handBeta": hand.betas, "handTrans": transl, "handJoints3D": joints}
    else:
        meta |= {"handJoints3D": joints[0], "handBoundingBox": [*hand.joints_2d.min(0).tolist(), *hand.joints_2d.max(0).tolist()]}
    suffix = ".png" if version == "v2" else ".jpg"
    truth = {"xyz": joints.round(7).tolist(), "verts": (hand.vertices @ OPENGL).round(6).tolist()} if part == "evaluation" else {}
    files = {
        f"{part}/{sequence}/rgb/{index % FRAMES:04d}{suffix}": encoded(picture, suffix),
        f"{part}/{sequence}/meta/{index % FRAMES:04d}.pkl": pickle.dumps(meta, protocol=2),
    }
    return journal.save(folder, {"id": name, **truth}, files)
