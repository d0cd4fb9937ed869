"""What MANO and SMPL share: a template, shape and pose directions, a joint regressor and skin weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import nn

from pose_tools.body_models import skinning


@dataclass(frozen=True)
class BodyOutput:
    """`vertices` (B, V, 3) and `joints` (B, 21 | 24, 3), metres: a hand's 21 in FreiHAND order, a body's 24 in SMPL's.
    `joints_16` (B, 16, 3): a hand's joints in MANO's order; None for a body."""

    vertices: torch.Tensor
    joints: torch.Tensor
    joints_16: torch.Tensor | None = None


class SkinnedModel(nn.Module):
    """Linear blend skinning from a model file's arrays. Buffers only; nothing to train. `faces` (F, 3) int64."""

    def __init__(self, arrays: Mapping[str, Any], parents: tuple[int, ...], num_betas: int) -> None:
        super().__init__()
        self.parents = parents
        self._levels, self._order = skinning.tree_levels(parents)
        template, shape = _dense(arrays["v_template"]), _dense(arrays["shapedirs"])[:, :, :num_betas]
        pose, regressor = _dense(arrays["posedirs"]), _dense(arrays["J_regressor"])
        # Channel-major (3, V) rows keep every product and the skinning itself on contiguous memory.
        blend = np.concatenate([shape, pose], 2).transpose(2, 1, 0).reshape(shape.shape[2] + pose.shape[2], -1)
        joints, joint_dirs = regressor @ template, np.einsum("jv,vck->kjc", regressor, shape)
        values = {
            "template": template.T.reshape(-1), "blend": blend, "joints_at_rest": joints.reshape(-1),
            "joint_dirs": joint_dirs.reshape(len(joint_dirs), -1), "skin_weights": _dense(arrays["weights"]).T,
        }
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32), persistent=False)
        self.register_buffer("faces", torch.tensor(np.asarray(arrays["f"]).astype(np.int64)), persistent=False)

    @property
    def num_betas(self) -> int:
        return self.joint_dirs.shape[0]

    def _pose_and_skin(self, rotations: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Vertices (B, V, 3) and joints (B, J, 3) from `rotations` (B, J, 3, 3) relative to the parents, `betas` (B, n), `transl` (B, 3)."""
        batch, count = rotations.shape[:2]
        pose_feature = (rotations[:, 1:] - torch.eye(3, dtype=rotations.dtype, device=rotations.device)).reshape(batch, -1)
        rest = torch.addmm(self.template, torch.cat([betas, pose_feature], 1), self.blend).view(batch, 3, -1)
        joints = torch.addmm(self.joints_at_rest, betas, self.joint_dirs).view(batch, count, 3)
        turned, placed = skinning.world_transforms(rotations, joints, self._levels, self._order)
        placed = placed + transl[:, None]
        moved = placed - (turned @ joints.unsqueeze(-1)).squeeze(-1)
        transforms = torch.cat([turned, moved.unsqueeze(-1)], -1).flatten(2).transpose(1, 2)
        return skinning.skin(rest, transforms, self.skin_weights), placed


def _dense(array: Any) -> np.ndarray:
    return np.asarray(array.toarray() if hasattr(array, "toarray") else array, dtype=np.float64)


def as_rotations(pose: torch.Tensor, count: int, name: str, matrices: bool) -> torch.Tensor:
    """Rotations (B, count, 3, 3) from axis-angle (B, 3·count) | (B, count, 3) or matrices (B, count, 3, 3) | (B, 3, 3) for one joint.

    Raises ValueError when the shape is neither.
    """
    shape = tuple(pose.shape)
    if matrices:
        if shape[1:] == (count, 3, 3):
            return pose
        if count == 1 and shape[1:] == (3, 3):
            return pose[:, None]
        raise ValueError(f"{name} has shape {shape}: expected rotation matrices (B, {count}, 3, 3)" + (" or (B, 3, 3)" if count == 1 else ""))
    if shape[1:] in ((3 * count,), (count, 3)):
        return skinning.rotations_from_axis_angle(pose.reshape(-1, count, 3))
    raise ValueError(f"{name} has shape {shape}: expected axis-angle (B, {3 * count}); rotation matrices need pose_format='rotation_matrix'")
