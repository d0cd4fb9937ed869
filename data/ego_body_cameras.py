"""EgoBody's cameras and names: how the headset stands to the scanned room in every picture, and which files belong to a picture.

A point goes scan → Kinect → HoloLens' world → the headset camera's own axes (y up, z backwards) → ours (x right, y down, z forward).
"""

from __future__ import annotations

import csv
import json
from functools import cached_property, lru_cache
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from data.sample import SampleError
from pose_tools.body_models.read import read_plain_pickle
from pose_tools.egohmr.scene import FLIP_YZ


class EgoBodyError(SampleError):
    """An EgoBody folder that cannot be used; the message names the file and the remedy."""


def image_key(name: str) -> str:
    """The last five parts of a picture's path: its key in stage 1's pickles."""
    return "/".join(PurePosixPath(name).parts[-5:])


def recording_of(name: str) -> str:
    """egocentric_color/REC/DATE/PV/FILE → REC. Raises EgoBodyError for another path."""
    parts = PurePosixPath(name).parts
    if len(parts) < 5 or ".." in parts or name.startswith("/"):
        raise EgoBodyError(f"picture {name!r} is not named egocentric_color/RECORDING/DATE/PV/FILE")
    return parts[-4]


def stage2_name(name: str) -> str:
    """REC/DATE/FRAME.npy of a picture: where stage 2's points lie within a split."""
    path = PurePosixPath(name)
    return str(PurePosixPath(recording_of(name), path.parts[-3], path.stem + ".npy"))


class Cameras:
    """How the headset's camera stands to the room in every picture, as 4 × 4 matrices that carry points."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)

    @cached_property
    def _all(self) -> dict[str, Any]:
        path = self.folder / "transf_matrices_all_seqs.pkl"
        if not path.is_file():
            raise EgoBodyError(f"{path} is missing: it comes with EgoHMR's release, not with EgoBody's")
        return read_plain_pickle(path, "pickle of camera matrices")

    @cached_property
    def scenes(self) -> dict[str, str]:
        """Recording → scene."""
        path = self.folder / "data_info_release.csv"
        if not path.is_file():
            raise EgoBodyError(f"{path} is missing: it says in which room each recording was made")
        with path.open(newline="") as file:
            return {row["recording_name"]: row["scene_name"] for row in csv.DictReader(file)}

    def _recording(self, name: str) -> dict[str, Any]:
        recording = recording_of(name)
        if recording not in self._all:
            raise EgoBodyError(f"{self.folder / 'transf_matrices_all_seqs.pkl'} has no recording {recording!r} (of picture {name})")
        return self._all[recording]

    def kinect_to_holo(self, name: str) -> np.ndarray:
        return np.asarray(self._recording(name)["trans_kinect2holo"], dtype=np.float64)

    def holo_to_camera(self, name: str) -> np.ndarray:
        """Into the headset camera's own axes (y up, z backwards); `FLIP_YZ` leads on into ours."""
        cameras, timestamp = self._recording(name)["trans_world2pv"], PurePosixPath(name).name.split("_")[0]
        if timestamp not in cameras:
            raise EgoBodyError(f"transf_matrices_all_seqs.pkl has no camera at time {timestamp} (picture {name})")
        return np.asarray(cameras[timestamp], dtype=np.float64)

    def kinect_to_camera(self, name: str) -> np.ndarray:
        return FLIP_YZ @ self.holo_to_camera(name) @ self.kinect_to_holo(name)

    def scene(self, name: str) -> str:
        """The room of a picture."""
        recording = recording_of(name)
        if recording not in self.scenes:
            raise EgoBodyError(f"{self.folder / 'data_info_release.csv'} has no recording {recording!r}")
        return self.scenes[recording]

    def kinect_to_scene(self, name: str) -> np.ndarray:
        recording, scene = recording_of(name), self.scene(name)
        return _calibration(self.folder / "calibrations" / recording / "cal_trans" / "kinect12_to_world" / f"{scene}.json")

    def scene_to_camera(self, name: str) -> np.ndarray:
        return self.kinect_to_camera(name) @ np.linalg.inv(self.kinect_to_scene(name))


@lru_cache(maxsize=512)
def _calibration(path: Path) -> np.ndarray:
    try:
        found = np.asarray(json.loads(path.read_text())["trans"], dtype=np.float64)
    except FileNotFoundError:
        raise EgoBodyError(f"{path} is missing: the Kinect's place in the room is not known without it") from None
    except (ValueError, KeyError, TypeError) as error:
        raise EgoBodyError(f"{path} has no 4 x 4 matrix under 'trans': {error}") from error
    if found.shape != (4, 4) or not np.isfinite(found).all():
        raise EgoBodyError(f"{path}: 'trans' has shape {found.shape}, expected a finite 4 x 4 matrix")
    return found
