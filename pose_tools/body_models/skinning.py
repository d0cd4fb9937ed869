"""Linear blend skinning with a hand-written backward pass, fast on a CPU.

Every joint's transform acts on the rest pose: A_j = A_parent · [R_j | c_j − R_j c_j] turns about the rest position c_j, so no
inverse of the rest pose is needed. The vertices see 3 × 4 transforms in slices of the batch that stay in the cache; the blended
transforms (B, 12, V) never exist as a whole. For one hand the cost is the number of calls, so there are few.

Formulas: Loper et al., SMPL (2015), equations 2–10; MANO (Romero et al., 2017) uses the same.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

_SLICE = 1 << 18
"""Floats of blended transforms held at a time: what fits the second-level cache."""


class Arrays(NamedTuple):
    """A model's constants. The joints are in the order of the tree's levels, the vertices channel-major (all x, all y, all z).

    `template` (3V,); `blend` (n + 9(J − 1), 3V) shape and pose directions; `joints_at_rest` (4J,) and `joint_dirs` (n, 4J)
    homogeneous, (x, y, z, 1) and (dx, dy, dz, 0); `weights` (J, V); `identity` (3, 3); `bottom` (1, J, 1, 4) rows (0, 0, 0, 1);
    int64 `by_level` (J,) the file's joints in the order of the levels, `place` (J,) its inverse.
    """

    template: torch.Tensor
    blend: torch.Tensor
    joints_at_rest: torch.Tensor
    joint_dirs: torch.Tensor
    weights: torch.Tensor
    identity: torch.Tensor
    bottom: torch.Tensor
    by_level: torch.Tensor
    place: torch.Tensor


class Tree(NamedTuple):
    """A kinematic tree by depth: `order` the joints level by level, `sizes` of the levels, `parents` of each level below the root,
    as places in the level above: None for one to one (or all from the root), else a list."""

    order: list[int]
    sizes: list[int]
    parents: list[list[int] | None]


def tree_levels(parents: tuple[int, ...]) -> Tree:
    """The levels of a tree given by its `parents` (root first, −1)."""
    depth = [0] * len(parents)
    for j in range(1, len(parents)):
        depth[j] = depth[parents[j]] + 1
    levels = [[j for j in range(len(parents)) if depth[j] == d] for d in range(max(depth) + 1)]
    places: list[list[int] | None] = []
    for above, here in zip(levels[:-1], levels[1:], strict=True):
        place = [above.index(parents[j]) for j in here]
        places.append(None if len(above) == 1 or place == list(range(len(above))) else place)
    return Tree([j for level in levels for j in level], [len(level) for level in levels], places)


def pose_and_skin(
    rotations: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, arrays: Arrays, tree: Tree
) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices (B, V, 3) and joints (B, J, 3) from `rotations` (B, J, 3, 3) relative to the parents, `betas` (B, n) and `transl`
    (B, 3). Differentiable once, in all three."""
    return _Skinned.apply(rotations, betas, transl, arrays, tree)


class _Skinned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rotations, betas, transl, arrays: Arrays, tree: Tree):
        batch, count = rotations.shape[:2]
        rotations = rotations.index_select(1, arrays.by_level)
        feature = torch.cat([betas, (rotations[:, 1:] - arrays.identity).flatten(1)], 1)
        centres = torch.addmm(arrays.joints_at_rest, betas, arrays.joint_dirs).view(batch, count, 4, 1)
        point = centres[:, :, :3]
        local = torch.cat([torch.cat([rotations, point - rotations @ point], 3), arrays.bottom.expand(batch, -1, -1, -1)], 2)
        local[:, 0, :3, 3] += transl
        own = local.split(tree.sizes, 1)
        parts = [own[0]]
        for mine, parents in zip(own[1:], tree.parents, strict=True):
            parts.append((parts[-1] if parents is None else parts[-1][:, parents]) @ mine)
        world = torch.cat(parts, 1)[:, :, :3]
        joints = (world @ centres).squeeze(-1).index_select(1, arrays.place)
        keep = any(ctx.needs_input_grad)
        vertices, rest = _skin(feature, world, arrays, keep)
        if keep:
            ctx.save_for_backward(rotations, centres, local, world, rest)
            ctx.arrays, ctx.tree = arrays, tree
        return vertices, joints

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_vertices, grad_joints):
        rotations, centres, local, world, rest = ctx.saved_tensors
        arrays = ctx.arrays
        batch, count = rotations.shape[:2]
        grad_feature, grad_world = _skin_backward(grad_vertices, rest, world, arrays)
        grad_joints = grad_joints.index_select(1, arrays.by_level).unsqueeze(-1)
        grad_world += grad_joints * centres.transpose(2, 3)
        grad_local = _chain_backward(grad_world, local, world, ctx.tree)
        grad_shift = grad_local[..., 3:]
        grad_rotations = torch.addcmul(grad_local[..., :3], grad_shift, centres[:, :, :3].transpose(2, 3), value=-1)
        shapes = len(arrays.joint_dirs)
        grad_rotations[:, 1:] += grad_feature[:, shapes:].view(batch, count - 1, 3, 3)
        # A rest position enters through its own shift, c − R c, and as the point the joint's transform moves.
        grad_centres = world.transpose(2, 3) @ grad_joints
        grad_centres[:, :, :3] += grad_shift - rotations.transpose(2, 3) @ grad_shift
        grad_betas = torch.addmm(grad_feature[:, :shapes], grad_centres.flatten(1), arrays.joint_dirs.T)
        return grad_rotations.index_select(1, arrays.place), grad_betas, grad_shift[:, 0, :, 0], None, None


def _chain_backward(grad: torch.Tensor, local: torch.Tensor, world: torch.Tensor, tree: Tree) -> torch.Tensor:
    """Gradients of the joints' own transforms (B, J, 3, 4), from those of the world transforms `grad` (B, J, 3, 4), which are used up."""
    grads, own, turns = (
        grad.split(tree.sizes, 1),
        local.transpose(2, 3).split(tree.sizes, 1),
        world[..., :3].transpose(2, 3).split(tree.sizes, 1),
    )
    parts = []
    for depth in range(len(tree.parents), 0, -1):
        parents, above = tree.parents[depth - 1], grads[depth - 1]
        turn = turns[depth - 1]
        parts.append((turn if parents is None else turn[:, parents]) @ grads[depth])
        up = grads[depth] @ own[depth]
        if parents is not None:
            above.index_add_(1, torch.tensor(parents, device=up.device), up)
        else:
            above += up if above.shape[1] == up.shape[1] else up.sum(1, keepdim=True)
    return torch.cat([grads[0], *reversed(parts)], 1)


def _slices(batch: int, vertices: int, device: torch.device) -> list[slice]:
    step = max(1, _SLICE // (12 * vertices)) if device.type == "cpu" else max(1, batch)
    return [slice(i, min(i + step, batch)) for i in range(0, batch, step)]


def _skin(feature: torch.Tensor, world: torch.Tensor, arrays: Arrays, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices (B, V, 3), and the posed rest shapes (B, 3, V), which are only kept whole for a backward pass."""
    batch, (joints, count) = len(feature), arrays.weights.shape
    flat = world.flatten(2).transpose(1, 2).reshape(-1, joints)
    vertices = feature.new_empty(batch, count, 3)
    slices = _slices(batch, count, feature.device)
    most = slices[0].stop if slices else 0
    kept = feature.new_empty(batch if keep else most, 3 * count)
    blended, moved = feature.new_empty(12 * most, count), feature.new_empty(most, 3, count)
    for part in slices:
        size = part.stop - part.start
        rest = torch.addmm(arrays.template, feature[part], arrays.blend, out=kept[part] if keep else kept[:size])
        x, y, z = rest.view(size, 1, 3, count).unbind(2)
        t = torch.mm(flat[12 * part.start : 12 * part.stop], arrays.weights, out=blended[: 12 * size])
        tx, ty, tz, shift = t.view(size, 3, 4, count).unbind(2)
        row = torch.addcmul(shift, tx, x, out=moved[:size]).addcmul_(ty, y).addcmul_(tz, z)
        vertices[part] = row.transpose(1, 2)
    return vertices, kept.view(-1, 3, count)


def _skin_backward(grad: torch.Tensor, rest: torch.Tensor, world: torch.Tensor, arrays: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the features (B, n + 9(J − 1)) and of the world transforms (B, J, 3, 4)."""
    batch, (joints, count) = len(rest), arrays.weights.shape
    flat = world.flatten(2).transpose(1, 2).reshape(-1, joints)
    grad_flat = torch.empty_like(flat)
    grad_feature = rest.new_empty(batch, len(arrays.blend))
    slices = _slices(batch, count, rest.device)
    most = slices[0].stop if slices else 0
    scratch = rest.new_empty(most, 3, 4, count)
    for part in slices:
        size = part.stop - part.start
        rows, work = grad[part].transpose(1, 2).contiguous(), scratch[:size]
        t = torch.mm(flat[12 * part.start : 12 * part.stop], arrays.weights, out=work.view(-1, count)).view(size, 3, 4, count)
        pulled = torch.mul(t[:, 0, :3], rows[:, None, 0])
        pulled.addcmul_(t[:, 1, :3], rows[:, None, 1]).addcmul_(t[:, 2, :3], rows[:, None, 2])
        torch.mm(pulled.view(size, -1), arrays.blend.T, out=grad_feature[part])
        torch.mul(rows[:, :, None], rest[part, None], out=work[:, :, :3])
        work[:, :, 3] = rows
        torch.mm(work.view(-1, count), arrays.weights.T, out=grad_flat[12 * part.start : 12 * part.stop])
    return grad_feature, grad_flat.view(batch, 12, joints).transpose(1, 2).reshape(batch, joints, 3, 4)
