"""AssemblyHands on disk → HandSample: grey pictures of four cameras on a headset, joints of both hands, no MANO.

    images/<file_name>      annotations/{train,val,test}/assemblyhands_{split}_{ego_data,ego_calib,joint_3d}_v1-1.json

World → camera: X_c = R X_w + t with one [R | t] per frame and camera, millimetres. 42 joints, right hand first, each finger from tip to
base and the wrist last. A sample is a hand with a box.

The test parts are those of two challenges, without joints. ICCV'23's files have names of their own
(assemblyhands_test_ego_data_iccv23.json); ECCV'24's lie in test-eccv2024/, where the joints are all one point, the extrinsics mean nothing
and the pictures are said to lie in test_HANDS2024/.
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
ECCV24, ECCV24_INSIDE = "test-eccv2024", "test_HANDS2024"
"""The second challenge's folders as they are downloaded, and as they are called inside."""
TEST_FOLDERS = ("test", ECCV24, ECCV24_INSIDE, f"{ECCV24}/{ECCV24_INSIDE}")
"""Where a test part's annotations may lie."""
FEWEST = 10
"""Hands with fewer valid joints are left out, as the official reader does."""


class AssemblyHands(HandSet):
    """The hands of one split, in the order of its file, left before right.

    The test part has no joints: `joints_3d` is None there. Where there are several, `part` names its folder of annotations/.

    Raises HandDataError.
    """

    kind = "assembly_hands"

    def __init__(self, folder: str | Path, split: str, *, part: str | None = None) -> None:
        self.folder, self.split = Path(folder), split
        self.annotations = self.folder / "annotations" / split
        if split == "test":
            places = [self.folder / "annotations" / name for name in ((part,) if part else TEST_FOLDERS)]
            self.annotations = next((place for place in places if any(place.glob("assemblyhands_test_ego_data*.json"))), places[0])
        hint = "unpack AssemblyHands there, or write a synthetic folder with make_synthetic.py assembly-hands"
        data, calibration = self._read("ego_data", hint), self._read("ego_calib", hint)
        try:
            self._calibration = calibration["calibration"]
            self._joints = self._truth(hint)
            unknown = self._joints is None
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
        name = f"assemblyhands_{self.split}_{part}"
        path = self.annotations / f"{name}_{VERSION}.json"
        if self.split != "test" or path.is_file():
            return path
        others = [other for other in self.annotations.glob(f"{name}[-_]*.json") if "_pred" not in other.stem]  # no template of answers
        return max(others, key=lambda other: other.stem, default=path)

    def _read(self, part: str, hint: str) -> Any:
        return read_json(self._path(part), hint)

    def _truth(self, hint: str) -> dict[str, Any] | None:
        """The joints by sequence and frame, None where the test part keeps them back."""
        if self.split == "test" and not self._path("joint_3d").is_file():
            return None
        joints = self._read("joint_3d", hint)["annotations"]
        what = f"{self._path('joint_3d')}: world_coord"
        hands = (numbers(frame["world_coord"], (42, 3), what) for frames in joints.values() for frame in frames.values())
        return joints if self.split != "test" or any((hand != hand[0]).any() for hand in hands) else None

    def __len__(self) -> int:
        return len(self._hands)

    def cluster(self, index: int) -> str:
        """The sequence, whichever camera saw it."""
        return str(self._image(index)["seq_name"])

    def picture(self, index: int) -> Path:
        name = self._image(index)["file_name"]
        path = self.folder / "images" / name
        downloaded = self.folder / "images" / name.replace(f"/{ECCV24_INSIDE}/", f"/{ECCV24}/")
        return downloaded if not path.is_file() and downloaded.is_file() else path

    def label(self, index: int) -> HandSample:
        record, side = self._hands[self.place(index)]
        image = self._image(index)
        what = f"{self.annotations}, picture {image['file_name']}"
        intrinsics = self._intrinsics(image, what)
        joints = joints_2d = None
        valid = np.zeros(21, dtype=bool)
        if self._joints is not None:
            extrinsics = self._extrinsics(image, what)
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

    def _intrinsics(self, image: dict[str, Any], what: str) -> np.ndarray:
        return numbers(self._camera(image, what, "intrinsics"), (3, 3), f"{what}: intrinsics")

    def _extrinsics(self, image: dict[str, Any], what: str) -> np.ndarray:
        """[R | t] (3, 4), millimetres."""
        return numbers(self._camera(image, what, "extrinsics", f"{int(image['frame_idx']):06d}"), (3, 4), f"{what}: extrinsics")

    def _camera(self, image: dict[str, Any], what: str, *keys: str) -> Any:
        """What the calibration says under `keys` of the camera that took a picture."""
        name = f"{image['camera']}_mono10bit"
        try:
            found = self._calibration[str(image["seq_name"])]
            for key in (*keys, name):
                found = found[key]
        except (KeyError, TypeError):
            frame = f"{int(image['frame_idx']):06d}"
            raise HandDataError(f"{what}: {self._path('ego_calib').name} has no camera {name} for frame {frame}") from None
        return found

    def _world(self, image: dict[str, Any], what: str) -> np.ndarray:
        frame = f"{int(image['frame_idx']):06d}"
        assert self._joints is not None
        try:
            joints = self._joints[str(image["seq_name"])][frame]["world_coord"]
        except (KeyError, TypeError):
            raise HandDataError(f"{what}: {self._path('joint_3d').name} has no frame {frame}") from None
        return numbers(joints, (42, 3), f"{what}: world_coord")
