"""InterHand2.6M on disk → HandSample: one or two hands a picture, many cameras, one sample a hand.

    images/{train,val,test}/Capture0/SEQ/cam400002/image123.jpg
    annotations/[all/]InterHand2.6M_{train,val,test}_{data,camera,joint_3d,MANO_NeuralAnnot}.json

World → camera: X_c = R (X_w − campos), millimetres. 42 joints, right hand first, each finger from tip to base and the wrist last; they
are key points of the data set's own, about half a centimetre from the joints of the fitted MANO. The fits are in metres in the world's
frame, poses relative to the mean pose of their side.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from data.hand_samples import NO_PICTURE, HandDataError, HandModels, HandSet, box_of, mean_pose, numbers, pose_hand, read_json
from pose_tools.geometry import project
from pose_tools.joints import convert
from pose_tools.types import HandSample, Side

FIRST_JOINT: dict[Side, int] = {"right": 0, "left": 21}
WRIST = 20
"""The wrist's place among a hand's 21 joints."""
ORDER = "interhand26m_right"


class InterHand(HandSet):
    """The annotated hands of one split, in the order of its file; of two interacting hands the left one comes first.

    As in the official evaluation, a hand whose wrist is not valid has no valid joint.

    Args:
        folder: holds images/ and annotations/.
        split: "train", "val" or "test".
        models: both hands' models; None leaves `pose` and `vertices` out.

    Raises HandDataError.
    """

    kind = "interhand"
    tolerance = 0.015
    """Metres: key points are no MANO joints, so a right reading is off by the fit (5 mm) and a wrong one by centimetres."""

    def __init__(self, folder: str | Path, split: str, *, models: HandModels | None = None) -> None:
        self.folder, self.split, self.models = Path(folder), split, models
        there = [self.folder / "annotations" / part for part in ("all", "", split)]
        names = {part: f"InterHand2.6M_{split}_{part}.json" for part in ("data", "camera", "joint_3d", "MANO_NeuralAnnot")}
        self.annotations = next((place for place in there if (place / names["data"]).is_file()), there[0])
        hint = "unpack InterHand2.6M's annotations there, or write a synthetic folder with make_synthetic.py interhand"
        data, self._cameras, self._joints = (read_json(self.annotations / names[part], hint) for part in ("data", "camera", "joint_3d"))
        self._mano = read_json(self.annotations / names["MANO_NeuralAnnot"], hint) if models is not None else {}
        try:
            self._images = {image["id"]: image for image in data["images"]}
            self._hands: list[tuple[dict[str, Any], Side]] = [
                (record, side)
                for record in data["annotations"]
                for side in ("left", "right")
                if record["hand_type"] in (side, "interacting")
            ]
        except (KeyError, TypeError) as error:
            raise HandDataError(f"{self.annotations / names['data']}: not InterHand2.6M's annotations, {error} is missing") from None

    def __len__(self) -> int:
        return len(self._hands)

    def cluster(self, index: int) -> str:
        """The sequence, whichever camera saw it."""
        image = self._image(index)
        return f"{image['capture']}-{image['seq_name']}"

    def picture(self, index: int) -> Path:
        return self.folder / "images" / self.split / self._image(index)["file_name"]

    def label(self, index: int) -> HandSample:
        record, side = self._hands[self.place(index)]
        image = self._image(index)
        what = f"{self.annotations}, picture {image['file_name']}"
        rotation, position, intrinsics = self._camera(image, what)
        world, valid = self._world(record, image, side, what)
        joints = convert((world - position) @ rotation.T / 1000, ORDER, "freihand")
        valid = convert(valid[:, None], ORDER, "freihand")[:, 0]
        joints_2d = project(joints, intrinsics)
        vertices = pose = None
        fit = ((self._mano.get(str(image["capture"])) or {}).get(str(image["frame_idx"])) or {}).get(side)
        if fit is not None and self.models is not None:
            model = self.models[side]
            stored = numbers(fit["pose"], (48,), f"{what}: pose of the {side} hand")
            posed = pose_hand(
                model, stored[:3], stored[3:] + mean_pose(model), numbers(fit["shape"], (10,), f"{what}: shape"),
                numbers(fit["trans"], (3,), f"{what}: trans"), tips="smplx", rotation=rotation, shift=-rotation @ position / 1000,
            )  # fmt: skip
            vertices, pose = posed.vertices, posed.pose
        return HandSample(
            image=NO_PICTURE, side=side, bbox_xyxy=self._box(record, joints_2d[valid], image), intrinsics=intrinsics, joints_2d=joints_2d,
            joints_3d=joints, joints_valid=valid, vertices=vertices, pose=pose, annotation=index,
            source={"dataset": self.kind, "part": self.split, "hand_type": record["hand_type"], **_names(image)},
        )  # fmt: skip

    def _image(self, index: int) -> dict[str, Any]:
        record, _ = self._hands[self.place(index)]
        image = self._images.get(record["image_id"])
        if image is None:
            raise HandDataError(f"{self.annotations}: annotation {record.get('id')} names picture {record['image_id']}, not listed")
        return image

    def _camera(self, image: dict[str, Any], what: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Rotation (3, 3), position (3,) mm in the world, intrinsics (3, 3)."""
        capture, name = self._cameras.get(str(image["capture"])), str(image["camera"])
        if capture is None or any(name not in capture.get(key, ()) for key in ("camrot", "campos", "focal", "princpt")):
            raise HandDataError(f"{what}: camera {name} of capture {image['capture']} is not in the camera file of this split")
        rotation = numbers(capture["camrot"][name], (3, 3), f"{what}: camrot")
        position = numbers(capture["campos"][name], (3,), f"{what}: campos")
        (fx, fy), (cx, cy) = (numbers(capture[key][name], (2,), f"{what}: {key}") for key in ("focal", "princpt"))
        return rotation, position, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])

    def _world(self, record: dict[str, Any], image: dict[str, Any], side: Side, what: str) -> tuple[np.ndarray, np.ndarray]:
        """One hand's joints (21, 3) mm and which are valid (21,), the data set's order."""
        frame = (self._joints.get(str(image["capture"])) or {}).get(str(image["frame_idx"]))
        if frame is None:
            raise HandDataError(f"{what}: frame {image['frame_idx']} of capture {image['capture']} is not in this split's joint_3d file")
        part = slice(FIRST_JOINT[side], FIRST_JOINT[side] + 21)
        valid = numbers(record["joint_valid"], (42,), f"{what}: joint_valid")[part] > 0
        valid &= numbers(frame["joint_valid"], (42,), f"{what}: joint_valid of joint_3d")[part] > 0
        return numbers(frame["world_coord"], (42, 3), f"{what}: world_coord")[part], valid & valid[WRIST]

    @staticmethod
    def _box(record: dict[str, Any], seen: np.ndarray, image: dict[str, Any]) -> np.ndarray:
        """The given box holds both hands of a pair; one hand's is then that of its joints."""
        if record["hand_type"] == "interacting" and len(seen):
            return box_of(seen)
        x, y, width, height = numbers(record["bbox"], (4,), f"{image['file_name']}: bbox")
        return np.array([x, y, x + width, y + height])


def _names(image: dict[str, Any]) -> dict[str, Any]:
    return {"capture": image["capture"], "sequence": image["seq_name"], "camera": image["camera"], "frame": image["frame_idx"]}
