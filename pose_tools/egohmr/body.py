"""The body as EgoHMR sees it: SMPL's 45 key points, BODY_25, which 2-D key point decides each joint's visibility, mirror orders."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor

from pose_tools.body_models import BodyOutput, Smpl
from pose_tools.geometry import Order6D, axis_angle_to_matrix, rotation_6d_to_matrix

Gender = Literal["neutral", "male", "female"]

JOINTS = 24
EXTRA_VERTICES = (
    332,
    6260,
    2800,
    4071,
    583,
    3216,
    3226,
    3387,
    6617,
    6624,
    6787,
    2746,
    2319,
    2445,
    2556,
    2673,
    6191,
    5782,
    5905,
    6016,
    6133,
)
"""SMPL vertices that stand for nose, eyes, ears, feet and finger tips: key points 24–44 (as smplx orders them)."""

BODY_25 = (24, 12, 17, 19, 21, 16, 18, 20, 0, 2, 5, 8, 1, 4, 7, 25, 26, 27, 28, 29, 30, 31, 32, 33, 34)
"""Gather: which of the 45 SMPL key points fills each BODY_25 slot."""

VISIBLE_STRICT = (8, 12, 9, 8, 13, 10, 8, 14, 11, 8, 14, 11, 0, 5, 2, 0, 5, 2, 6, 3, 7, 4, 7, 4)
VISIBLE_LOOSE = (8, 13, 10, 8, 13, 10, 8, 14, 11, 8, 14, 11, 1, 5, 2, 0, 5, 2, 6, 3, 7, 4, 7, 4)
"""Which BODY_25 key point decides whether each SMPL joint is visible; in the loose map hips follow the knees and the neck the neck."""

MIRROR_BODY_25 = (0, 1, 5, 6, 7, 2, 3, 4, 8, 12, 13, 14, 9, 10, 11, 16, 15, 18, 17, 22, 23, 24, 19, 20, 21)
MIRROR_SMPL = (0, 2, 1, 3, 5, 4, 6, 8, 7, 9, 11, 10, 12, 14, 13, 15, 17, 16, 19, 18, 21, 20, 23, 22)

MID_HIP = 8


@dataclass(frozen=True)
class PosedBody:
    """A posed body: `vertices` (B, 6890, 3), `joints` (B, 24, 3), metres, and the `pose` (B, 24, 3, 3) that made it, root first."""

    vertices: Tensor
    joints: Tensor
    pose: Tensor


def pose_body(smpl: Smpl, pose: Tensor, betas: Tensor, transl: Tensor | None = None) -> PosedBody:
    """SMPL at rotations `pose` (B, 24, 3, 3) parent-relative, root first, and `betas` (B, 10)."""
    out = smpl(pose[:, 0], pose[:, 1:], betas, transl, pose_format="rotation_matrix")
    return PosedBody(out.vertices, out.joints, pose)


def decode_pose(x: Tensor, order: Order6D) -> Tensor:
    """Poses (…, 144) or (…, 24, 6) in a 6D order → rotations (…, 24, 3, 3)."""
    return rotation_6d_to_matrix(x.unflatten(-1, (JOINTS, 6)) if x.shape[-1] == 6 * JOINTS else x, order)


def keypoints_45(body: PosedBody | BodyOutput) -> Tensor:
    """The 45 key points (B, 45, 3) of a posed body: its 24 joints and 21 vertices, in smplx's order."""
    return torch.cat([body.joints, body.vertices[:, list(EXTRA_VERTICES)]], 1)


def visible_joints(keypoints: Tensor, loose: bool) -> Tensor:
    """Per SMPL joint (B, 24) bool: has its BODY_25 key point, `keypoints` (B, 25, 3), a confidence above 0? The mid-hip always has."""
    seen = keypoints[..., 2] > 0
    seen = torch.cat([seen[:, :MID_HIP], torch.ones_like(seen[:, :1]), seen[:, MID_HIP + 1 :]], 1)
    return seen[:, list(VISIBLE_LOOSE if loose else VISIBLE_STRICT)]


def vertex_owners(smpl: Smpl) -> Tensor:
    """(V,) int64: the joint that each vertex follows most."""
    return smpl.by_level[smpl.weights.argmax(0)]


def bodies_by_gender(smpl: Smpl | Mapping[str, Smpl]) -> dict[str, Smpl]:
    """One body for all genders, or {"neutral", "male", "female"} → that dictionary; missing genders use the neutral body."""
    given = {"neutral": smpl} if isinstance(smpl, Smpl) else dict(smpl)
    if "neutral" not in given or set(given) - {"neutral", "male", "female"}:
        raise ValueError(f"bodies by gender need 'neutral', and may have 'male' and 'female'; got {', '.join(given) or 'nothing'}")
    return {gender: given.get(gender, given["neutral"]) for gender in ("neutral", "male", "female")}


def true_body(bodies: Any, parameters: Mapping[str, Tensor], gender: Tensor, *, placed: bool = True) -> PosedBody:
    """The annotated bodies of a batch, by the gendered bodies of `bodies_by_gender`.

    `parameters`: global_orient (B, 3), body_pose (B, 69), betas (B, 10), transl (B, 3), rotations as axis-angle (or matrices
    (B, 1 | 23, 3, 3)); `gender` (B,) int, 0 male, 1 female. `placed=False` leaves the translation out.
    """
    pose = true_pose(parameters)
    transl = parameters["transl"] if placed else None
    if bodies["male"] is bodies["female"]:
        return pose_body(bodies["male"], pose, parameters["betas"], transl)
    found = {name: pose_body(bodies[name], pose, parameters["betas"], transl) for name in ("male", "female")}
    pick = (gender == 1)[:, None, None]
    vertices, joints = (torch.where(pick, getattr(found["female"], n), getattr(found["male"], n)) for n in ("vertices", "joints"))
    return PosedBody(vertices, joints, pose)


def true_pose(parameters: Mapping[str, Tensor]) -> Tensor:
    """Annotated rotations (B, 24, 3, 3) from axis-angle or matrices, root first."""
    parts = []
    for name, count in (("global_orient", 1), ("body_pose", JOINTS - 1)):
        value = parameters[name]
        if value.dim() > 2 and value.shape[-2:] == (3, 3):  # three people's axis-angle is (3, 3) too
            parts.append(value.reshape(-1, count, 3, 3))
        elif value[0].numel() == 3 * count:
            parts.append(axis_angle_to_matrix(value.reshape(-1, count, 3)))
        else:
            raise ValueError(f"{name} has shape {tuple(value.shape)}: expected axis-angle (B, {3 * count}) or matrices (B, {count}, 3, 3)")
    return torch.cat(parts, 1)
