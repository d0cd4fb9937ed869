"""Linear blend skinning, fast on a CPU: 3 × 4 transforms, one product with the skin weights, cache-sized slices.

Source of the formulas: Loper et al., SMPL (2015), equations 2–9; Romero et al., MANO (2017) uses the same.
"""

from __future__ import annotations

import torch

_SLICE = 1 << 18
"""Floats of blended transforms held at a time: what fits the second-level cache."""


class _Skin(torch.autograd.Function):
    """vertices (B, 3, V) × transforms (B, 12, J) × weights (J, V) → posed vertices (B, V, 3), without keeping (B, 12, V)."""

    @staticmethod
    def forward(ctx, points: torch.Tensor, transforms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
        ctx.save_for_backward(points, transforms, weights)
        out = points.new_empty(points.shape[0], points.shape[2], 3)
        for part in _slices(points):
            blended = _blend(transforms[part], weights)
            row = out[part].transpose(1, 2)
            torch.addcmul(blended[:, :, 3], blended[:, :, 0], points[part, None, 0], out=row)
            row.addcmul_(blended[:, :, 1], points[part, None, 1]).addcmul_(blended[:, :, 2], points[part, None, 2])
        return out

    @staticmethod
    def backward(ctx, grad: torch.Tensor):
        points, transforms, weights = ctx.saved_tensors
        grad_points = torch.empty_like(points) if ctx.needs_input_grad[0] else None
        grad_transforms = torch.empty_like(transforms)
        for part in _slices(points):
            rows = grad[part].transpose(1, 2).contiguous()
            if grad_points is not None:
                blended = _blend(transforms[part], weights)
                grad_points[part] = (blended[:, :, :3] * rows[:, :, None]).sum(1)
            outer = rows.new_empty(rows.shape[0], 3, 4, rows.shape[2])
            torch.mul(rows[:, :, None], points[part, None], out=outer[:, :, :3])
            outer[:, :, 3] = rows
            torch.matmul(outer.flatten(1, 2), weights.T, out=grad_transforms[part])
        return grad_points, grad_transforms, None


def _blend(transforms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    return torch.matmul(transforms, weights).unflatten(1, (3, 4))


def _slices(points: torch.Tensor) -> list[slice]:
    batch = points.shape[0]
    step = max(1, _SLICE // (12 * points.shape[2])) if points.device.type == "cpu" else max(1, batch)
    return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]


def skin(points: torch.Tensor, transforms: torch.Tensor, weights: torch.Tensor) -> torch.Tensor:
    """Posed vertices (B, V, 3) from rest `points` (B, 3, V), joint `transforms` (B, 12, J) (rows of 3 × 4, flattened) and `weights` (J, V)."""
    return _Skin.apply(points, transforms, weights)


def world_transforms(rotations: torch.Tensor, joints: torch.Tensor, levels: tuple[tuple[tuple[int, ...], tuple[int, ...]], ...],
                     order: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations (B, J, 3, 3) of the joints in the model's frame and posed joints (B, J, 3).

    `rotations` are relative to the parents, `joints` (B, J, 3) at rest. `levels`: per depth below the root the joints and the
    places of their parents in the level above; `order`: where each joint stands after the levels are put one after another.
    """
    turned, placed = [rotations[:, :1]], [joints[:, :1]]
    offset_from = joints[:, :1]
    for children, parents in levels:
        above, at = turned[-1][:, parents], placed[-1][:, parents]
        rest = joints[:, children]
        placed.append(at + (above @ (rest - offset_from[:, parents]).unsqueeze(-1)).squeeze(-1))
        turned.append(above @ rotations[:, children])
        offset_from = rest
    return torch.cat(turned, 1)[:, order], torch.cat(placed, 1)[:, order]


def tree_levels(parents: tuple[int, ...]) -> tuple[tuple[tuple[tuple[int, ...], tuple[int, ...]], ...], tuple[int, ...]]:
    """`levels` and `order` for `world_transforms` from the parents of a kinematic tree (root first, −1)."""
    depth = [0] * len(parents)
    for j in range(1, len(parents)):
        depth[j] = depth[parents[j]] + 1
    above, levels, sequence = [0], [], [0]
    for d in range(1, max(depth) + 1):
        children = [j for j in range(len(parents)) if depth[j] == d]
        levels.append((tuple(children), tuple(above.index(parents[j]) for j in children)))
        sequence += children
        above = children
    return tuple(levels), tuple(sequence.index(j) for j in range(len(parents)))


def rotations_from_axis_angle(axis_angle: torch.Tensor) -> torch.Tensor:
    """Rotation matrices (…, 3, 3) from (…, 3), by Rodrigues; values and gradients are finite and exact to rounding at 0 and at π.

    sin(a)/a and (1 − cos a)/a² are taken from their series near zero, so no square root of zero is ever differentiated.
    """
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
