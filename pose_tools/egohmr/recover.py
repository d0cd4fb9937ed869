"""From one picture with a person's box and a scan to bodies: both stages, with what the samples say together and what had to be assumed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.spatial import cKDTree

from pose_tools.egohmr.body import JOINTS, PosedBody
from pose_tools.egohmr.collision import CapsuleField, collision_ratio
from pose_tools.egohmr.evaluate import contact_distance
from pose_tools.egohmr.folder import EgoHMR
from pose_tools.egohmr.guidance import Guidance
from pose_tools.egohmr.prepare import around_person, prepare_scene
from pose_tools.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from pose_tools.types import BodyPose

LEVEL = (0.0, -1.0, 0.0)
"""Upwards in the frame of a camera that is held level."""
TILTED = 50.0
"""Degrees that a camera may be tilted from level when the scan says where up is."""
EYE_HEIGHT = 1.6


@dataclass(frozen=True)
class Recovered:
    """S bodies of one person, camera frame, metres.

    `poses`: their parameters; `vertices` (S, V, 3), `joints` (S, 24, 3); `visible` (24,) bool: the joint's key point was seen; `spread`
    (24,): mean distance of the samples' joint from its mean; `transl_std` (3,) standard deviation of the translation, None where the model
    has none; `collision` (S,) share of the points around inside the body; `contact` (S,) from the body to the nearest point.
    """

    poses: tuple[BodyPose, ...]
    vertices: np.ndarray
    joints: np.ndarray
    visible: np.ndarray
    spread: np.ndarray
    transl_std: np.ndarray | None
    collision: np.ndarray
    contact: np.ndarray
    up: np.ndarray
    assumed: tuple[str, ...]


def recover(
    model: EgoHMR, image: np.ndarray, bbox_xyxy: Any, intrinsics: Any, scene: Any, keypoints_2d: Any = None, *,
    samples: int = 5, up: Any = None, sampler: str = "dpm++", steps: int = 15, guided: bool = True, seed: int = 0,
) -> Recovered:  # fmt: skip
    """Bodies of the person in the box. Arguments as in `prepare_scene`; `up` (3,) is the upward direction (None: `upward` of the scan).

    Raises what `prepare_scene` raises, ValueError for 0 samples.
    """
    if samples < 1:
        raise ValueError(f"samples={samples}: at least one body is needed")
    batch, assumed = prepare_scene(image, bbox_xyxy, intrinsics, scene, keypoints_2d, side=model.sizes.side, target=model.sizes.points)
    scene = np.asarray(scene, np.float64)
    scene = scene[np.isfinite(scene).all(1)]
    if up is None:
        up, known = upward(scene)
        assumed += [] if known else ["the scan has no level surface: the camera is taken as level"]
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        first = model.stage1(batch, 1)
        transl = _into(scene, first["transl"][0, 0].numpy().astype(float))
        cloud = around_person(scene, transl, up=up, target=model.sizes.points)
        field = CapsuleField(model.stage2.smpl)
        features = model.stage2.encode(batch | {"scene_pcd_verts_full": cloud}, transl=torch.from_numpy(transl).float()[None])
        out = model.stage2.sample(
            features, samples, sampler, steps, guidance=Guidance(field) if guided else None, generator=generator
        )
        body = PosedBody(out["vertices"][0], out["joints"][0], out["pose"][0])
        inside = collision_ratio(field, body, cloud.expand(samples, -1, -1))
    joints = body.joints.double().numpy()
    return Recovered(
        _poses(out, joints), body.vertices.double().numpy(), joints, out["visible"][0].numpy(),
        np.linalg.norm(joints - joints.mean(0), axis=-1).mean(0), first["transl_std"][0].numpy() if "transl_std" in first else None,
        inside.numpy(), contact_distance(body.vertices[None], cloud)[0], np.asarray(up, float), tuple(assumed),
    )  # fmt: skip


def upward(points: np.ndarray) -> tuple[np.ndarray, bool]:
    """The upward direction (3,) of a scan (N, 3) in a camera's frame, and whether the scan says so: what its level surfaces, most of a
    room's floor, tables and seats, are perpendicular to. A camera lying on its side is not thought of: see `TILTED`."""
    level = np.array(LEVEL)
    points = points[:: max(1, len(points) // 3000)]
    if len(points) < 50:
        return level, False
    _, rows = cKDTree(points).query(points, k=12)
    around = points[rows] - points[rows].mean(1, keepdims=True)
    sizes, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
    flat = sizes[:, 0] < 0.05 * sizes[:, 1]
    normals = axes[flat, :, 0]
    normals = normals * np.where(normals @ level < 0, -1, 1)[:, None]
    found = level
    for degrees in (TILTED, 25, 10, 5):  # first whatever may be meant, then what agrees
        near = normals[normals @ found > np.cos(np.radians(degrees))]
        if len(near) < max(20, 0.05 * len(points)):
            return level, False
        found = np.median(near, 0) if degrees == TILTED else near.mean(0)
        found = found / np.linalg.norm(found)
    return found, True


def bare_floor(intrinsics: np.ndarray) -> np.ndarray:
    """Points (N, 3) of a floor `EYE_HEIGHT` below a level camera: what is assumed where there is no scan."""
    x, z = np.meshgrid(np.arange(-3, 3.01, 0.08), np.arange(0.4, 7, 0.08))
    return np.stack([x.ravel(), np.full(x.size, EYE_HEIGHT), z.ravel()], 1)


def box_of_keypoints(keypoints: np.ndarray, size: tuple[int, int]) -> np.ndarray | None:
    """The box (4,) xyxy around the key points (25, 3) that were seen, with room for the flesh, inside a picture `size`; None for none."""
    seen = np.isfinite(keypoints).all(1) & (keypoints[:, 2] > 0)
    if not seen.any():
        return None
    low, high = keypoints[seen, :2].min(0), keypoints[seen, :2].max(0)
    margin = 0.08 * (high - low).max() + 0.01 * max(size)
    return np.concatenate([np.maximum(low - margin, 0), np.minimum(high + margin, size)])


def _into(scene: np.ndarray, transl: np.ndarray) -> np.ndarray:
    """The translation; where nothing of the scan is near it, at the same place in the picture but as far away as the scan's middle."""
    if (np.abs(scene - transl)[:, [0, 2]] < 1).all(1).any() or transl[2] <= 0:
        return transl
    along = scene @ transl / np.linalg.norm(transl)
    return transl * (np.median(along[along > 0]) / np.linalg.norm(transl)) if (along > 0).any() else transl


def _poses(out: dict[str, Any], joints: np.ndarray) -> tuple[BodyPose, ...]:
    angles = matrix_to_axis_angle(out["pose"][0].double()).reshape(-1, 3 * JOINTS).numpy()
    betas, transl = out["betas"][0].double().numpy(), out["transl"][0].double().numpy()
    return tuple(BodyPose(a[:3], a[3:], b, t, j) for a, b, t, j in zip(angles, betas, transl, joints, strict=True))


def posture(joints: np.ndarray, up: np.ndarray) -> str:
    """Joints (24, 3) of a body → "sitting", "bending" or "standing"."""

    def angle(a: int, b: int, to: np.ndarray) -> float:
        bone = joints[b] - joints[a]
        return float(np.degrees(np.arccos(np.clip(bone @ to / max(np.linalg.norm(bone), 1e-9), -1, 1))))

    thighs = np.mean([angle(1, 4, -up), angle(2, 5, -up)])
    shins = np.mean([angle(4, 7, -up), angle(5, 8, -up)])
    if thighs > 50 and shins < thighs:
        return "sitting"
    return "bending" if angle(0, 12, up) > 30 else "standing"


def facing(pose: BodyPose, up: np.ndarray) -> str:
    """Where the front of a body looks: towards the camera, away from it, or left or right in the picture."""
    front = axis_angle_to_matrix(torch.from_numpy(np.asarray(pose.global_orient, float)))[:, 2].numpy()
    front = front - up * (front @ up)
    if abs(front[2]) >= abs(front[0]):
        return "away from the camera" if front[2] > 0 else "towards the camera"
    return "right" if front[0] > 0 else "left"


def most_common(words: Sequence[str]) -> tuple[str, float]:
    """The word that most say, and their share."""
    best = max(dict.fromkeys(words), key=lambda word: list(words).count(word))
    return best, list(words).count(best) / len(words)
