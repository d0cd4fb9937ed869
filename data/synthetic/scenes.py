"""A folder of synthetic scenes: pictures, id masks, one record a line and a hashed manifest, written in order, resumed where they stop.

    manifest.json  scenes.jsonl  images/000/000012.jpg  masks/000/000012.png

The mask's uint8 ids: 0 background, 1 left hand, 2 right hand, 3 left forearm, 4 right forearm, 10 + k object k. A record's
fields are those of `world.make_scene` with id, image and mask. A folder can be read while it is being written.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.synthetic import factors, hands, world
from data.synthetic.parallel import FolderBusyError, exclusive, worker_map
from pose_tools.files import write_text

__all__ = ["FolderBusyError", "SceneFolder", "SceneFolderError", "Settings", "make_scenes", "read_mask", "read_scenes"]

FORMAT = 1
WORLD_VERSION = 2
"""Raised whenever the same seed gives other pictures."""


class SceneFolderError(ValueError):
    """A folder that is not what was asked for; the message names the file and the remedy."""


@dataclass(frozen=True)
class Settings:
    """What the pictures of a folder are a function of."""

    split: factors.Split
    seed: int = 0
    size: tuple[int, int] = world.SIZE

    def manifest(self) -> dict[str, Any]:
        """The part of the manifest that must agree before a folder is continued."""
        return {
            "kind": "stills", "format": FORMAT, "world": WORLD_VERSION, "split": self.split, "seed": self.seed, "size": list(self.size),
            "factors_sha256": factors.factors_hash(), "hand_sha256": hand_hash(),
        }  # fmt: skip


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
    scene = world.make_scene(settings.seed, settings.split, index, settings.size)
    quality = int(world.picture_rng(settings.seed, settings.split, index, 10_000).integers(62, 96))
    picture = cv2.imencode(".jpg", scene.picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, quality])[1].tobytes()
    mask = cv2.imencode(".png", scene.mask, [cv2.IMWRITE_PNG_COMPRESSION, 1])[1].tobytes()
    place = f"{index // 1000:03d}/{index:06d}"
    record = {"id": scene_id(settings.split, index), "image": f"images/{place}.jpg", "mask": f"masks/{place}.png", **scene.record}
    return record, picture, mask


def write_scene(settings: Settings, folder: Path, index: int) -> tuple[str, bytes]:
    """Writes picture and mask of one scene; returns the record's line and the digest of both files."""
    record, picture, mask = encode_scene(settings, index)
    for name, content in ((record["image"], picture), (record["mask"], mask)):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)
    return json.dumps(record, separators=(",", ":")), hashlib.sha256(picture + mask).digest()


def read_scenes(folder: str | Path) -> list[dict[str, Any]]:
    """The records of a folder, in order; a last line that is still being written is left out.

    SceneFolderError when the folder holds no scenes.jsonl or a line of it is broken.
    """
    path = Path(folder) / "scenes.jsonl"
    if not path.is_file():
        raise SceneFolderError(f"{path} does not exist: write the folder first with scripts/make_synthetic.py stills --out {Path(folder).parent}")
    lines = path.read_bytes().split(b"\n")[:-1]
    records = []
    for number, line in enumerate(lines, start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise SceneFolderError(f"{path}, line {number}: not JSON ({error}); delete the line and all after it, then run make_synthetic.py again") from error
    return records


def read_mask(record: dict[str, Any], folder: str | Path) -> np.ndarray:
    """(H, W) uint8 ids of a record's picture."""
    path = Path(folder) / record["mask"]
    mask = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
    if mask is None:
        raise SceneFolderError(f"{path} is missing or not a picture; run make_synthetic.py again into a new folder")
    return mask


class SceneFolder:
    """Appends scenes to a folder in order. After a break it goes on behind the last complete record."""

    def __init__(self, folder: str | Path, settings: Settings) -> None:
        self.folder, self.settings = Path(folder), settings
        self.folder.mkdir(parents=True, exist_ok=True)
        self._check_manifest()
        self.count, self._pictures, self._lines = self._recover()

    def _check_manifest(self) -> None:
        path = self.folder / "manifest.json"
        wanted = self.settings.manifest()
        if path.is_file():
            there = json.loads(path.read_text())
            differing = [k for k, v in wanted.items() if there.get(k) != v]
            if differing:
                got = ", ".join(f"{k} {there.get(k)!r} (asked for {wanted[k]!r})" for k in differing)
                raise SceneFolderError(f"{path} belongs to other scenes: {got}; choose another --out or delete the folder")
        else:
            write_json(path, {**wanted, "count": 0, "complete": False})

    def _recover(self) -> tuple[int, Any, Any]:
        """Cuts a half-written last line off and hashes what is there."""
        path = self.folder / "scenes.jsonl"
        pictures, text = hashlib.sha256(), hashlib.sha256()
        content = path.read_bytes() if path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with path.open("r+b") as file:
                file.truncate(len(whole))
        lines = whole.split(b"\n")[:-1]
        for line in lines:
            record = json.loads(line)
            pictures.update(hashlib.sha256((self.folder / record["image"]).read_bytes() + (self.folder / record["mask"]).read_bytes()).digest())
        text.update(whole)
        return len(lines), pictures, text

    def extend(self, written: Iterable[tuple[str, bytes]], target: int) -> Iterator[int]:
        """Appends what `write_scene` returned for scene `count` and those after it; yields the new count each time."""
        with (self.folder / "scenes.jsonl").open("ab") as file:
            for line, digest in written:
                content = line.encode() + b"\n"
                file.write(content)
                file.flush()
                self.count += 1
                self._lines.update(content)
                self._pictures.update(digest)
                if self.count % 1000 == 0:
                    self.write_manifest(target)
                yield self.count
        self.write_manifest(target)

    def write_manifest(self, target: int) -> None:
        """Count and hashes of what is there now."""
        write_json(
            self.folder / "manifest.json",
            {
                **self.settings.manifest(), "count": self.count, "complete": self.count >= target,
                "scenes_sha256": self._lines.hexdigest(), "pictures_sha256": self._pictures.hexdigest(),
            },
        )  # fmt: skip


def write_json(path: Path, content: Any) -> None:
    """JSON, whole or not at all."""
    write_text(path, json.dumps(content, indent=1))


def make_scenes(folder: str | Path, settings: Settings, count: int, workers: int = 1) -> Iterator[int]:
    """Brings a folder to at least `count` scenes; yields the number there is after each one, starting with what was there.

    The result does not depend on `workers` nor on how often it was stopped. SceneFolderError when another process is writing the folder.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        there = SceneFolder(folder, settings)
        yield there.count
        if there.count < count:
            with worker_map(partial(write_scene, settings, folder), range(there.count, count), workers) as written:
                yield from there.extend(written, count)
