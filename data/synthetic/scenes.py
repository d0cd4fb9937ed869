"""A folder of synthetic scenes: pictures, id masks, one record a line and a hashed manifest.

    manifest.json  scenes.jsonl  images/000/000012.jpg  masks/000/000012.png

The mask's uint8 ids: 0 background, 1 left hand, 2 right hand, 3 left forearm, 4 right forearm, 10 + k object k. A record's
fields are those of `world.make_scene` with id, image, mask and the sha256 of both files. A folder can be read while it is written.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.synthetic import factors, hands, journal, world

FORMAT = 2
WORLD_VERSION = 2
"""Raised whenever the same seed gives other pictures."""


@dataclass(frozen=True)
class Settings:
    """What the pictures of a folder are a function of; they are `size` pixels wide and high."""

    split: factors.Split
    seed: int = 0
    size: int = world.SIZE[0]

    def manifest(self) -> dict[str, Any]:
        """The part of the manifest that must agree before a folder is continued."""
        return {"kind": "stills", "split": self.split, "seed": self.seed, "size": self.size, **world_version()}


def world_version() -> dict[str, Any]:
    """What decides, beside split, seed and size, how pictures look: for manifests."""
    return {"format": FORMAT, "world": WORLD_VERSION, "factors_sha256": factors.factors_hash(), "hand_sha256": hand_hash()}


@lru_cache(maxsize=1)
def hand_hash() -> str:
    """sha256 of the stand-in hand's vertices in a bent pose, rounded to 0.1 mm: another hand gives other pictures."""
    vertices, _ = hands.pose_hand("right", np.zeros(3), hands.wrap_grasp(30).hand_pose, np.ones(10), np.zeros(3))
    return hashlib.sha256(np.round(vertices * 1e4).astype(np.int32).tobytes()).hexdigest()


def scene_id(split: str, index: int) -> str:
    """ "train-000012"."""
    return f"{split}-{index:06d}"


def encode_scene(settings: Settings, index: int) -> tuple[dict[str, Any], bytes, bytes]:
    """Record, JPEG bytes and PNG bytes of one scene; a function of its arguments alone."""
    scene = world.make_scene(settings.seed, settings.split, index, (settings.size, settings.size))
    quality = int(world.picture_rng(settings.seed, settings.split, index, 10_000).integers(62, 96))
    picture = cv2.imencode(".jpg", scene.picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    mask = cv2.imencode(".png", scene.mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    place = f"{index // 1000:03d}/{index:06d}"
    record = {"id": scene_id(settings.split, index), "image": f"images/{place}.jpg", "mask": f"masks/{place}.png", **scene.record}
    return record, picture, mask


def write_scene(settings: Settings, folder: Path, index: int) -> str:
    """Writes picture and mask of one scene; returns the record's line."""
    record, picture, mask = encode_scene(settings, index)
    return journal.save(folder, record, {record["image"]: picture, record["mask"]: mask})


def make_scenes(folder: str | Path, settings: Settings, count: int, workers: int = 1) -> Iterator[int]:
    """Brings a folder to at least `count` scenes; see `journal.fill`."""
    folder = Path(folder)
    return journal.fill(
        folder, "scenes.jsonl", "manifest.json", settings.manifest(), partial(write_scene, settings, folder), count, workers
    )


def read_scenes(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a folder, in order. `journal.FolderError` when it holds no scenes.jsonl or a line of it is broken."""
    folder = Path(folder)
    return journal.read_lines(
        folder / "scenes.jsonl", f"write the folder first with scripts/make_synthetic.py stills --out {folder.parent}"
    )


def read_mask(record: dict[str, Any], folder: str | Path) -> np.ndarray:
    """(H, W) uint8 ids of a record's picture."""
    path = Path(folder) / record["mask"]
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise journal.FolderError(f"{path} is missing or not a picture; write the folder again with scripts/make_synthetic.py")
    return mask
