"""Which points of the scanned rooms belong to each picture of EgoBody, cut out once, in the published files.

Stage 1 ("s1"): every 15th picture (and the first of each room) gets the points in front of its camera, and the pictures up to the next
share them: OUT/pcd_verts_dict_SPLIT.pkl {image key: (n, 3) float64, the Kinect's frame}, OUT/map_dict_SPLIT.pkl {image key: key of
the picture whose points it uses}. Stage 2 ("s2"): OUT/SPLIT/REC/DATE/FRAME.npy (n, 3) float64, the scan's frame (y up): the cube around
the true body for training, around stage 1's translation for testing. Any scan, any picture size; a stopped run goes on.
"""

from __future__ import annotations

import io
import logging
import pickle
from collections.abc import Iterator, Sequence
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import trimesh

from data.ego_body import EgoBody
from data.ego_body_cameras import Cameras, EgoBodyError, image_key, stage2_name
from data.synthetic import journal
from pose_tools.body_models import load_smpl
from pose_tools.egohmr.body import PosedBody, true_body
from pose_tools.egohmr.scene import TARGET, SceneError, crop_stage1, crop_stage2, transform
from pose_tools.files import atomic_path

logger = logging.getLogger(__name__)

SPACING = 15
"""Pictures that share stage 1's points."""


@lru_cache(maxsize=64)
def read_points(path: str | Path) -> np.ndarray:
    """The vertices (N, 3) float64 of a scan (.obj, .ply, …: what trimesh reads; or .npy, .npz with `points`), in the file's order, metres.

    Raises SceneError for a file without points.
    """
    path = Path(path)
    if not path.is_file():
        raise SceneError(f"{path}: there is no such scan")
    try:
        if path.suffix in (".npy", ".npz"):
            found = np.load(path, allow_pickle=False)
            points = found["points"] if path.suffix == ".npz" else found
        else:
            points = trimesh.load(path, process=False).vertices  # its own merging would reorder the vertices
    except (ValueError, KeyError, OSError, EOFError, AttributeError, IndexError) as error:
        raise SceneError(f"{path} cannot be read as a scan: {error}") from error
    points = np.asarray(points, dtype=np.float32).astype(np.float64)  # as published: coordinates pass through float32
    if points.ndim != 2 or points.shape[1] != 3 or not len(points):
        raise SceneError(f"{path} holds an array {points.shape}: expected points (N, 3) in metres")
    return points


def scan_of(folder: Path, scene: str) -> np.ndarray:
    """The points of one of EgoBody's rooms, its own frame."""
    return read_points(folder / "scene_mesh" / scene / f"{scene}.obj")


def preprocess_stage1(
    folder: str | Path, split: Any, out: str | Path, *, target: int = TARGET, spacing: int = SPACING, workers: int = 1
) -> Iterator[int]:
    """Writes stage 1's two pickles of a split; yields how many clouds there are, first what was there. Raises EgoBodyError, SceneError."""
    folder, out = Path(folder), Path(out)
    _cameras.cache_clear()  # the folder may have grown since it was last read
    data = EgoBody(folder, split, smpl=load_smpl())
    names = [data.name(index) for index in range(len(data))]
    chosen = keyframes(data.cameras, names, spacing)
    settings = {"kind": "s1", "split": split, "points": target, "spacing": spacing, "pictures": len(names)}
    write = partial(_write_stage1, folder, out, split, tuple(names[index] for index in chosen), target)
    yield from journal.fill(out, f"s1-{split}.jsonl", f"s1-{split}-manifest.json", settings, write, len(chosen), workers)
    clouds = {image_key(names[index]): np.load(out / _part(split, number)) for number, index in enumerate(chosen)}
    owner = np.searchsorted(chosen, np.arange(len(names)), side="right") - 1
    shared = {image_key(name): image_key(names[chosen[number]]) for name, number in zip(names, owner)}
    for kind, content in (("pcd_verts_dict", clouds), ("map_dict", shared)):
        with atomic_path(out / f"{kind}_{split}.pkl") as path, path.open("wb") as file:
            pickle.dump(content, file, protocol=2)


def keyframes(cameras: Cameras, names: list[str], spacing: int = SPACING) -> list[int]:
    """The pictures that get points of their own: every `spacing`-th, and where another room begins."""
    scenes = [cameras.scene(name) for name in names]
    return [index for index in range(len(names)) if index % spacing == 0 or scenes[index] != scenes[index - 1]]


def _part(split: str, number: int) -> str:
    return f"s1-{split}/{number:06d}.npy"


def _write_stage1(folder: Path, out: Path, split: str, names: tuple[str, ...], target: int, number: int) -> str:
    name = names[number]
    return journal.save(out, {"id": name}, {_part(split, number): _npy(_stage1_points(folder, _cameras(folder), name, target))})


def _stage1_points(folder: Path, cameras: Cameras, name: str, target: int) -> np.ndarray:
    """(target, 3), the Kinect's frame."""
    scan = scan_of(folder, cameras.scene(name))
    with _named(name):
        return crop_stage1(scan, np.linalg.inv(cameras.kinect_to_scene(name)), cameras.kinect_to_camera(name), target=target)


def preprocess_stage2(
    folder: str | Path,
    split: str,
    out: str | Path,
    *,
    smpl: Any = None,
    transl: Any = None,
    target: int = TARGET,
    size: float = 2.0,
    seed: int = 0,
    workers: int = 1,
) -> Iterator[int]:
    """Writes stage 2's points of a split's pictures; yields how many there are, first what was there.

    Args:
        smpl: path of SMPL files or None for the stand-in: the true bodies the cubes of training are laid around.
        transl: stage 1's results.pkl for testing; None lays the cubes around the true bodies, shifted at random, as for training.
        seed: of turns and shifts; every picture's are a function of (seed, split, picture).

    Raises EgoBodyError, SceneError.
    """
    folder, out = Path(folder), Path(out)
    _data.cache_clear()  # the folder may have grown since it was last read
    data = _data(folder, split, smpl, transl if transl is None else str(transl))
    around = "true bodies" if transl is None else "stage 1's translations"
    settings = {"kind": "s2", "split": split, "points": target, "size": size, "seed": seed, "pictures": len(data), "around": around}
    write = partial(_write_stage2, folder, split, smpl, None if transl is None else str(transl), out, target, size, seed)
    yield from journal.fill(out, f"s2-{split}.jsonl", f"s2-{split}-manifest.json", settings, write, len(data), workers)


def _write_stage2(
    folder: Path, split: str, smpl: Any, transl: str | None, out: Path, target: int, size: float, seed: int, index: int
) -> str:
    data = _data(folder, split, smpl, transl)
    cloud = _stage2_points(data, index, None if data.transl is None else data.transl[index], target=target, size=size, seed=seed)
    return journal.save(out, {"id": data.name(index)}, {f"{split}/{stage2_name(data.name(index))}": _npy(cloud)})


def _stage2_points(data: EgoBody, index: int, transl: Any, *, target: int, size: float, seed: int) -> np.ndarray:
    """(target, 3), the scan's frame: around `transl` (3,), or with None around the true body, shifted at random."""
    name = data.name(index)
    scan, to_scene = scan_of(data.folder, data.cameras.scene(name)), np.linalg.inv(data.cameras.scene_to_camera(name))
    chance = (seed, ("train", "val", "test").index(data.split), index)
    with _named(name):
        if transl is not None:
            centre, body = _into_the_scan(scan, transform(np.asarray(transl, np.float64)[None], to_scene)[0], size, name), None
        else:
            body = transform(true_bodies(data, [index]).vertices[0].double().numpy(), to_scene)
            centre = body.mean(0)
        return crop_stage2(scan, centre, body=body, seed=chance, size=size, target=target)


def _into_the_scan(scan: np.ndarray, centre: np.ndarray, size: float, name: str) -> np.ndarray:
    """The centre (3,) of a cube; where stage 1 found the person outside the room, so that it would be empty, the scan's nearest point."""
    offset = np.abs(scan - centre)[:, [0, 2]]
    if (offset <= size / 2).all(1).any() or not np.isfinite(centre).all():
        return centre
    nearest = scan[np.square(offset).sum(1).argmin()]
    logger.warning("picture %s: stage 1 found the person %.1f m outside the scan", name, np.linalg.norm((nearest - centre)[[0, 2]]))
    return np.array([nearest[0], centre[1], nearest[2]])


def cut_out(
    data: EgoBody, index: int, stage: int, transl: Any = None, *, target: int = TARGET, size: float = 2.0, seed: int = 0
) -> np.ndarray:
    """The points (target, 3) of one picture in the camera's frame, without files: what the preprocessed ones would hold, but that in
    stage 1 no two pictures share them. `transl` (3,) metres is where stage 1 found the person, for stage 2."""
    name = data.name(index)
    if stage == 1:
        return transform(_stage1_points(data.folder, data.cameras, name, target), data.cameras.kinect_to_camera(name))
    points = _stage2_points(data, index, transl, target=target, size=size, seed=seed)
    return transform(points, data.cameras.scene_to_camera(name))


def true_bodies(data: EgoBody, indices: Sequence[int]) -> PosedBody:
    """The annotated bodies of some pictures, by the bodies of their gender; camera frame, metres."""
    names = {"global_orient": "global_orient_pv", "body_pose": "pose", "betas": "shape", "transl": "transl_pv"}
    rows = {ours: torch.as_tensor(np.asarray(data.rows[theirs][list(indices)], np.float32)) for ours, theirs in names.items()}
    gender = torch.tensor([0 if data.gender(index) == "male" else 1 for index in indices])
    with torch.no_grad():
        return true_body(data.bodies, rows, gender)


@lru_cache(maxsize=2)
def _cameras(folder: Path) -> Cameras:
    return Cameras(folder)


@lru_cache(maxsize=2)
def _data(folder: Path, split: Any, smpl: str | None, transl: str | None) -> EgoBody:
    bodies = load_smpl() if smpl is None else {gender: load_smpl(smpl, gender) for gender in ("neutral", "male", "female")}
    return EgoBody(folder, split, smpl=bodies, transl=transl)


class _named:
    """Says which picture a scene's error belongs to."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __enter__(self) -> None: ...

    def __exit__(self, kind: Any, error: BaseException | None, trace: Any) -> None:
        if isinstance(error, SceneError):
            raise EgoBodyError(f"picture {self.name}: {error}") from error


def _npy(points: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.asarray(points, dtype=np.float64), allow_pickle=False)
    return buffer.getvalue()
