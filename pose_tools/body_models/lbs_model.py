"""What MANO and SMPL share: a template, shape and pose directions, a joint regressor and skin weights."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
import torch
from torch import nn

from pose_tools.body_models import skinning
from pose_tools.geometry import axis_angle_to_matrix


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
        self._tree = skinning.tree_levels(parents)
        order = self._tree.order
        template, shape = _dense(arrays["v_template"]), _dense(arrays["shapedirs"])[:, :, :num_betas]
        pose, regressor = _dense(arrays["posedirs"]), _dense(arrays["J_regressor"])[order]
        rest = np.column_stack([regressor @ template, np.ones(len(order))])
        rest_dirs = np.einsum("jv,vck->kjc", regressor, shape)
        blend = np.concatenate([shape, pose], 2).transpose(2, 1, 0)
        values = {
            "template": (template - pose.reshape(*pose.shape[:2], -1, 9) @ np.eye(3).ravel() @ np.ones(len(order) - 1)).T.reshape(-1),
            "blend": blend.reshape(len(blend), -1),
            "joints_at_rest": rest.reshape(-1),
            "joint_dirs": np.concatenate([rest_dirs, np.zeros_like(rest_dirs[:, :, :1])], 2).reshape(len(rest_dirs), -1),
            "weights": _dense(arrays["weights"]).T[order],
            "bottom": np.tile([0.0, 0.0, 0.0, 1.0], (1, len(order), 1, 1)),
        }
        for name, value in values.items():
            self.register_buffer(name, torch.tensor(np.ascontiguousarray(value), dtype=torch.float32), persistent=False)
        place = np.argsort(order)
        numbers = {"faces": np.asarray(arrays["f"]).astype(np.int64), "by_level": np.array(order), "place": place}
        numbers["below"] = np.array(order[1:]) - 1
        numbers["parent_places"] = place[[parents[j] for j in order[1:]]]
        for name, value in numbers.items():
            self.register_buffer(name, torch.tensor(value), persistent=False)
        self._constants: skinning.Arrays | None = None

    @property
    def num_betas(self) -> int:
        return self.joint_dirs.shape[0]

    def _apply(self, fn, recurse=True):
        self._constants = None  # the buffers are about to move
        return super()._apply(fn, recurse)

    def constants(self, dtype: torch.dtype) -> skinning.Arrays:
        """The constants in `dtype`; the buffers themselves where they have it already."""
        if self._constants is None:
            self._constants = skinning.Arrays(*(getattr(self, name) for name in skinning.Arrays._fields))
        if self._constants.template.dtype == dtype:
            return self._constants
        return skinning.Arrays(*(value.to(dtype) if value.is_floating_point() else value for value in self._constants))

    def with_vertices(self, rows: torch.Tensor) -> Self:
        """The same model with some of its vertices only (`rows`, int64), and no faces: the same joints for a share of the cost."""
        found = copy.deepcopy(self)
        columns = (len(self.template) // 3 * torch.arange(3)[:, None] + rows.cpu()).flatten().to(rows.device)
        found.template, found.blend = self.template[columns], self.blend[:, columns].contiguous()
        found.weights, found.faces = self.weights[:, rows].contiguous(), self.faces[:0]
        found._constants = None
        return found

    def precise(self, value: torch.Tensor) -> torch.Tensor:
        """`value` in the model's own precision, or in float64 where it comes in that."""
        return value if value.dtype == self.template.dtype else value.to(torch.promote_types(value.dtype, self.template.dtype))

    def pose_and_skin(
        self, rotations: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, picked: skinning.Picked | None = None
    ) -> tuple[torch.Tensor, ...]:
        """Vertices (B, V, 3) and joints (B, J, 3) from parent-relative `rotations` (B, J, 3, 3), `betas` (B, n), `transl` (B, 3);
        with `picked` also those points."""
        kind = rotations.device.type
        if torch.is_autocast_enabled(kind):
            # Half precision moves finger tips by millimetres: mixed-precision training leaves this layer in float32.
            with torch.autocast(kind, enabled=False):
                return self.pose_and_skin(rotations, betas, transl, picked)
        if not rotations.dtype == betas.dtype == transl.dtype:
            widest = torch.promote_types(torch.promote_types(rotations.dtype, betas.dtype), transl.dtype)
            rotations, betas, transl = rotations.to(widest), betas.to(widest), transl.to(widest)
        return skinning.pose_and_skin(rotations, betas, transl, self.constants(rotations.dtype), self._tree, picked)


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
        raise ValueError(
            f"{name} has shape {shape}: expected rotation matrices (B, {count}, 3, 3)" + (" or (B, 3, 3)" if count == 1 else "")
        )
    if shape[1:] in ((3 * count,), (count, 3)):
        return axis_angle_to_matrix(pose.reshape(-1, count, 3))
    raise ValueError(
        f"{name} has shape {shape}: expected axis-angle (B, {3 * count}); rotation matrices need pose_format='rotation_matrix'"
    )
