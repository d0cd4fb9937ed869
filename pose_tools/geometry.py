"""Rotations (6D, matrix, axis-angle), pinhole projection, similarity alignment.

Rotations are torch tensors of any leading shape and float type, and differentiable everywhere, zero and half turns
included. A matrix acts on column vectors: p' = R p. Axis-angle vectors are radians times the unit axis.
"""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import numpy as np
import roma
import torch
from torch.nn import functional

Order6D = Literal["column", "row", "prohmr"]


def rotation_6d_to_matrix(x: torch.Tensor, order: Order6D = "column") -> torch.Tensor:
    """6D (…, 6) → rotation matrices (…, 3, 3), by Gram-Schmidt on the first two columns (Zhou et al., CVPR 2019).

    order "column": first column, then second, [r00 r10 r20 r01 r11 r21]; "prohmr" is the same, under the name of the
    system that made it known. "row": the 3x2 matrix row by row, [r00 r01 r10 r11 r20 r21] (HMR, SPIN, motion diffusion).

    Zero or parallel columns have no rotation: the result is finite, but its dependent columns are zero.
    """
    _expect(x, (6,), "rotation_6d_to_matrix")
    if _is_row(order):
        first, second = x[..., 0::2], x[..., 1::2]
    else:
        first, second = x[..., :3], x[..., 3:]
    b1 = functional.normalize(first, dim=-1, eps=1e-12)
    b2 = functional.normalize(second - (b1 * second).sum(-1, keepdim=True) * b1, dim=-1, eps=1e-12)
    # dim must be said: without it torch crosses the first dimension that happens to have three entries.
    return torch.stack([b1, b2, torch.linalg.cross(b1, b2, dim=-1)], dim=-1)


def matrix_to_rotation_6d(matrix: torch.Tensor, order: Order6D = "column") -> torch.Tensor:
    """Rotation matrices (…, 3, 3) → 6D (…, 6); orders as in `rotation_6d_to_matrix`, of which it is the exact inverse."""
    _expect(matrix, (3, 3), "matrix_to_rotation_6d")
    columns = matrix[..., :2]
    return (columns if _is_row(order) else columns.transpose(-1, -2)).flatten(-2)


def axis_angle_to_matrix(axis_angle: torch.Tensor) -> torch.Tensor:
    """Axis-angle (…, 3) radians → rotation matrices (…, 3, 3), by Rodrigues: R = I + s·[a]ₓ + c·[a]ₓ² with s = sin θ / θ and
    c = (1 − cos θ) / θ².

    Near zero s and c come from their series, so the gradients are right there to the last digit.
    """
    _expect(axis_angle, (3,), "axis_angle_to_matrix")
    square = (axis_angle * axis_angle).sum(-1, keepdim=True)
    small = square < 1e-4
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    half = torch.sin(0.5 * angle)
    s = torch.where(small, 1 - square / 6 * (1 - square / 20), torch.sin(angle) / angle)
    c = torch.where(small, 0.5 - square / 24 * (1 - square / 30), 2 * half * half / safe)
    x, y, z = axis_angle.unbind(-1)
    s, c = s.squeeze(-1), c.squeeze(-1)
    xx, yy, zz, xy, xz, yz = c * x * x, c * y * y, c * z * z, c * x * y, c * x * z, c * y * z
    sx, sy, sz = s * x, s * y, s * z
    flat = torch.stack([1 - yy - zz, xy - sz, xz + sy, xy + sz, 1 - xx - zz, yz - sx, xz - sy, yz + sx, 1 - xx - yy], -1)
    return flat.unflatten(-1, (3, 3))


def matrix_to_axis_angle(matrix: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (…, 3, 3) → axis-angle (…, 3) radians with angles in [0, π].

    Goes through the quaternion with the best-conditioned component, so identity and half turns are accurate and their
    gradients finite. At exactly π both signs of the axis are right, and either may come out.
    """
    _expect(matrix, (3, 3), "matrix_to_axis_angle")
    return roma.rotmat_to_rotvec(matrix)


def project(points: Any, intrinsics: Any) -> Any:
    """Points (…, N, 3) in the camera frame (x right, y down, z forward) → (…, N, 2) pixels, by intrinsics (…, 3, 3).

    NumPy in, NumPy out; torch in, torch out. Points behind the camera (z < 0) come out mirrored through its centre, those
    at z = 0 far away: mask them by z > 0 first.
    """
    for value, shape, name in ((points, (3,), "points"), (intrinsics, (3, 3), "intrinsics")):
        if tuple(value.shape[-len(shape) :]) != shape:
            raise ValueError(f"project: {name} must have shape (…, {', '.join(map(str, shape))}), got {tuple(value.shape)}")
    if isinstance(points, torch.Tensor):
        intrinsics = torch.as_tensor(intrinsics, dtype=points.dtype, device=points.device)
        image = points @ intrinsics.transpose(-1, -2)
        depth = torch.where(image[..., 2:].abs() < 1e-9, 1e-9, image[..., 2:])
        return image[..., :2] / depth
    image = points @ np.swapaxes(np.asarray(intrinsics), -1, -2)
    return image[..., :2] / np.where(np.abs(image[..., 2:]) < 1e-9, 1e-9, image[..., 2:])


class Similarity(NamedTuple):
    """target ≈ scale · (rotation @ p) + translation: `scale` (…,), `rotation` (…, 3, 3), `translation` (…, 3)."""

    scale: np.ndarray
    rotation: np.ndarray
    translation: np.ndarray
    mirrored: np.ndarray
    """(…,) bool: a reflection would have fitted clearly better (or was taken, where allowed)."""

    def apply(self, points: np.ndarray) -> np.ndarray:
        """Points (…, N, 3) moved by the similarity."""
        turned = points @ np.swapaxes(self.rotation, -1, -2)
        return self.scale[..., None, None] * turned + self.translation[..., None, :]


def similarity(
    source: np.ndarray, target: np.ndarray, *, weights: np.ndarray | None = None, with_scale: bool = True, allow_reflection: bool = False
) -> Similarity:
    """The similarity that moves `source` (…, N, D) onto `target` (…, N, D) with the least squares (Umeyama, PAMI 1991).

    `weights` (…, N) ≥ 0 of the squared distances, None for equal ones. Points that all coincide get scale 0. Raises ValueError for
    shapes that differ and for numbers that are not finite.
    """
    source, target = np.asarray(source, dtype=np.float64), np.asarray(target, dtype=np.float64)
    if source.shape != target.shape or source.ndim < 2 or source.shape[-2] == 0:
        raise ValueError(f"alignment needs two equal shapes (…, N, D), got {source.shape} and {target.shape}")
    if not (np.isfinite(source).all() and np.isfinite(target).all()):
        raise ValueError("alignment needs finite points; leave out the missing ones first")
    share = np.full((*source.shape[:-1], 1), 1 / source.shape[-2]) if weights is None else _shares(weights, source.shape[:-1])
    centre_source, centre_target = (share * source).sum(-2, keepdims=True), (share * target).sum(-2, keepdims=True)
    p, q = source - centre_source, target - centre_target
    u, sizes, vt = np.linalg.svd(np.swapaxes(share * q, -1, -2) @ p)
    determinant = np.linalg.det(u @ vt)
    signs = np.ones_like(sizes)
    if not allow_reflection:
        signs[..., -1] = np.where(determinant < 0, -1.0, 1.0)
    rotation = (u * signs[..., None, :]) @ vt
    spread = (share * p**2).sum((-1, -2))
    scale = np.divide((sizes * signs).sum(-1), spread, out=np.zeros_like(spread), where=spread > 0) if with_scale else np.ones_like(spread)
    translation = centre_target[..., 0, :] - scale[..., None] * (rotation @ centre_source[..., 0, :, None])[..., 0]
    # Flat point sets fit their mirror image as well; only a third extent worth speaking of makes a mirrored one.
    return Similarity(scale, rotation, translation, (determinant < 0) & (sizes[..., -1] > 0.01 * sizes[..., 0]))


def _shares(weights: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Weights (…, N) as shares (…, N, 1) of their sum."""
    weights = np.broadcast_to(np.asarray(weights, dtype=np.float64), shape)
    total = weights.sum(-1, keepdims=True)
    if not np.isfinite(weights).all() or (weights < 0).any() or (total <= 0).any():
        raise ValueError("alignment needs finite weights ≥ 0, at least one of them above 0 in every set of points")
    return (weights / total)[..., None]


def _is_row(order: str) -> bool:
    if order not in ("column", "row", "prohmr"):
        raise ValueError(f"order must be 'column', 'row' or 'prohmr', got {order!r}")
    return order == "row"


def _expect(value: torch.Tensor, shape: tuple[int, ...], name: str) -> None:
    if not isinstance(value, torch.Tensor):
        raise TypeError(f"{name}: expected a torch tensor, got {type(value).__name__}; wrap it in torch.as_tensor(…)")
    if tuple(value.shape[-len(shape) :]) != shape:
        raise ValueError(f"{name}: expected shape (…, {', '.join(map(str, shape))}), got {tuple(value.shape)}")
