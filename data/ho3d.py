"""HO-3D v2 and v3 on disk → HandSample: right hands that hold objects, 640 x 480 pictures of video sequences.

    train.txt  evaluation.txt  ("SEQ/0012" a line)      {train,evaluation}/SEQ/{rgb/0012.png|jpg, meta/0012.pkl}

The files are in OpenGL's camera frame (y up, z backward), joints in MANO's order with tips at HO-3D's own vertices, the pose absolute.
The evaluation part has the root joint and a box alone; `evaluation_xyz.json` and `evaluation_verts.json` beside the lists (in the order
of evaluation.txt, same frame and order) make it a labelled one.
"""

from __future__ import annotations

import re
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from data.hand_samples import NO_PICTURE, HandDataError, HandSet, box_of, numbers, pose_hand, read_json
from pose_tools.body_models.read import read_plain_pickle
from pose_tools.geometry import project
from pose_tools.joints import convert
from pose_tools.types import HandPose, HandSample

if TYPE_CHECKING:
    from pose_tools.body_models import Mano

OPENGL = np.diag([1.0, -1.0, -1.0])
"""Between OpenGL's camera frame and ours; its own inverse."""
SIZE = (640, 480)
FIELDS = ("camMat", "handJoints3D", "handPose", "handBeta", "handTrans", "handBoundingBox")
"""What is read of an annotation; the published ones also tell of the object, of contact and of the cameras (`camIDList`)."""


class HO3D(HandSet):
    """The frames of train.txt or evaluation.txt, in its order. Frames without an annotation have no `joints_3d`.

    Args:
        folder: holds the lists and the two parts.
        part: "train" or "evaluation".
        model: the right hand's model (`load_mano(path)`); None leaves `pose` and vertices out.

    Raises HandDataError when a list is missing, names no frames, or a frame's files cannot be used.
    """

    kind = "ho3d"

    def __init__(self, folder: str | Path, part: Literal["train", "evaluation"] = "train", *, model: Mano | None = None) -> None:
        self.folder, self.part, self.model = Path(folder), part, model
        path = self.folder / f"{part}.txt"
        if not path.is_file():
            raise HandDataError(f"{path} is missing: unpack HO-3D there, or write a synthetic folder with make_synthetic.py ho3d")
        self.frames = path.read_text().split()
        for number, frame in enumerate(self.frames, start=1):
            if not re.fullmatch(r"[\w-]+/\w+", frame):
                raise HandDataError(f"{path}, frame {number}: expected SEQUENCE/NUMBER, got {frame!r}")
        self._suffix = lru_cache(maxsize=None)(self._sequence_suffix)
        self._xyz = self._truth("xyz", 21) if part == "evaluation" else None
        self._verts = self._truth("verts", 778) if part == "evaluation" else None

    def __len__(self) -> int:
        return len(self.frames)

    def cluster(self, index: int) -> str:
        """The recording: MC1 … MC6 are one, ABF10 … ABF14 are five cameras of one."""
        sequence = self.frames[self.place(index)].split("/")[0]
        return sequence.rstrip("0123456789") or sequence

    def picture(self, index: int) -> Path:
        sequence, number = self.frames[self.place(index)].split("/")
        return self.folder / self.part / sequence / "rgb" / (number + self._suffix(sequence))

    def label(self, index: int) -> HandSample:
        sequence, number = self.frames[self.place(index)].split("/")
        path = self.folder / self.part / sequence / "meta" / f"{number}.pkl"
        if not path.is_file():
            raise HandDataError(f"{path} is missing; unpack {self.part}/{sequence} again, or take its lines out of {self.part}.txt")
        try:
            meta = read_plain_pickle(path, "HO-3D annotation", FIELDS)
        except ValueError as error:  # names the file, an unsafe one too
            raise HandDataError(f"{error}; unpack it again") from None
        intrinsics = self._intrinsics(meta, path)
        stored, vertices, pose = self._stored(meta, index, path), self._vertices(index), None
        if stored is not None and self.model is not None and self._has_parameters(meta):
            posed = pose_hand(self.model, **self._parameters(meta, path), tips="ho3d", rotation=OPENGL, shift=np.zeros(3))
            vertices, pose = posed.vertices if vertices is None else vertices, posed.pose
        joints_2d = project(stored, intrinsics) if stored is not None else None
        return self._sample(index, meta, path, intrinsics, stored, joints_2d, vertices, pose)

    def _sample(
        self,
        index: int,
        meta: dict[str, Any],
        path: Path,
        intrinsics: np.ndarray | None,
        joints: np.ndarray | None,
        joints_2d: np.ndarray | None,
        vertices: np.ndarray | None,
        pose: HandPose | None,
    ) -> HandSample:
        sequence, number = self.frames[index].split("/")
        if meta.get("handBoundingBox") is not None:  # of the evaluation part: what predictions start from, with and without the truth
            box = numbers(meta["handBoundingBox"], (4,), f"{path}: handBoundingBox")
        elif joints_2d is not None and intrinsics is not None:
            box = box_of(np.concatenate([joints_2d, project(vertices, intrinsics)]) if vertices is not None else joints_2d)
        else:
            box = np.array([0.0, 0.0, *SIZE])
        source: dict[str, Any] = {"dataset": self.kind, "part": self.part, "sequence": sequence, "frame": number}
        root = np.asarray(meta.get("handJoints3D") if meta.get("handJoints3D") is not None else [], float)
        if joints is None and root.shape == (3,):
            source["root"] = (OPENGL @ root).tolist()
        return HandSample(
            image=NO_PICTURE, side="right", bbox_xyxy=box, intrinsics=intrinsics, joints_2d=joints_2d, joints_3d=joints,
            joints_valid=np.full(21, joints is not None), vertices=vertices, pose=pose, annotation=index, source=source,
        )  # fmt: skip

    def _intrinsics(self, meta: dict[str, Any], path: Path) -> np.ndarray | None:
        return None if meta.get("camMat") is None else numbers(meta["camMat"], (3, 3), f"{path}: camMat")

    def _stored(self, meta: dict[str, Any], index: int, path: Path) -> np.ndarray | None:
        """The joints (21, 3) in our frame and order, or None where there are none."""
        if self._xyz is not None:
            joints = self._xyz[index]
        else:
            value = meta.get("handJoints3D")
            if value is None or np.shape(value) == (3,):  # no annotation, or the evaluation part's root alone
                return None
            joints = numbers(value, (21, 3), f"{path}: handJoints3D")
        return convert(joints, "ho3d", "freihand") @ OPENGL

    def _vertices(self, index: int) -> np.ndarray | None:
        return self._verts[index] @ OPENGL if self._verts is not None else None

    @staticmethod
    def _has_parameters(meta: dict[str, Any]) -> bool:
        return all(meta.get(name) is not None for name in ("handPose", "handBeta", "handTrans"))

    @staticmethod
    def _parameters(meta: dict[str, Any], path: Path) -> dict[str, np.ndarray]:
        pose = numbers(meta["handPose"], (48,), f"{path}: handPose")
        return {
            "global_orient": pose[:3], "hand_pose": pose[3:], "betas": numbers(meta["handBeta"], (10,), f"{path}: handBeta"),
            "transl": numbers(meta["handTrans"], (3,), f"{path}: handTrans"),
        }  # fmt: skip

    def _truth(self, name: str, points: int) -> np.ndarray | None:
        path = self.folder / f"evaluation_{name}.json"
        if not path.is_file():
            return None
        return numbers(read_json(path, ""), (len(self.frames), points, 3), f"{path} (one entry for each line of evaluation.txt)")

    def _sequence_suffix(self, sequence: str) -> str:
        """v2 has .png pictures, v3 .jpg."""
        there = self.folder / self.part / sequence / "rgb"
        return ".jpg" if next(there.glob("*.jpg"), None) is not None else ".png"
