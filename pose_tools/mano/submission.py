"""Prediction files as FreiHAND's and HO-3D's servers take them, and back.

A file is json [joints of every picture (21 x 3), vertices of every picture (778 x 3)], metres, in the order of the evaluation set;
.zip holds it as pred.json. FreiHAND: our frame and order. HO-3D: OpenGL's frame (z < 0) and MANO's 16 joints with tips.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from pose_tools.files import atomic_path
from pose_tools.joints import convert
from pose_tools.mano.evaluate import PredictedHand
from pose_tools.user_error import UserError

Server = Literal["freihand", "ho3d"]
SERVERS: tuple[Server, ...] = ("freihand", "ho3d")
_OPENGL = np.array([1.0, -1.0, -1.0])
_DIGITS = 6
_LARGEST = 2 << 30
"""Bytes of a pred.json that are unpacked at most."""


class SubmissionError(UserError):
    """A prediction file that cannot be written or read; the message names it and the remedy."""


def to_server(joints: np.ndarray, vertices: np.ndarray, server: Server) -> tuple[np.ndarray, np.ndarray]:
    """Joints (N, 21, 3) and vertices (N, 778, 3) from our frame and order into the server's."""
    if server not in SERVERS:
        raise SubmissionError(f"server {server!r}: expected one of {', '.join(SERVERS)}")
    if server == "freihand":
        return joints, vertices
    return convert(joints, "freihand", "ho3d") * _OPENGL, vertices * _OPENGL


def write_submission(path: str | Path, predicted: Sequence[PredictedHand | None], server: Server) -> None:
    """Writes `path` (.json or .zip), whole or not at all. SubmissionError for a missed hand or one without vertices: the servers have
    no such thing."""
    path = Path(path)
    joints, vertices = [], []
    for number, hand in enumerate(predicted):
        if hand is None or hand.vertices is None:
            what = "is missed" if hand is None else "has no vertices"
            raise SubmissionError(f"{path}: hand {number} {what}, but the server wants joints and vertices of every picture")
        joints.append(hand.joints_3d)
        vertices.append(hand.vertices)
    if not joints:
        raise SubmissionError(f"{path}: no predictions to write")
    content = json.dumps([points.round(_DIGITS).tolist() for points in to_server(np.stack(joints), np.stack(vertices), server)])
    with atomic_path(path) as temporary:
        if path.suffix == ".zip":
            with zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
                archive.writestr("pred.json", content)
        elif path.suffix == ".json":
            temporary.write_text(content)
        else:
            raise SubmissionError(f"{path}: name a submission .json or .zip")


def read_submission(path: str | Path, server: Server) -> list[PredictedHand]:
    """The predictions of a file in our frame and order. SubmissionError when it is not one."""
    path = Path(path)
    joints, vertices = _arrays(_content(path), path)
    if server == "ho3d" and len(joints) and np.median(joints[:, :, 2]) > 0:
        raise SubmissionError(f"{path}: the hands lie at z > 0; HO-3D's server wants OpenGL's frame (y up, z backward)")
    if server == "ho3d":
        joints, vertices = convert(joints, "ho3d", "freihand") * _OPENGL, vertices * _OPENGL
    return [PredictedHand(j, v) for j, v in zip(joints, vertices)]


def _content(path: Path) -> Any:
    try:
        if path.suffix != ".zip":
            return json.loads(path.read_bytes())
        with zipfile.ZipFile(path) as archive:
            if archive.getinfo("pred.json").file_size > _LARGEST:
                raise SubmissionError(f"{path}: pred.json unpacks to more than {_LARGEST >> 30} GB")
            return json.loads(archive.read("pred.json"))
    except FileNotFoundError:
        raise SubmissionError(f"{path}: no such file") from None
    except KeyError:
        raise SubmissionError(f"{path}: holds no pred.json") from None
    except (ValueError, zipfile.BadZipFile) as error:
        raise error if isinstance(error, SubmissionError) else SubmissionError(f"{path}: not a whole prediction file ({error})") from None


def _arrays(content: Any, path: Path) -> tuple[np.ndarray, np.ndarray]:
    try:
        joints, vertices = (np.asarray(part, np.float64) for part in content)
    except (TypeError, ValueError) as error:
        raise SubmissionError(f"{path}: expected json [joints, vertices] ({error})") from None
    for points, count, what in ((joints, 21, "joints"), (vertices, 778, "vertices")):
        if points.ndim != 3 or points.shape != (len(joints), count, 3) or not np.isfinite(points).all():
            raise SubmissionError(f"{path}: expected finite {what} ({len(joints)}, {count}, 3), got {points.shape}")
    if len(joints) and np.median(np.ptp(joints, axis=1).max(-1)) > 2:
        raise SubmissionError(f"{path}: the hands are metres large; are these millimetres?")
    return joints, vertices
