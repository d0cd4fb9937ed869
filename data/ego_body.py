"""EgoBody on disk → what both stages of EgoHMR are given: one person seen by the wearer of a headset, and the scanned room.

    annotation_egocentric_smpl_npz/egocapture_SPLIT_smpl.npz    one row a picture: box, key points, SMPL parameters, camera
    egocentric_color/REC/DATE/PV/TIME_frame_N.jpg               the pictures; the path in `imgname`
    transf_matrices_all_seqs.pkl, calibrations/REC/cal_trans/kinect12_to_world/SCENE.json, data_info_release.csv, scene_mesh/SCENE/SCENE.obj

The rooms' points are those that `scripts/preprocess_scenes.py` cut out (or the published programs did): stage 1's in two pickles in the
Kinect's frame, stage 2's in one .npy a picture in the scan's frame. Everything comes out in the headset camera's frame: x right, y down,
z forward, metres. Pickles are read without running anything in them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch

from data.ego_body_cameras import Cameras, EgoBodyError, image_key, recording_of, stage2_name
from pose_tools.body_models import Smpl
from pose_tools.body_models.read import read_plain_pickle
from pose_tools.egohmr.body import MIRROR_BODY_25, MIRROR_SMPL, bodies_by_gender
from pose_tools.egohmr.camera import FOCAL_UNIT
from pose_tools.egohmr.prepare import BOX_SCALE, MEAN, SIDE, STD
from pose_tools.egohmr.scene import transform
from pose_tools.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from pose_tools.image_io import read_image

ANNOTATIONS = "annotation_egocentric_smpl_npz/egocapture_{split}_smpl.npz"
FIELDS = {
    "imgname": (), "center": (2,), "scale": (), "pose": (69,), "shape": (10,), "global_orient_pv": (3,), "transl_pv": (3,),
    "cx": (), "cy": (), "fx": (), "fy": (), "valid_keypoints": (25, 3), "gender": (),
}  # fmt: skip
"""Columns of an annotation file and the shape of a row; `3d_joints_pv` has 24 rows or more."""

NUMBERS = [name for name in FIELDS if name not in ("imgname", "gender")]

Batch = dict[str, Any]


@dataclass(frozen=True)
class Augmentation:
    """What is done to a training picture and to everything that belongs to it (spec: ProHMR's, with a mirrored scene).

    `shift` (2,) in box sides, `scale` of the box, `turn` degrees, `flip` left for right, `gain` (3,) of the colours.
    """

    shift: tuple[float, float] = (0.0, 0.0)
    scale: float = 1.0
    turn: float = 0.0
    flip: bool = False
    gain: tuple[float, float, float] = (1.0, 1.0, 1.0)

    @classmethod
    def draw(cls, rng: np.random.Generator) -> Augmentation:
        """The published distribution."""
        shift = np.clip(rng.standard_normal(2), -1, 1) * 0.02
        scale = 1 + 0.3 * np.clip(rng.standard_normal(), -1, 1)
        turn = 30 * np.clip(rng.standard_normal(), -2, 2) if rng.random() < 0.6 else 0.0
        flip = bool(rng.random() < 0.5)
        return cls(tuple(shift.tolist()), float(scale), float(turn), flip, tuple(rng.uniform(0.8, 1.2, 3).tolist()))


class EgoBody:
    """The pictures of one split, in the order of the annotation file.

    Args:
        folder: EgoBody's root.
        scenes: the folder of the points that were cut out; None leaves the scene out of the items.
        stage: which points: 1, everything in front of the camera; 2, the cube around the person.
        transl: stage 1's `results.pkl` (or its (n, 3) array): the translations that stage 2 is tested with.
        smpl: the body, or one for each gender: where the pelvis lies in the rest pose, which a moved body's translation depends on.
        side: of the person's square crop, pixels.
        augment: move, turn, mirror and colour the items as a function of (seed, index, epoch).
        points: so many of a scene's points, drawn anew each epoch (with replacement where it has fewer); None: all.

    Raises EgoBodyError for a folder that lacks files or whose files do not fit each other.
    """

    def __init__(
        self, folder: str | Path, split: Literal["train", "val", "test"], *, smpl: Smpl | Mapping[str, Smpl],
        scenes: str | Path | None = None, stage: Literal[1, 2] = 1, transl: Any = None, side: int = SIDE, augment: bool = False,
        points: int | None = None, seed: int = 0,
    ) -> None:  # fmt: skip
        self.folder, self.split, self.stage, self.side = Path(folder), split, stage, side
        self.augment, self.points, self.seed = augment, points, seed
        self.scenes = None if scenes is None else Path(scenes)
        self.bodies = bodies_by_gender(smpl)
        self.rows = read_annotations(self.folder, split)
        self.cameras = Cameras(self.folder)
        self.transl = None if transl is None else _translations(transl, len(self))

    def __len__(self) -> int:
        return len(self.rows["imgname"])

    def name(self, index: int) -> str:
        """The picture's path in the folder, which is also its key."""
        return str(self.rows["imgname"][index])

    def cluster(self, index: int) -> str:
        """The recording: pictures of one are alike, and intervals are over recordings."""
        return recording_of(self.name(index))

    def picture(self, index: int) -> np.ndarray:
        """(H, W, 3) uint8 RGB, not turned by EXIF, as published."""
        return read_image(self.folder / self.name(index))

    def gender(self, index: int) -> str:
        return "male" if str(self.rows["gender"][index]).startswith("m") else "female"

    def intrinsics(self, index: int) -> np.ndarray:
        """(3, 3) pixels; one focal length serves both axes, as published."""
        fx, cx, cy = (float(self.rows[name][index]) for name in ("fx", "cx", "cy"))
        return np.array([[fx, 0, cx], [0, fx, cy], [0, 0, 1.0]])

    def scene_points(self, index: int) -> np.ndarray:
        """(N, 3) float64, the camera's frame."""
        if self.scenes is None:
            raise EgoBodyError("scenes= is not given: the folder that scripts/preprocess_scenes.py wrote")
        name = self.name(index)
        if self.stage == 1:
            maps = self._stage1_clouds
            key = image_key(name)
            if key not in maps[1] or maps[1][key] not in maps[0]:
                raise EgoBodyError(f"{self.scenes}: no points for {key}; run scripts/preprocess_scenes.py s1 for split {self.split}")
            return transform(maps[0][maps[1][key]], self.cameras.kinect_to_camera(name))
        path = self.scenes / self.split / stage2_name(name)
        if not path.is_file():
            raise EgoBodyError(f"{path} is missing; run scripts/preprocess_scenes.py s2-train|s2-test for split {self.split}")
        return transform(np.load(path, allow_pickle=False), self.cameras.scene_to_camera(name))

    @cached_property
    def _stage1_clouds(self) -> tuple[dict[str, np.ndarray], dict[str, str]]:
        assert self.scenes is not None
        found = []
        for kind in ("pcd_verts_dict", "map_dict"):
            path = self.scenes / f"{kind}_{self.split}.pkl"
            if not path.is_file():
                raise EgoBodyError(f"{path} is missing; run scripts/preprocess_scenes.py s1 for split {self.split}")
            found.append(read_plain_pickle(path, "scene pickle"))
        return found[0], found[1]

    def poses(self) -> dict[str, np.ndarray]:
        """All annotated bodies as float32: global_orient (n, 3), body_pose (n, 69), betas (n, 10), axis-angle, camera frame."""
        names = {"global_orient": "global_orient_pv", "body_pose": "pose", "betas": "shape"}
        return {ours: np.asarray(self.rows[theirs], dtype=np.float32) for ours, theirs in names.items()}

    def __getitem__(self, index: int) -> Batch:
        return self.item(index)

    def item(self, index: int, epoch: int = 0, augmentation: Augmentation | None = None) -> Batch:
        """One picture, as arrays named as in the published loader.

        img (3, side, side) normalised; keypoints_2d (25, 3) in the crop's units and orig_keypoints_2d in the picture's (pixel / size
        − 0.5, confidence); keypoints_2d_vis_mask (25,): found, and inside the crop; keypoints_3d (24, 3) crop camera and
        keypoints_3d_full, metres; smpl_params {global_orient (3,), body_pose (69,), betas (10,), transl (3,)} axis-angle; gender 0 male,
        1 female; fx (pixels / 1500), cam_cx, cam_cy, box_center (2,), box_size in pixels; image_size (2,); with `scenes`
        scene_pcd_verts_full (N, 3); with `transl` stage1_transl_full (3,); transf_kinect2holo, transf_holo2pv (4, 4), the latter into the
        headset camera's own axes (`scene.FLIP_YZ` leads on into ours); imgname.
        """
        if augmentation is None:
            drawn = Augmentation.draw(np.random.default_rng([self.seed, index, epoch])) if self.augment else Augmentation()
        else:
            drawn = augmentation
        picture = self.picture(index)
        found = self._labels(index, epoch, drawn, (picture.shape[1], picture.shape[0]))
        found["img"] = normalised_crop(picture, found.pop("crop"), self.side, drawn.flip, drawn.gain)
        return found

    def _thinned(self, cloud: np.ndarray, index: int, epoch: int) -> np.ndarray:
        """`points` of the cloud, all of it where that is None."""
        if self.points is None or self.points == len(cloud):
            return cloud
        rng = np.random.default_rng([self.seed, index, epoch, 2])
        return cloud[rng.choice(len(cloud), self.points, replace=len(cloud) < self.points)]

    def _labels(self, index: int, epoch: int, drawn: Augmentation, size: tuple[int, int]) -> Batch:
        row = {name: np.asarray(self.rows[name][index], dtype=np.float64) for name in (*NUMBERS, "3d_joints_pv")}
        side = float(np.float32(row["scale"] * BOX_SCALE) * np.float32(200))
        centre = row["center"].astype(np.float32) + side * np.array(drawn.shift)
        name, gender, intrinsics = self.name(index), self.gender(index), self.intrinsics(index)
        moved = _Moved(drawn, centre, side, intrinsics, row["transl_pv"], size, self.side)
        joints = row["3d_joints_pv"][:24]
        keypoints, in_crop = moved.keypoints(row["valid_keypoints"])
        orient, body_pose = moved.pose(row["global_orient_pv"], row["pose"])
        joints_crop, joints_full = moved.points(joints, MIRROR_SMPL)
        transl = joints_full[0] - rest_pelvis(self.bodies[gender], row["shape"]) if drawn != Augmentation() else row["transl_pv"]
        found_inside = (in_crop[:, 2] > 0) & (np.abs(in_crop[:, :2]) <= 0.5).all(1)
        found: Batch = {
            "imgname": name, "crop": moved.crop, "keypoints_2d": in_crop, "orig_keypoints_2d": keypoints,
            "keypoints_2d_vis_mask": found_inside, "keypoints_3d": joints_crop, "keypoints_3d_full": joints_full,
            "smpl_params": {"global_orient": orient, "body_pose": body_pose, "betas": row["shape"], "transl": transl},
            "has_smpl_params": dict.fromkeys(("global_orient", "body_pose", "betas", "transl"), True),
            "smpl_params_is_axis_angle": {"global_orient": True, "body_pose": True, "betas": False, "transl": False},
            "gender": 0 if gender == "male" else 1, "fx": intrinsics[0, 0] / FOCAL_UNIT, "fy": float(row["fy"]) / FOCAL_UNIT,
            "cam_cx": moved.mirrored(intrinsics[0, 2], size[0]), "cam_cy": intrinsics[1, 2],
            "box_center": np.array([moved.mirrored(centre[0], size[0] - 1), centre[1]]), "box_size": side * drawn.scale,
            "image_size": np.array(size, dtype=np.float64), "transf_kinect2holo": self.cameras.kinect_to_holo(name),
            "transf_holo2pv": self.cameras.holo_to_camera(name),
        }  # fmt: skip
        if self.scenes is not None:
            found["scene_pcd_verts_full"] = moved.points(self._thinned(self.scene_points(index), index, epoch))[1]
        if self.transl is not None:
            found["stage1_transl_full"] = self.transl[index]
        return found


class _Moved:
    """Carries out an augmentation on all that belongs to a picture; angles turn contents by −`turn`, mirroring comes first."""

    def __init__(
        self,
        drawn: Augmentation,
        centre: np.ndarray,
        side: float,
        intrinsics: np.ndarray,
        transl: np.ndarray,
        size: tuple[int, int],
        out: int,
    ) -> None:
        self.drawn, self.size, self.out = drawn, size, out
        self.centre = np.array([self.mirrored(centre[0], size[0] - 1), centre[1]])
        self.crop = crop_matrix(self.centre, side * drawn.scale, drawn.turn, out)
        angle = np.deg2rad(-drawn.turn)
        self.turn = np.array([[np.cos(angle), -np.sin(angle), 0], [np.sin(angle), np.cos(angle), 0], [0, 0, 1]])
        focal, depth = intrinsics[0, 0], transl[2]
        # the crop camera's distance is that of the published crop, whatever the side of ours
        at_crop = np.concatenate([transl[:2] - (centre - intrinsics[:2, 2]) * depth / focal, [drawn.scale * side / SIDE * depth]])
        self.to_crop = at_crop - transl

    def mirrored(self, x: Any, width: float) -> Any:
        return width - x if self.drawn.flip else x

    def points(self, points: np.ndarray, order: Sequence[int] | None = None) -> tuple[np.ndarray, np.ndarray]:
        """Points (N, 3) of the camera's frame → (crop camera's frame, full camera's frame); `order` names a mirrored point's partner."""
        points, back = points + self.to_crop, self.to_crop
        if self.drawn.flip:
            points, back = points * [-1, 1, 1], back * [-1, 1, 1]
            points = points[list(order)] if order is not None else points
        points = points @ self.turn.T
        return points, points - back

    def keypoints(self, keypoints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """BODY_25 pixels and confidence (25, 3) → (in units of the picture, in units of the crop)."""
        points = keypoints.copy()
        if self.drawn.flip:
            points[:, 0] = self.size[0] - 1 - points[:, 0]
            points = points[list(MIRROR_BODY_25)]
        full, in_crop = points.copy(), points.copy()
        full[:, :2] = (points[:, :2] - self.centre) @ self.turn[:2, :2].T + self.centre
        full[:, :2] = full[:, :2] / self.size - 0.5
        in_crop[:, :2] = (points[:, :2] @ self.crop[:, :2].T + self.crop[:, 2]) / self.out - 0.5
        return full, in_crop

    def pose(self, orient: np.ndarray, body_pose: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Axis-angle root (3,) and joints (69,) of the moved person."""
        if not self.drawn.flip and not self.drawn.turn:
            return orient, body_pose
        pose = np.concatenate([orient, body_pose]).reshape(24, 3)
        if self.drawn.flip:
            pose = pose[list(MIRROR_SMPL)] * [1, -1, -1]
        turned = torch.from_numpy(self.turn) @ axis_angle_to_matrix(torch.from_numpy(pose[:1].copy()))
        return matrix_to_axis_angle(turned)[0].numpy(), pose[1:].reshape(69)


def crop_matrix(centre: np.ndarray, side: float, turn: float, out: int) -> np.ndarray:
    """(2, 3) from a picture to the crop of `out` pixels around a square box, turned by −`turn` degrees.

    From the box's centre and two sides' middles in single precision, as published: with more digits, one in a thousand of the crop's
    pixels is another grey level.
    """
    half, angle = float(np.float32(side / 2)), np.pi * turn / 180
    down, right = half * np.array([-np.sin(angle), np.cos(angle)]), half * np.array([np.cos(angle), np.sin(angle)])
    points = centre + np.array([[0, 0], down, right], dtype=np.float32)
    return cv2.getAffineTransform(points.astype(np.float32), np.array([[0.5, 0.5], [0.5, 1], [1, 0.5]], np.float32) * out)


def normalised_crop(
    picture: np.ndarray, matrix: np.ndarray, side: int, flip: bool = False, gain: Sequence[float] = (1, 1, 1)
) -> np.ndarray:
    """(H, W, 3) uint8 RGB → (3, side, side) float32: mirrored, cut out by `matrix` (2, 3), coloured, ImageNet's normalisation."""
    picture = np.ascontiguousarray(picture[:, ::-1]) if flip else picture
    cut = cv2.warpAffine(picture, matrix, (side, side), flags=cv2.INTER_LINEAR).astype(np.float32)
    cut = np.clip(cut * np.asarray(gain, np.float32), 0, 255)
    return ((cut - 255 * np.asarray(MEAN, np.float32)) / (255 * np.asarray(STD, np.float32))).transpose(2, 0, 1)


@lru_cache(maxsize=4)
def _pelvis_of(smpl: Smpl) -> tuple[np.ndarray, np.ndarray]:
    """(3,), (3, 10): the rest pelvis and how it moves with the shape."""
    zero = torch.zeros(11, 3)
    with torch.no_grad():
        betas = torch.cat([torch.zeros(1, 10), torch.eye(10)]).to(smpl.template)
        joints = smpl(zero, torch.zeros(11, 69), betas, zero).joints[:, 0].double().numpy()
    return joints[0], (joints[1:] - joints[0]).T


def rest_pelvis(smpl: Smpl, betas: np.ndarray) -> np.ndarray:
    """(3,) metres: where the pelvis, about which the whole body turns, lies for a shape without translation."""
    mean, per_beta = _pelvis_of(smpl)
    return mean + per_beta @ betas


def read_annotations(folder: str | Path, split: str) -> dict[str, np.ndarray]:
    """The columns of a split's annotation file (see `FIELDS`), checked. Raises EgoBodyError."""
    path = Path(folder) / ANNOTATIONS.format(split=split)
    if not path.is_file():
        raise EgoBodyError(f"{path} is missing: unpack EgoBody's annotations there, or make a synthetic folder (make_synthetic.py rooms)")
    try:
        with np.load(path, allow_pickle=False) as file:
            rows = {name: file[name] for name in (*FIELDS, "3d_joints_pv") if name in file}
            rows |= {name: file[name] for name in ("place", "joints_visible") if name in file}
    except (ValueError, OSError, EOFError) as error:
        raise EgoBodyError(f"{path} cannot be read: {error}; is it a whole .npz?") from error
    missing = [name for name in (*FIELDS, "3d_joints_pv") if name not in rows]
    if missing:
        raise EgoBodyError(f"{path} has no column {', '.join(missing)}; it has {', '.join(rows)}")
    count = len(rows["imgname"])
    for name, shape in FIELDS.items():
        if rows[name].shape != (count, *shape):
            raise EgoBodyError(f"{path}: {name} has shape {rows[name].shape}, expected {(count, *shape)}")
    if rows["3d_joints_pv"].shape[0] != count or rows["3d_joints_pv"].ndim != 3 or rows["3d_joints_pv"].shape[1] < 24:
        raise EgoBodyError(f"{path}: 3d_joints_pv has shape {rows['3d_joints_pv'].shape}, expected ({count}, 24 or more, 3)")
    return rows


def _translations(given: Any, count: int) -> np.ndarray:
    if isinstance(given, (str, Path)):
        content = read_plain_pickle(given, "results pickle")
        if "pred_cam_full_list" not in content:
            raise EgoBodyError(f"{given} has no pred_cam_full_list; it has {', '.join(map(str, content))}")
        given = content["pred_cam_full_list"]
    found = np.asarray(given, dtype=np.float64)
    if found.shape != (count, 3) or not np.isfinite(found).all():
        raise EgoBodyError(f"stage 1's translations have shape {found.shape}, expected ({count}, 3): they are of another split or limit")
    return found


def read_mocap(path: str | Path) -> dict[str, np.ndarray]:
    """Poses of real people for the discriminator (`cmu_mocap.npz`): body_pose (N, 69) axis-angle without the root, betas (N, 10)."""
    try:
        with np.load(path, allow_pickle=False) as file:
            pose, betas = (np.asarray(file[name], dtype=np.float32) for name in ("body_pose", "betas"))
    except KeyError as error:
        raise EgoBodyError(f"{path} has no array {error}: expected body_pose and betas") from error
    except (ValueError, OSError, EOFError) as error:
        raise EgoBodyError(f"{path} cannot be read: {error}") from error
    if pose.ndim != 2 or pose.shape[1] not in (69, 72) or betas.shape != (len(pose), 10):
        raise EgoBodyError(f"{path}: body_pose has shape {pose.shape} and betas {betas.shape}, expected (N, 72) and (N, 10)")
    return {"body_pose": pose[:, -69:], "betas": betas}


def collate(items: Sequence[Batch]) -> Batch:
    """Items → one batch: arrays and numbers stacked as float32 tensors (gender int64, flags bool), dicts of them likewise, names listed."""
    return {name: _stack([item[name] for item in items]) for name in items[0]}


def _stack(values: Sequence[Any]) -> Any:
    first = values[0]
    if isinstance(first, dict):
        return collate(values)
    if isinstance(first, str):
        return list(values)
    found = np.stack([np.asarray(value) for value in values])
    return torch.from_numpy(found.astype(np.float32) if found.dtype.kind == "f" else found)
