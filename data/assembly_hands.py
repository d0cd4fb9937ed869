"""AssemblyHands on disk → HandSample: grey pictures of four cameras on a headset, joints of both hands, no MANO.

    images/<file_name>      annotations/{train,val,test}/assemblyhands_{split}_{ego_data,ego_calib,joint_3d}_v1-1.json

World → camera: X_c = R X_w + t with one [R | t] per frame and camera, millimetres. 42 joints, right hand first, each finger from tip to
base and the wrist last. A sample is a hand with a box.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.hand_samples import NO_PICTURE, HandDataError, HandSet, numbers, read_json
from pose_tools.geometry import project
from pose_tools.joints import convert
from pose_tools.types import HandSample, Side

FIRST_JOINT: dict[Side, int] = {"right": 0, "left": 21}
ORDER = "assemblyhands_right"
VERSION = "v1-1"
FEWEST = 10
"""Hands with fewer valid joints are left out, as the official reader does."""


class AssemblyHands(HandSet):
    """The hands of one split, in the order of its file, left before right.

    The test part has no joints: `joints_3d` is None there.

    Raises HandDataError.
    """

    kind = "assembly_hands"

    def __init__(self, folder: str | Path, split: str) -> None:
        self.folder, self.split = Path(folder), split
        self.annotations = self.folder / "annotations" / split
        hint = "unpack AssemblyHands there, or write a synthetic folder with make_synthetic.py assembly-hands"
        data, calibration = (self._read(f"ego_{part}", hint) for part in ("data", "calib"))
        unknown = split == "test" and not self._path("joint_3d").is_file()
        try:
            self._calibration = calibration["calibration"]
            self._joints = None if unknown else self._read("joint_3d", hint)["annotations"]
            self._images = {image["id"]: image for image in data["images"]}
            self._hands: list[tuple[dict[str, Any], Side]] = [
                (record, side)
                for record in data["annotations"]
                for side in ("left", "right")
                if record["bbox"].get(side) is not None and (unknown or self._valid(record, side).sum() >= FEWEST)
            ]
        except (KeyError, TypeError, AttributeError) as error:
            raise HandDataError(f"{self.annotations}: not AssemblyHands' annotations {VERSION} ({error})") from None

    def _path(self, part: str) -> Path:
        return self.annotations / f"assemblyhands_{self.split}_{part}_{VERSION}.json"

    def _read(self, part: str, hint: str) -> Any:
        return read_json(self._path(part), hint)

    def __len__(self) -> int:
        return len(self._hands)

    def cluster(self, index: int) -> str:
        """The sequence, whichever camera saw it."""
        return str(self._image(index)["seq_name"])

    def picture(self, index: int) -> Path:
        return self.folder / "images" / self._image(index)["file_name"]

    def label(self, index: int) -> HandSample:
        record, side = self._hands[self.place(index)]
        image = self._image(index)
        what = f"{self.annotations}, picture {image['file_name']}"
        intrinsics, extrinsics = self._camera(image, what)
        joints = joints_2d = None
        valid = np.zeros(21, dtype=bool)
        if self._joints is not None:
            world = self._world(image, what)[FIRST_JOINT[side] : FIRST_JOINT[side] + 21]
            joints = convert((world @ extrinsics[:, :3].T + extrinsics[:, 3]) / 1000, ORDER, "freihand")
            joints_2d = project(joints, intrinsics)
            valid = convert(self._valid(record, side)[:, None], ORDER, "freihand")[:, 0]
        return HandSample(
            image=NO_PICTURE, side=side, bbox_xyxy=numbers(record["bbox"][side], (4,), f"{what}: bbox"), intrinsics=intrinsics,
            joints_2d=joints_2d, joints_3d=joints, joints_valid=valid, annotation=index,
            source={
                "dataset": self.kind, "part": self.split, "sequence": str(image["seq_name"]), "camera": image["camera"],
                "frame": image["frame_idx"],
            },
        )  # fmt: skip

    def _valid(self, record: dict[str, Any], side: Side) -> np.ndarray:
        return numbers(record["joint_valid"], (42,), f"{self._path('ego_data')}: joint_valid")[FIRST_JOINT[side] :][:21] > 0

    def _image(self, index: int) -> dict[str, Any]:
        record, _ = self._hands[self.place(index)]
        image = self._images.get(record["image_id"])
        if image is None:
            raise HandDataError(f"{self._path('ego_data')}: an annotation names picture {record['image_id']}, which is not listed")
        return image

    def _camera(self, image: dict[str, Any], what: str) -> tuple[np.ndarray, np.ndarray]:
        """Intrinsics (3, 3) and [R | t] (3, 4), millimetres."""
        name, frame = f"{image['camera']}_mono10bit", f"{int(image['frame_idx']):06d}"
        sequence = self._calibration.get(str(image["seq_name"]), {})
        try:
            intrinsics, extrinsics = sequence["intrinsics"][name], sequence["extrinsics"][frame][name]
        except (KeyError, TypeError):
            raise HandDataError(f"{what}: {self._path('ego_calib').name} has no camera {name} for frame {frame}") from None
        return numbers(intrinsics, (3, 3), f"{what}: intrinsics"), numbers(extrinsics, (3, 4), f"{what}: extrinsics")

    def _world(self, image: dict[str, Any], what: str) -> np.ndarray:
        frame = f"{int(image['frame_idx']):06d}"
        assert self._joints is not None
        try:
            joints = self._joints[str(image["seq_name"])][frame]["world_coord"]
        except (KeyError, TypeError):
            raise HandDataError(f"{what}: {self._path('joint_3d').name} has no frame {frame}") from None
        return numbers(joints, (42, 3), f"{what}: world_coord")
