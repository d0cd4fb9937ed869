"""2.5-D ↔ 3-D: pixels and root-relative depth, scaled by a bone, to camera coordinates (Iqbal et al., ECCV 2018, eq. 6 and 7)."""

from __future__ import annotations

import torch
from torch import Tensor

PRETRAINING_BONE = (0, 2)
"""Wrist and index base, AIT order: the pre-training code's pair."""
PECLR_BONE = (8, 3)
"""Middle PIP and middle base, AIT order: that of PeCLR's fine-tuned net."""


def rays(xy: Tensor, intrinsics: Tensor) -> Tensor:
    """Pixels (…, J, 2) and intrinsics (…, 3, 3) → K⁻¹ [x, y, 1] (…, J, 3)."""
    return torch.cat([xy, torch.ones_like(xy[..., :1])], dim=-1) @ torch.linalg.inv(intrinsics).transpose(-1, -2)


def root_depth(points: Tensor, z_rel: Tensor, bone: tuple[int, int], least: float) -> Tensor:
    """Depth of the root (…,) in units of the bone, from rays (…, J, 3) and relative depths (…, J): where the bone has length 1.

    The larger root of a z² + b z + c = 0; the discriminant and a are at least `least`.
    """
    n, m = bone
    (xn, yn), (xm, ym) = (points[..., i, :2].unbind(-1) for i in (n, m))
    zn, zm = z_rel[..., n], z_rel[..., m]
    a = (xn - xm).square() + (yn - ym).square()
    cross = xn * xm + yn * ym
    b = 2 * (zn * (xn.square() + yn.square() - cross) + zm * (xm.square() + ym.square() - cross))
    c = (xn * zn - xm * zm).square() + (yn * zn - ym * zm).square() + (zn - zm).square() - 1
    return (-b + (b.square() - 4 * a * c).clamp(min=least).sqrt()) / (2 * a.clamp(min=least))


def lift_25d(xy: Tensor, z_rel: Tensor, scale: Tensor, intrinsics: Tensor, *, bone: tuple[int, int] = PRETRAINING_BONE) -> Tensor:
    """Pixels (…, 21, 2), depths relative to the root (…, 21) in bone lengths, bone length (…,) metres, intrinsics (…, 3, 3) →
    camera coordinates (…, 21, 3) metres. Joints in AIT order; `bone` names the joints (FreiHAND order: (0, 5) for the default).
    """
    xy, z_rel, scale, intrinsics = (torch.as_tensor(value) for value in (xy, z_rel, scale, intrinsics))
    if z_rel.dim() == xy.dim() and z_rel.shape[-1] == 1:
        z_rel = z_rel[..., 0]
    if xy.shape[-1] != 2 or z_rel.shape != xy.shape[:-1]:
        raise ValueError(f"lift_25d: expected xy (…, 21, 2) and z_rel (…, 21), got {tuple(xy.shape)} and {tuple(z_rel.shape)}")
    scale = scale.reshape(xy.shape[:-2]) if scale.numel() == xy[..., 0, 0].numel() else scale
    points = rays(xy, intrinsics.to(xy.dtype))
    depth = z_rel + root_depth(points, z_rel, bone, 1e-6)[..., None]
    return points * depth[..., None] * scale[..., None, None]


def to_25d(joints: Tensor, intrinsics: Tensor, *, bone: tuple[int, int] = PRETRAINING_BONE, root: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Camera coordinates (…, 21, 3) metres → (xy (…, 21, 2) pixels, z_rel (…, 21) in bone lengths, bone length (…,) metres)."""
    image = joints @ intrinsics.to(joints.dtype).transpose(-1, -2)
    scale = (joints[..., bone[0], :] - joints[..., bone[1], :]).norm(dim=-1)
    return image[..., :2] / image[..., 2:], (joints[..., 2] - joints[..., root, None, 2]) / scale[..., None], scale
