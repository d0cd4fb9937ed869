"""The synthetic world as a FreiHAND folder: 224-px pictures of right hands, four colour versions each, and the published json lists.

A left hand of the world enters mirrored, picture and parameters. The version blocks follow each other (image i carries
annotation i mod N), masks are those of the first block. Labels are exact: joints, vertices and parameters agree to rounding.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from data.synthetic import factors, hands, journal, scenes, world
from pose_tools.files import write_text
from pose_tools.geometry import project
from pose_tools.views import View, crop

SIZE = 224
VERSIONS = 4
_SCENE = (448, 448)
_LISTS = ("K", "scale", "xyz", "verts", "mano")


def write_freihand(folder: str | Path, split: factors.Split, seed: int, count: int, workers: int = 1) -> Iterator[int]:
    """Brings a folder to `count` annotations and writes the json lists; yields how many there are.

    train fills `training` (four versions of each), test or val fills `evaluation` (one version each): a folder holds one of the two.
    """
    folder, split = Path(folder), factors.check_split(split)
    name, manifest = f"annotations-{_set_name(split)}.jsonl", f"manifest-{_set_name(split)}.json"
    settings = {"kind": "freihand", "split": split, "seed": seed, "annotations": count, **scenes.world_version()}
    yield from journal.fill(folder, name, manifest, settings, partial(_write_annotation, folder, split, seed, count), count, workers)
    records = journal.read_lines(folder / name, "it was there a moment ago")[:count]
    for key in _LISTS:
        write_text(folder / f"{_set_name(split)}_{key}.json", json.dumps([record[key] for record in records]))


def _set_name(split: str) -> str:
    return "training" if split == "train" else "evaluation"


def _write_annotation(folder: Path, split: factors.Split, seed: int, count: int, index: int) -> str:
    """Pictures, mask and labels of annotation `index` of `count`."""
    scene, hand, scene_index = _scene_with_hand(split, seed, index)
    rng = world.picture_rng(seed, split, scene_index, 20_000)
    picture, mask = scene.picture, scene.mask == (1 if hand["side"] == "left" else 2)
    pose, intrinsics = _as_right(hand, np.array(scene.record["camera"]["intrinsics"]), picture.shape[1])
    if hand["side"] == "left":
        picture, mask = picture[:, ::-1], mask[:, ::-1]
    vertices, joints = hands.pose_hand("right", pose["global_orient"], pose["hand_pose"], pose["betas"], pose["transl"])
    view = _crop(rng, project(joints, intrinsics))
    picture = view.warp(picture, fill=picture.mean((0, 1)))
    mask = view.warp(mask.astype(np.uint8) * 255, interpolation="nearest")
    part = _set_name(split)
    files = {}
    for version in range(VERSIONS if part == "training" else 1):
        image = picture if version == 0 else _recolour(rng, picture, mask)
        files[f"{part}/rgb/{version * count + index:08d}.jpg"] = _jpeg(image)
    if part == "training":
        files[f"{part}/mask/{index:08d}.jpg"] = _jpeg(np.repeat(mask[:, :, None], 3, axis=2))
    return journal.save(folder, {"id": f"{split}-{index:06d}", **_labels(pose, vertices, joints, view.matrix @ intrinsics)}, files)


def _scene_with_hand(split: factors.Split, seed: int, index: int) -> tuple[world.Scene, dict[str, Any], int]:
    """The scene of an annotation: the `index`-th of those without an empty picture, found from its number alone."""
    for offset in range(100):
        scene_index = 1_000_000 + index * 100 + offset
        if world.draw_plan(world.picture_rng(seed, split, scene_index, 0), split).hands:
            scene = world.make_scene(seed, split, scene_index, _SCENE)
            return scene, scene.record["hands"][-1 if offset % 2 == 0 else 0], scene_index
    raise world.SceneError(f"{split} annotation {index}: a hundred scenes without a hand")


def _as_right(hand: dict[str, Any], intrinsics: np.ndarray, width: int) -> tuple[dict[str, np.ndarray], np.ndarray]:
    """MANO parameters and intrinsics of the hand, of its mirror image when it is a left one."""
    pose = {key: np.array(value) for key, value in hand["mano"].items()}
    if hand["side"] == "right":
        return pose, intrinsics
    flipped = intrinsics.copy()
    flipped[0, 2] = width - intrinsics[0, 2]
    return {
        "global_orient": pose["global_orient"] * hands.MIRROR, "hand_pose": hands.for_side(pose["hand_pose"], "left"),
        "betas": pose["betas"], "transl": pose["transl"] * [-1, 1, 1],
    }, flipped  # fmt: skip


def _crop(rng: np.random.Generator, joints_2d: np.ndarray) -> View:
    """The 224-px picture around the hand, with some room and shift."""
    low, high = joints_2d.min(0), joints_2d.max(0)
    side = (high - low).max()
    middle = (low + high) / 2 + side * rng.uniform(-0.1, 0.1, 2)
    return crop([*(middle - side / 2), *(middle + side / 2)], SIZE, scale=rng.uniform(1.5, 2.1))


def _recolour(rng: np.random.Generator, picture: np.ndarray, mask: np.ndarray) -> np.ndarray:
    """Another colour version: other background tint, slightly other hand."""
    soft = cv2.GaussianBlur(mask, (0, 0), 1.5)[:, :, None] / 255.0
    tint = picture * rng.uniform(0.5, 1.4, 3) + rng.uniform(-30, 30, 3)
    hand = picture * (rng.uniform(0.85, 1.12) * rng.uniform(0.96, 1.04, 3))
    return np.clip(soft * hand + (1 - soft) * tint, 0, 255).astype(np.uint8)


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, 94])[1].tobytes()


def _labels(pose: dict[str, np.ndarray], vertices: np.ndarray, joints: np.ndarray, intrinsics: np.ndarray) -> dict[str, Any]:
    """The five lists' entries: the pose is stored relative to the mean pose, the root as pixel and f / z."""
    mean = hands.mano("right").hands_mean.numpy().astype(float)
    root = intrinsics @ joints[9]
    focal = (intrinsics[0, 0] + intrinsics[1, 1]) / 2
    numbers = [*pose["global_orient"], *(pose["hand_pose"] - mean), *pose["betas"], *(root[:2] / root[2]), focal / root[2]]
    return {
        "K": intrinsics.tolist(), "scale": float(np.linalg.norm(joints[10] - joints[9])),
        "xyz": joints.round(7).tolist(), "verts": vertices.round(6).tolist(), "mano": [[float(v) for v in numbers]],
    }  # fmt: skip
