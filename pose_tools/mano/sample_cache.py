"""Hand samples as small square pictures in one memory-mapped file: for small networks, whose training would mostly wait for JPEGs.

    build(rows, folder, …)            # once; a row is row(samples, size, margin, number)
    SampleCache(folder)               # a sequence of HandSamples again, 20 µs each

A cached picture shows `margin` hand boxes, enough for a crop to turn and shift in it. Labels are those of the samples, with the
intrinsics of the small picture.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from pose_tools.files import atomic_path, write_text
from pose_tools.mano.crops import hand_view, warp
from pose_tools.types import HandPose, HandSample, Side
from pose_tools.user_error import UserError

Row = tuple[dict[str, np.ndarray], np.ndarray]
_POSE = {"global_orient": 3, "hand_pose": 45, "betas": 10, "transl": 3}


class SampleCacheError(UserError):
    """A cache that is not what was asked for; the message names the file and the remedy."""


def build(rows: Iterable[Row], folder: str | Path, *, count: int, size: int, margin: float, key: str) -> None:
    """Writes `count` rows (each `row(samples, size, margin, number)`, in order) into `folder`. Nothing is there until all is.

    Args:
        size: side of the pictures in pixels. margin: side in hand boxes. key: what they are (data set, split, version).
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    columns: dict[str, list[np.ndarray]] = {}
    with atomic_path(folder / "pictures.npy") as temporary:
        with temporary.open("wb") as file:  # np.save would add its suffix to the temporary name
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, size, size, 3)}
            np.lib.format.write_array_header_1_0(file, header)
            for labels, picture in rows:
                file.write(picture.tobytes())
                for name, value in labels.items():
                    columns.setdefault(name, []).append(value)
    with atomic_path(folder / "labels.npz") as temporary, temporary.open("wb") as file:
        np.savez(file, **{name: np.stack(values) for name, values in columns.items()})  # type: ignore[arg-type]
    write_text(folder / "cache.json", json.dumps({"key": key, "size": size, "margin": margin, "count": count}))


def row(samples: Sequence[HandSample], size: int, margin: float, number: int) -> Row:
    """Labels and picture of one sample."""
    hand = samples[number]
    view = hand_view(hand.bbox_xyxy, size, scale=margin, mirror=False)
    none = np.full((21, 3), np.nan)
    joints_2d = none[:, :2] if hand.joints_2d is None else view.to_grid(hand.joints_2d)
    labels = {
        "right": np.array(hand.side == "right"), "bbox": view.box_to_grid(hand.bbox_xyxy), "annotation": np.array(hand.annotation),
        "intrinsics": np.full((3, 3), np.nan) if hand.intrinsics is None else view.matrix @ hand.intrinsics,
        "joints_2d": joints_2d, "joints_3d": none if hand.joints_3d is None else np.asarray(hand.joints_3d),
        "valid": np.ones(21, bool) if hand.joints_valid is None else np.asarray(hand.joints_valid, bool),
    }  # fmt: skip
    for name, width in _POSE.items():
        labels[name] = np.full(width, np.nan) if hand.pose is None else np.asarray(getattr(hand.pose, name), np.float64)
    return labels, warp(view, hand.image)


class SampleCache(Sequence[HandSample]):
    """The samples of a folder that `build` wrote, without vertices and masks. SampleCacheError if it holds others than `key`."""

    def __init__(self, folder: str | Path, key: str | None = None) -> None:
        folder = Path(folder)
        try:
            self.facts = json.loads((folder / "cache.json").read_text())
            self.pictures = np.load(folder / "pictures.npy", mmap_mode="r")
            with np.load(folder / "labels.npz", allow_pickle=False) as file:
                self.labels = {name: file[name] for name in file.files}
        except (OSError, ValueError) as error:
            raise SampleCacheError(f"{folder}: not a whole cache of hand samples ({error}); delete it, it is built again") from error
        if key is not None and self.facts["key"] != key:
            raise SampleCacheError(f"{folder} holds {self.facts['key']!r}, expected {key!r}: delete it, it is built again")

    def __len__(self) -> int:
        return len(self.pictures)

    def __getitem__(self, index):  # type: ignore[no-untyped-def, override]
        row = {name: values[index] for name, values in self.labels.items()}
        side: Side = "right" if row["right"] else "left"
        pose = None
        if not np.isnan(row["betas"]).any():
            pose = HandPose(side, **{name: row[name] for name in _POSE}, joints_3d=row["joints_3d"])
        known = {name: None if np.isnan(row[name]).all() else row[name] for name in ("intrinsics", "joints_2d", "joints_3d")}
        return HandSample(
            image=np.asarray(self.pictures[index]), side=side, bbox_xyxy=row["bbox"], joints_valid=row["valid"], pose=pose,
            annotation=int(row["annotation"]), source={"cache": self.facts["key"], "number": int(index)}, **known,
        )  # fmt: skip
