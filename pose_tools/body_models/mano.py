"""The MANO hand: parameters → 778 vertices and 21 joints, from the user's file, from arrays, or from the stand-in hand."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch

from pose_tools.body_models import checks, skinning
from pose_tools.body_models.kinematics import FREIHAND_FROM_MANO, MANO_PARENTS, TIP_VERTICES
from pose_tools.body_models.lbs_model import BodyOutput, SkinnedModel, as_rotations
from pose_tools.types import Side

PoseFormat = Literal["axis_angle", "rotation_matrix", "pca"]


class Mano(SkinnedModel):
    """One hand. `mano(global_orient, hand_pose, betas, transl)` → `BodyOutput`, metres; `mano.double()` for float64.

    The root turns about the wrist joint, which does not lie at the origin. `joints` are in FreiHAND order (wrist, thumb …
    pinky, each base to tip), `joints_16` in MANO's.

    `pose_mean` (45,) and `pose_covariance` (45, 45) or None: absolute axis-angle of the scans that came with the file.
    """

    def __init__(self, arrays: Mapping[str, Any], side: Side) -> None:
        checks.check_mano(arrays, side)
        super().__init__(checks.repair_left(arrays, side), MANO_PARENTS, num_betas=10)
        self.side: Side = side
        for name, vertices in TIP_VERTICES.items():
            self.register_buffer(f"tips_{name}", torch.tensor(vertices), persistent=False)
        order = torch.cat([self.place, torch.arange(16, 21)])[list(FREIHAND_FROM_MANO)]
        self.register_buffer("joint_21", order, persistent=False)
        self.register_buffer("joint_21_place", order.argsort(), persistent=False)
        for name in ("hands_components", "hands_mean"):
            self.register_buffer(name, torch.tensor(np.asarray(arrays[name], dtype=np.float64), dtype=torch.float32), persistent=False)
        mean, covariance = _pose_statistics(arrays)
        self.register_buffer("pose_mean", mean, persistent=False)
        self.register_buffer("pose_covariance", covariance, persistent=False)

    @classmethod
    def from_arrays(cls, arrays: Mapping[str, Any], side: Side) -> Mano:
        """From the arrays of a MANO file (names as in the file). Raises ValueError when they are not a hand's."""
        return cls(arrays, side)

    def forward(
        self,
        global_orient: torch.Tensor,
        hand_pose: torch.Tensor,
        betas: torch.Tensor | None = None,
        transl: torch.Tensor | None = None,
        *,
        pose_format: PoseFormat = "axis_angle",
        flat_hand_mean: bool = True,
        tips: str = "freihand",
    ) -> BodyOutput:
        """Pose the hand.

        Args:
            global_orient: (B, 3) axis-angle or (B, 3, 3), whatever the format of `hand_pose`.
            hand_pose: "axis_angle" (B, 45) radians; "rotation_matrix" (B, 15, 3, 3); "pca" (B, n ≤ 45) coefficients, all really
                multiplied with the components (smplx takes 45 of them for axis-angle).
            betas: (B, 10), None = zeros. transl: (B, 3) metres, None = zeros.
            flat_hand_mean: True: `hand_pose` is absolute. False: it is relative to the mean pose (FreiHAND, InterHand, DexYCB).
                Rotation matrices are always absolute, as in smplx.
            tips: whose finger-tip vertices complete the 21 joints: "freihand", "smplx", "manopth" or "ho3d".
        """
        if tips not in TIP_VERTICES:
            raise ValueError(f"tips={tips!r}: expected one of {', '.join(TIP_VERTICES)}")
        if global_orient.ndim not in (2, 3, 4):
            raise ValueError(f"global_orient has shape {tuple(global_orient.shape)}: expected (B, 3) or (B, 3, 3)")
        root = as_rotations(self.precise(global_orient), 1, "global_orient", matrices=global_orient.ndim > 2)
        fingers = self._finger_rotations(self.precise(hand_pose), pose_format, flat_hand_mean)
        rotations, betas, transl = checks.same_batch(root, fingers, betas, transl, self.num_betas)
        picked = skinning.Picked(getattr(self, f"tips_{tips}"), self.joint_21, self.joint_21_place)
        vertices, joints_16, joints = self.pose_and_skin(rotations, betas, transl, picked)
        return BodyOutput(vertices, joints, joints_16)

    def absolute_pose(
        self, hand_pose: torch.Tensor, *, pose_format: PoseFormat = "axis_angle", flat_hand_mean: bool = False
    ) -> torch.Tensor:
        """Absolute axis-angle (B, 45) from a pose relative to the mean (axis-angle, or PCA coefficients (B, n))."""
        hand_pose = self.precise(hand_pose)
        if pose_format == "pca":
            count = hand_pose.shape[-1]
            if hand_pose.ndim != 2 or not 1 <= count <= 45:
                raise ValueError(f"hand_pose has shape {tuple(hand_pose.shape)}: expected PCA coefficients (B, n) with n from 1 to 45")
            with torch.autocast(hand_pose.device.type, enabled=False):
                hand_pose = hand_pose @ self.hands_components[:count].to(hand_pose.dtype)
        elif pose_format != "axis_angle":
            raise ValueError(f"pose_format={pose_format!r}: expected 'axis_angle' or 'pca' here")
        return hand_pose if flat_hand_mean else hand_pose.reshape(-1, 45) + self.hands_mean

    def _finger_rotations(self, hand_pose: torch.Tensor, pose_format: PoseFormat, flat_hand_mean: bool) -> torch.Tensor:
        if pose_format == "rotation_matrix":
            return as_rotations(hand_pose, 15, "hand_pose", matrices=True)
        if pose_format not in ("axis_angle", "pca"):
            raise ValueError(f"pose_format={pose_format!r}: expected 'axis_angle', 'rotation_matrix' or 'pca'")
        if pose_format == "axis_angle" and tuple(hand_pose.shape[1:]) not in ((45,), (15, 3)):
            raise ValueError(
                f"hand_pose has shape {tuple(hand_pose.shape)}: expected axis-angle (B, 45); "
                "use pose_format='rotation_matrix' or 'pca' for other kinds"
            )
        return as_rotations(
            self.absolute_pose(hand_pose, pose_format=pose_format, flat_hand_mean=flat_hand_mean), 15, "hand_pose", matrices=False
        )


def _pose_statistics(arrays: Mapping[str, Any]) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Mean (45,) and covariance (45, 45) of the file's poses, `hands_coeffs` (N, 45); without enough of them, `hands_mean` and None."""
    mean, coefficients = np.asarray(arrays["hands_mean"], dtype=np.float64).ravel(), arrays.get("hands_coeffs")
    if coefficients is None or np.ndim(coefficients) != 2 or np.shape(coefficients)[0] < 90 or np.shape(coefficients)[1] != 45:
        return torch.tensor(mean, dtype=torch.float32), None
    poses = mean + np.asarray(coefficients, dtype=np.float64) @ np.asarray(arrays["hands_components"], dtype=np.float64)
    return torch.tensor(poses.mean(0), dtype=torch.float32), torch.tensor(np.cov(poses.T), dtype=torch.float32)


def mirror_arrays(arrays: Mapping[str, Any]) -> dict[str, Any]:
    """The arrays of the other hand: x → −x; axis-angle (x, y, z) → (x, −y, −z); faces turned round. Its own inverse."""
    flip = np.array([-1.0, 1.0, 1.0])
    twist = np.tile([1.0, -1.0, -1.0], 15)
    # R → M R M with M = diag(−1, 1, 1): entries with exactly one index x change sign.
    feature = np.tile(np.outer(flip, flip).ravel(), 15)
    out = dict(arrays)
    out["v_template"] = np.asarray(arrays["v_template"]) * flip
    out["shapedirs"] = np.asarray(arrays["shapedirs"]) * flip[:, None]
    out["posedirs"] = np.asarray(arrays["posedirs"]) * flip[:, None] * feature
    out["f"] = np.ascontiguousarray(np.asarray(arrays["f"])[:, ::-1])
    out["hands_mean"] = np.asarray(arrays["hands_mean"]) * twist
    out["hands_components"] = np.asarray(arrays["hands_components"]) * twist
    if "J" in arrays:
        out["J"] = np.asarray(arrays["J"]) * flip
    return out
