"""Rooms and people as an EgoBody folder: scans, calibrations, egocentric frames cut off and hidden by furniture, SMPL labels.

A recording is one room with one person, in `FRAMES` frames of other poses and views. The published files are written as published (see
`data/ego_body.py`); beside the annotations' own entries stand `joints_visible` (n, 24), `keypoints_visible` (n, 25): in the picture and
not behind furniture. Labels are exact: parameters, joints, cameras and key points (before their noise) agree to rounding.
"""

from __future__ import annotations

import json
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch

from data.synthetic import factors, journal, room_people
from data.synthetic.room_people import Person
from data.synthetic.rooms import Room, make_room
from pose_tools.egohmr.body import BODY_25, EXTRA_VERTICES
from pose_tools.egohmr.scene import FLIP_YZ
from pose_tools.files import atomic_path, write_text
from pose_tools.geometry import axis_angle_to_matrix, matrix_to_axis_angle, project
from pose_tools.raster import rasterise

FRAMES = 10
SIZE = (480, 270)
"""Width and height of a picture: a quarter of EgoBody's."""
FOCAL = 0.755
"""Focal length over the picture's width, about that of EgoBody's camera."""
LEAST_JOINTS = 7
"""So many joints must be seen, the head among them, for a frame to be taken."""
HIDDEN_BY = 0.12
"""Metres that a surface must lie before a joint to hide it: joints are inside the body."""

VERSION = 1
"""Raised when the pictures or labels of a seed change."""

_BOOLS = ("joints_visible", "keypoints_visible")


class RoomError(RuntimeError):
    """No frame could be made where one should be; the message names it."""


@dataclass(frozen=True)
class _Recording:
    """What the frames of a recording share. Matrices (4, 4) carry points: `kinect_to_scene`, `kinect_to_holo`."""

    name: str
    room: Room
    betas: np.ndarray
    female: bool
    clothes: np.ndarray
    kinect_to_scene: np.ndarray
    kinect_to_holo: np.ndarray


def write_ego_body(folder: str | Path, split: factors.Split, seed: int, count: int, workers: int = 1) -> Iterator[int]:
    """Brings a split of the folder to `count` frames and writes its annotations and calibrations; yields how many there are."""
    folder, split = Path(folder), factors.check_split(split)
    name, manifest = f"frames-{split}.jsonl", f"manifest-{split}.json"
    settings = {"kind": "ego-body", "split": split, "seed": seed, "version": VERSION, "size": list(SIZE)}
    yield from journal.fill(folder, name, manifest, settings, partial(_write_frame, folder, split, seed), count, workers)
    records = journal.read_lines(folder / name, "it was there a moment ago")
    for number in range((len(records) + FRAMES - 1) // FRAMES):
        _write_recording(folder, split, seed, number)
    _write_annotations(folder, split, records)
    _write_transforms(folder)


@lru_cache(maxsize=2)
def _recording(split: factors.Split, seed: int, number: int) -> _Recording:
    rng = np.random.default_rng([seed, factors.SPLITS.index(split), number, 5])
    room, betas = make_room(rng), np.clip(rng.normal(0, 0.8, 10), -2, 2)
    clothes = rng.uniform(0.15, 0.9, (4, 3))  # trousers, shirt, skin, hair
    clothes[2] = np.array([0.95, 0.75, 0.62]) * rng.uniform(0.45, 1.0)
    clothes[3] = np.array([0.35, 0.25, 0.18]) * rng.uniform(0.2, 1.6)
    kinect = _rigid(rng, [rng.uniform(-1, 1), 1.5, rng.uniform(-1, 1)])
    female = bool(rng.random() < 0.5)
    return _Recording(f"recording_{split}_{seed}_{number:05d}", room, betas, female, clothes, kinect, _rigid(rng, rng.normal(0, 1, 3)))


def _rigid(rng: np.random.Generator, position: Any) -> np.ndarray:
    matrix = np.eye(4)
    matrix[:3, :3] = axis_angle_to_matrix(torch.from_numpy(rng.normal(0, 1, 3))).numpy()
    matrix[:3, 3] = position
    return matrix


def _write_frame(folder: Path, split: factors.Split, seed: int, index: int) -> str:
    """Picture and labels of frame `index`."""
    recording = _recording(split, seed, index // FRAMES)
    for attempt in range(60):
        rng = np.random.default_rng([seed, factors.SPLITS.index(split), index, 6, attempt])
        place = recording.room.places[rng.integers(len(recording.room.places))]
        person = room_people.put_person(rng, recording.room, place, recording.betas, tries=2)
        if person is None:
            continue
        scene_to_camera = _look_at(rng, recording.room, person)
        labels = _labels(rng, recording, person, scene_to_camera)
        if labels is not None:
            break
    else:
        raise RoomError(f"{recording.name}, frame {index}: sixty views without a person in sight")
    picture = _draw(rng, recording, person, scene_to_camera)
    timestamp = f"{132_000_000_000_000_000 + index * 333_333}"
    labels["imgname"] = f"egocentric_color/{recording.name}/2021-09-07-000000/PV/{timestamp}_frame_{index % FRAMES:05d}.jpg"
    labels["world_to_pv"] = (FLIP_YZ @ scene_to_camera @ recording.kinect_to_scene @ np.linalg.inv(recording.kinect_to_holo)).tolist()
    jpeg = cv2.imencode(".jpg", picture[:, :, ::-1], [cv2.IMWRITE_JPEG_QUALITY, 92])[1].tobytes()
    return journal.save(folder, {"id": f"{split}-{index:06d}", **labels}, {labels["imgname"]: jpeg})


def _look_at(rng: np.random.Generator, room: Room, person: Person) -> np.ndarray:
    """Scene → camera (4, 4) of a wearer who stands or sits in the room and looks at the person, more or less."""
    half = np.array(room.size) / 2 - 0.25
    ahead = person.place.yaw + rng.normal(0, 0.9)
    far = rng.uniform(1.1, 2.8)
    spot = np.clip(person.joints[0, [0, 2]] + far * np.array([np.sin(ahead), np.cos(ahead)]), -half, half)
    eye = np.array([spot[0], rng.uniform(1.05, 1.25) if rng.random() < 0.3 else rng.uniform(1.45, 1.75), spot[1]])
    target = person.joints[rng.choice([15, 12, 9, 6, 3, 0])] + rng.normal(0, 0.12, 3)
    z = target - eye
    z /= np.linalg.norm(z)
    x = np.cross(z, [0.0, 1.0, 0.0])
    x /= np.linalg.norm(x)
    roll = rng.normal(0, 0.05)
    y = np.cross(z, x)
    x, y = np.cos(roll) * x + np.sin(roll) * y, np.cos(roll) * y - np.sin(roll) * x
    matrix = np.eye(4)
    matrix[:3, :3] = np.stack([x, y, z])
    matrix[:3, 3] = -matrix[:3, :3] @ eye
    return matrix


def _intrinsics() -> np.ndarray:
    return np.array([[FOCAL * SIZE[0], 0, SIZE[0] / 2], [0, FOCAL * SIZE[0], SIZE[1] / 2], [0, 0, 1.0]])


def _labels(rng: np.random.Generator, recording: _Recording, person: Person, scene_to_camera: np.ndarray) -> dict[str, Any] | None:
    """The annotation's entries, camera frame; None for a view in which too little is seen."""
    turn, move = scene_to_camera[:3, :3], scene_to_camera[:3, 3]
    joints = person.joints @ turn.T + move
    extra = person.vertices[list(EXTRA_VERTICES)] @ turn.T + move
    keypoints_3d = np.concatenate([joints, extra])[list(BODY_25)]
    if not _in_picture(joints[15:16])[0]:
        return None
    half = (SIZE[0] // 2, SIZE[1] // 2)
    depth = rasterise(recording.room.vertices @ turn.T + move, recording.room.faces, np.diag([0.5, 0.5, 1]) @ _intrinsics(), half).depth
    joints_visible, seen = _seen(joints, depth), _seen(keypoints_3d, depth)
    if joints_visible.sum() < LEAST_JOINTS or not joints_visible[15]:
        return None
    exact = project(keypoints_3d, _intrinsics())
    noisy = exact + rng.normal(0, 1.2, exact.shape)
    confidence = np.where(seen, rng.uniform(0.45, 0.95, 25), 0.0)
    box = _box(noisy[seen])
    orient = matrix_to_axis_angle(torch.from_numpy(turn) @ axis_angle_to_matrix(torch.from_numpy(person.global_orient))).numpy()
    rest = person.joints[0] - person.transl  # the pelvis, about which the body turns
    return {
        "center": ((box[:2] + box[2:]) / 2).tolist(), "scale": float((box[2:] - box[:2]).max() / 200),
        "pose": person.body_pose.tolist(), "shape": person.betas.tolist(), "global_orient_pv": orient.tolist(),
        "transl_pv": (joints[0] - rest).tolist(), "cx": SIZE[0] / 2, "cy": SIZE[1] / 2, "fx": FOCAL * SIZE[0], "fy": FOCAL * SIZE[0],
        "valid_keypoints": np.concatenate([noisy * seen[:, None], confidence[:, None]], 1).round(4).tolist(),
        "3d_joints_pv": joints.tolist(), "gender": "f" if recording.female else "m", "place": person.place.kind,
        "joints_visible": joints_visible.tolist(), "keypoints_visible": seen.tolist(),
    }  # fmt: skip


def _in_picture(points: np.ndarray) -> np.ndarray:
    pixels = project(points, _intrinsics())
    return (points[:, 2] > 0.1) & (pixels >= 0).all(1) & (pixels < np.array(SIZE)).all(1)


def _seen(points: np.ndarray, depth: np.ndarray) -> np.ndarray:
    """Which points (P, 3) are in the picture and before the room's surfaces; `depth` is drawn at half its size."""
    found = _in_picture(points)
    at = (project(points, _intrinsics()) / 2).astype(int)
    for number in np.flatnonzero(found):
        found[number] = depth[at[number, 1], at[number, 0]] > points[number, 2] - HIDDEN_BY
    return found


def _box(points: np.ndarray) -> np.ndarray:
    """Around the key points, with room for flesh, inside the picture: (4,) xyxy."""
    low, high = points.min(0), points.max(0)
    margin = 0.08 * (high - low).max() + 4
    return np.concatenate([np.maximum(low - margin, 0), np.minimum(high + margin, SIZE)])


def _draw(rng: np.random.Generator, recording: _Recording, person: Person, scene_to_camera: np.ndarray) -> np.ndarray:
    room, smpl = recording.room, room_people.body()
    owner = room_people.owners()
    part = np.where(np.isin(owner, [0, 1, 2, 4, 5]), 0, np.where(np.isin(owner, [12, 15, 20, 21, 22, 23]), 2, 1))
    rest = smpl.template.reshape(3, -1).numpy()
    head = owner == 15
    part[head & ((rest[1] > np.quantile(rest[1, head], 0.72)) | (rest[2] < np.quantile(rest[2, head], 0.35)))] = 3
    colours = recording.clothes[part]
    colours[np.isin(owner, [7, 8, 10, 11])] = 0.15
    points = np.concatenate([room.vertices, person.vertices]) @ scene_to_camera[:3, :3].T + scene_to_camera[:3, 3]
    faces = np.concatenate([room.faces, smpl.faces.numpy() + len(room.vertices)])
    lamp = scene_to_camera[:3, :3] @ np.array([0.3, 0.9, 0.25])
    drawn = rasterise(points, faces, _intrinsics(), SIZE, colours=np.concatenate([room.colours, colours]), light=lamp, ambient=0.55)
    assert drawn.colour is not None
    picture = np.where(np.isfinite(drawn.depth)[..., None], drawn.colour, 0.85) * rng.uniform(0.75, 1.1)
    return np.clip(255 * picture + rng.normal(0, 3, picture.shape), 0, 255).astype(np.uint8)


def _write_recording(folder: Path, split: factors.Split, seed: int, number: int) -> None:
    """The scan and the calibration of a recording, where they are not there yet."""
    recording = _recording(split, seed, number)
    scene = recording.name.replace("recording", "room")
    path = folder / "scene_mesh" / scene / f"{scene}.obj"
    if not path.is_file():
        lines = [f"v {x:.5f} {y:.5f} {z:.5f}" for x, y, z in recording.room.vertices]
        lines += [f"f {a} {b} {c}" for a, b, c in recording.room.faces + 1]
        write_text(path, "\n".join([*lines, ""]))
    place = folder / "calibrations" / recording.name / "cal_trans" / "kinect12_to_world" / f"{scene}.json"
    write_text(place, json.dumps({"trans": recording.kinect_to_scene.tolist(), "kinect_to_holo": recording.kinect_to_holo.tolist()}))


def _write_annotations(folder: Path, split: factors.Split, records: list[dict[str, Any]]) -> None:
    names = [
        "imgname", "center", "scale", "pose", "shape", "global_orient_pv", "transl_pv", "cx", "cy", "fx", "fy", "valid_keypoints",
        "3d_joints_pv", "gender", "place", *_BOOLS,
    ]  # fmt: skip
    with atomic_path(folder / "annotation_egocentric_smpl_npz" / f"egocapture_{split}_smpl.npz") as path, path.open("wb") as file:
        columns: Any = {name: np.array([record[name] for record in records]) for name in names}
        np.savez_compressed(file, **columns)


def _write_transforms(folder: Path) -> None:
    """What belongs to all splits of the folder together: the list of recordings and the cameras of every frame."""
    transforms: dict[str, Any]
    rows, transforms = ["recording_name,scene_name,body_idx_0,body_idx_1,body_idx_fpv,start_frame,end_frame"], {}
    for split in factors.SPLITS:
        if not (folder / f"frames-{split}.jsonl").is_file():
            continue
        for record in journal.read_lines(folder / f"frames-{split}.jsonl", "it was there a moment ago"):
            name, timestamp = record["imgname"].split("/")[1], Path(record["imgname"]).name.split("_")[0]
            if name not in transforms:
                scene = name.replace("recording", "room")
                calibration = folder / "calibrations" / name / "cal_trans" / "kinect12_to_world" / f"{scene}.json"
                holo = json.loads(calibration.read_text())["kinect_to_holo"]
                transforms[name] = {"trans_kinect2holo": np.array(holo), "trans_world2pv": {}}
                rows.append(f"{name},{scene},0 person,1 person,1 person,0,{FRAMES}")
            transforms[name]["trans_world2pv"][timestamp] = np.array(record["world_to_pv"])
    write_text(folder / "data_info_release.csv", "\n".join([*rows, ""]))
    with atomic_path(folder / "transf_matrices_all_seqs.pkl") as path:
        path.write_bytes(pickle.dumps(transforms, protocol=2))
