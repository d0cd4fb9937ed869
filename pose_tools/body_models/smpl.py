"""The SMPL body: parameters → 6890 vertices and 24 joints, from the user's file, from arrays, or from the stand-in body."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import torch

from pose_tools.body_models import checks
from pose_tools.body_models.kinematics import SMPL_PARENTS
from pose_tools.body_models.lbs_model import BodyOutput, SkinnedModel, as_rotations


class Smpl(SkinnedModel):
    """One body. `smpl(global_orient, body_pose, betas, transl)` → `BodyOutput`, metres. `joints` (B, 24, 3) in SMPL's order."""

    def __init__(self, arrays: Mapping[str, Any]) -> None:
        checks.check_smpl(arrays)
        super().__init__(arrays, SMPL_PARENTS, num_betas=10)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any]) -> Smpl:
        """From the arrays of a SMPL file (names as in the file). Raises ValueError when they are not a body's."""
        return cls(arrays)

    def forward(
        self,
        global_orient: torch.Tensor,
        body_pose: torch.Tensor,
        betas: torch.Tensor | None = None,
        transl: torch.Tensor | None = None,
        *,
        pose_format: Literal["axis_angle", "rotation_matrix"] = "axis_angle",
    ) -> BodyOutput:
        """Pose the body.

        Args:
            global_orient: (B, 3) axis-angle or (B, 3, 3). body_pose: "axis_angle" (B, 69) radians, "rotation_matrix" (B, 23, 3, 3).
            betas: (B, 10), None = zeros. transl: (B, 3) metres, None = zeros.
        """
        if pose_format not in ("axis_angle", "rotation_matrix"):
            raise ValueError(f"pose_format={pose_format!r}: expected 'axis_angle' or 'rotation_matrix'")
        root = as_rotations(self.precise(global_orient), 1, "global_orient", matrices=global_orient.ndim > 2)
        body = as_rotations(self.precise(body_pose), 23, "body_pose", matrices=pose_format == "rotation_matrix")
        rotations, betas, transl = checks.same_batch(root, body, betas, transl, self.num_betas)
        return BodyOutput(*self.pose_and_skin(rotations, betas, transl))
