"""DexYCB on disk → HandSample: one hand, left or right, that takes an object; eight cameras, 640 x 480.

    <date>-subject-07/<sequence>/{meta.yml, <serial>/{color_000012.jpg, labels_000012.npz}}
    calibration/{intrinsics/<serial>_640x480.yml, mano_<id>/mano.yml}

The labels are in the camera's frame, metres, our joint order with manopth's finger-tip vertices. `pose_m` holds the orientation, 45
principal components (all of them, relative to the mean pose) and the translation; it is all zeros where no hand is in the picture,
`joint_3d` then −1.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any, Literal

import numpy as np
import yaml

from data.hand_samples import NO_PICTURE, HandDataError, HandModels, HandSet, box_of, numbers, pose_hand
from pose_tools.geometry import project
from pose_tools.types import HandPose, HandSample, Side

logger = logging.getLogger(__name__)
SIZE = (640, 480)
SEQUENCES = 100
"""Of each subject."""
SERIALS = (
    "836212060125", "839512060362", "840412060917", "841412060263", "932122060857", "932122060861", "932122061900", "932122062010",
)  # fmt: skip
"""The cameras, in the order of the splits."""
Setup = Literal["s0", "s1", "s2", "s3"]
SETUPS: tuple[Setup, ...] = ("s0", "s1", "s2", "s3")


def split_of(setup: Setup, subject: int, serial: int, sequence: int) -> str:
    """The official split of a recording: "train", "val" or "test".

    s0 keeps back every fifth sequence, s1 subjects, s2 cameras, s3 objects. `subject` 0–9, `serial` 0–7, `sequence` 0–99 are places in
    the lists of the data set; every five sequences of a subject in a row take the same object.
    """
    if setup == "s0":
        return "train" if sequence % 5 != 4 else "val" if subject < 2 else "test"
    if setup == "s1":
        return "test" if subject in (7, 8) else "val" if subject == 6 else "train"
    if setup == "s2":
        return {6: "val", 7: "test"}.get(serial, "train")
    if setup == "s3":
        return {3: "val", 19: "val", 7: "test", 11: "test", 15: "test"}.get(sequence // 5, "train")
    raise HandDataError(f"DexYCB setup {setup!r}: expected one of {', '.join(SETUPS)}")


class DexYCB(HandSet):
    """The frames of a split: subject by subject, sequence by sequence, camera by camera. Those without a hand have no `joints_3d`.

    Args:
        folder: holds the subjects and calibration/.
        split: "train", "val" or "test" of the `setup`.
        models: both hands' models; None leaves `pose` and `vertices` out.
        every: take every so manieth frame of a recording.

    Raises HandDataError.
    """

    kind = "dexycb"

    def __init__(
        self, folder: str | Path, split: str, *, setup: Setup = "s0", models: HandModels | None = None, every: int = 1
    ) -> None:
        self.folder, self.split, self.setup, self.models = Path(folder), split, setup, models
        if every < 1:
            raise HandDataError(f"DexYCB: every={every}, expected at least 1")
        self._intrinsics = lru_cache(maxsize=None)(self._read_intrinsics)
        self._betas = lru_cache(maxsize=None)(self._read_betas)
        self._recordings: list[tuple[Path, Side, str]] = []
        frames = []
        for recording, side, calibration, count in self._find():
            frames += [(len(self._recordings), frame) for frame in range(0, count, every)]
            self._recordings.append((recording, side, calibration))
        self._frames = np.array(frames, np.int32).reshape(-1, 2)

    def _find(self) -> Iterator[tuple[Path, Side, str, int]]:
        """(recording of one camera, side, name of the hand's calibration, frames) of the split."""
        subjects = sorted(path for path in self.folder.glob("*-subject-*") if path.is_dir())
        if not subjects:
            raise HandDataError(
                f"{self.folder}: no folders like 20200709-subject-01; unpack DexYCB there, or write a synthetic one with "
                "make_synthetic.py dexycb"
            )
        for subject in subjects:
            number = re.search(r"subject-(\d+)$", subject.name)
            if number is None or not 1 <= int(number[1]) <= 10:
                raise HandDataError(f"{subject}: expected a name that ends in subject-01 … subject-10")
            sequences = sorted(path for path in subject.iterdir() if path.is_dir())
            if self.setup in ("s0", "s3") and len(sequences) != SEQUENCES:
                logger.warning(
                    "%s: %d sequences, the published subject has %d; %s goes by a sequence's place among them, so this is not its official "
                    "split. Unpack the subject whole, or take setup s1 or s2", subject, len(sequences), SEQUENCES, self.setup,
                )  # fmt: skip
            for k, sequence in enumerate(sequences):
                wanted = [s for s, _ in enumerate(SERIALS) if split_of(self.setup, int(number[1]) - 1, s, k) == self.split]
                there = [SERIALS[s] for s in wanted if (sequence / SERIALS[s]).is_dir()]
                if there:
                    meta = _read_yaml(sequence / "meta.yml", ("mano_sides", "mano_calib", "num_frames"))
                    if meta["mano_sides"][0] not in ("left", "right"):
                        raise HandDataError(f"{sequence / 'meta.yml'}: mano_sides {meta['mano_sides']}, expected left or right")
                    for serial in there:
                        yield sequence / serial, meta["mano_sides"][0], str(meta["mano_calib"][0]), int(meta["num_frames"])

    def __len__(self) -> int:
        return len(self._frames)

    def cluster(self, index: int) -> str:
        """The sequence, whichever camera saw it."""
        recording, *_ = self._at(index)
        return f"{recording.parent.parent.name}/{recording.parent.name}"

    def picture(self, index: int) -> Path:
        recording, _, _, frame = self._at(index)
        return recording / f"color_{frame:06d}.jpg"

    def label(self, index: int) -> HandSample:
        recording, side, calibration, frame = self._at(index)
        path = recording / f"labels_{frame:06d}.npz"
        joints, stored = _read_labels(path)
        intrinsics = self._intrinsics(recording.name)
        vertices: np.ndarray | None = None
        pose: HandPose | None = None
        if joints is not None and stored.any() and self.models is not None:
            posed = self._pose(side, calibration, stored)
            vertices, pose = posed.vertices, posed.pose
        joints_2d = project(joints, intrinsics) if joints is not None else None
        seen = [joints_2d] if joints_2d is not None else [np.array([[0.0, 0.0], SIZE])]
        if vertices is not None:
            seen.append(project(vertices, intrinsics))
        return HandSample(
            image=NO_PICTURE, side=side, bbox_xyxy=box_of(np.concatenate(seen)), intrinsics=intrinsics, joints_2d=joints_2d,
            joints_3d=joints, joints_valid=np.full(21, joints is not None), vertices=vertices, pose=pose, annotation=index,
            source={
                "dataset": self.kind, "part": f"{self.setup}-{self.split}", "sequence": self.cluster(index), "camera": recording.name,
                "frame": frame,
            },
        )  # fmt: skip

    def _at(self, index: int) -> tuple[Path, Side, str, int]:
        recording, frame = self._frames[self.place(index)]
        return *self._recordings[recording], int(frame)

    def _pose(self, side: Side, calibration: str, stored: np.ndarray) -> Any:
        import torch

        assert self.models is not None
        model = self.models[side]
        absolute = model.absolute_pose(torch.from_numpy(stored[None, 3:48]), pose_format="pca")[0].numpy()
        return pose_hand(model, stored[:3], absolute, self._betas(calibration), stored[48:], tips="manopth")

    def _read_intrinsics(self, serial: str) -> np.ndarray:
        path = self.folder / "calibration" / "intrinsics" / f"{serial}_{SIZE[0]}x{SIZE[1]}.yml"
        colour = _read_yaml(path, ("color",))["color"]
        try:
            fx, fy, cx, cy = (float(colour[name]) for name in ("fx", "fy", "ppx", "ppy"))
        except (KeyError, TypeError, ValueError):
            raise HandDataError(f"{path}: color with the numbers fx, fy, ppx, ppy expected, got {colour!r}") from None
        return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1.0]])

    def _read_betas(self, calibration: str) -> np.ndarray:
        path = self.folder / "calibration" / f"mano_{calibration}" / "mano.yml"
        return numbers(_read_yaml(path, ("betas",))["betas"], (10,), f"{path}: betas")


def _read_labels(path: Path) -> tuple[np.ndarray | None, np.ndarray]:
    """Joints (21, 3) metres, None without a hand, and `pose_m` (51,)."""
    try:
        with np.load(path, allow_pickle=False) as labels:
            joints, stored = labels["joint_3d"], labels["pose_m"]
    except FileNotFoundError:
        raise HandDataError(f"{path} is missing; unpack this sequence again") from None
    except Exception as error:  # a damaged zip raises nearly anything
        raise HandDataError(f"{path}: not readable labels with joint_3d and pose_m ({error}); unpack this sequence again") from None
    joints = numbers(joints, (21, 3), f"{path}: joint_3d")
    return (None if (joints == -1).all() else joints), numbers(stored, (51,), f"{path}: pose_m")


def _read_yaml(path: Path, keys: tuple[str, ...]) -> dict[str, Any]:
    try:
        content = yaml.safe_load(path.read_text())
    except FileNotFoundError:
        raise HandDataError(f"{path} is missing; unpack DexYCB's calibration and sequences whole") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise HandDataError(f"{path}: not YAML ({error}); unpack it again") from None
    missing = [key for key in keys if not isinstance(content, dict) or key not in content]
    if missing:
        raise HandDataError(f"{path}: {', '.join(missing)} missing; is this DexYCB's?")
    return content
