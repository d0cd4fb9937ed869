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

_SLICE = 1 << 17
"""Floats of blended transforms held at a time: half of what fits the second-level cache."""
_BLOCK = 128
"""Hands or bodies whose shape and pose directions are multiplied at a time: each pass reads all of the directions."""


class Arrays(NamedTuple):
    """A model's constants. The joints are in the order of the tree's levels, the vertices channel-major (all x, all y, all z).

    `template` (3V,) for rotation entries of zero, since the directions multiply R, not R − I; `blend` (n + 9(J − 1), 3V) shape and
    pose directions; `joints_at_rest` (4J,) and `joint_dirs` (n, 4J) homogeneous, (x, y, z, 1) and (dx, dy, dz, 0); `weights` (J, V);
    `bottom` (1, J, 1, 4) rows (0, 0, 0, 1); int64 `by_level` (J,) the file's joints in the order of the levels, `place` (J,) its
    inverse, `parent_places` (J − 1,) the places of the parents of all joints but the root.
    """

    template: torch.Tensor
    blend: torch.Tensor
    joints_at_rest: torch.Tensor
    joint_dirs: torch.Tensor
    weights: torch.Tensor
    bottom: torch.Tensor
    by_level: torch.Tensor
    place: torch.Tensor
    parent_places: torch.Tensor


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
    if torch.is_grad_enabled() and (rotations.requires_grad or betas.requires_grad or transl.requires_grad):
        return _Skinned.apply(rotations, betas, transl, arrays, tree)
    return _forward(rotations, betas, transl, arrays, tree, keep=False)[:2]


def _forward(rotations, betas, transl, arrays: Arrays, tree: Tree, keep: bool):
    """Vertices, joints, and what the backward pass needs."""
    batch, count = rotations.shape[:2]
    rotations = rotations.index_select(1, arrays.by_level)
    feature = torch.cat([betas, rotations[:, 1:].flatten(1)], 1)
    centres = torch.addmm(arrays.joints_at_rest, betas, arrays.joint_dirs).view(-1, 4, 1)
    point = centres[:, :3]
    shift = torch.baddbmm(point, rotations.view(-1, 3, 3), point, alpha=-1)
    shift = shift.view(batch, count, 3, 1)
    shift[:, 0, :, 0].add_(transl)  # not +=, which writes the view back once more
    local = torch.cat([torch.cat([rotations, shift], 3), arrays.bottom.expand(batch, -1, -1, -1)], 2)
    own = local.split(tree.sizes, 1)
    parts = [own[0]]
    for mine, parents in zip(own[1:], tree.parents, strict=True):
        parts.append(_product(parts[-1] if parents is None else parts[-1][:, parents], mine))
    world = torch.cat(parts, 1)[:, :, :3]
    joints = torch.bmm(world.flatten(0, 1), centres).view(batch, count, 3).index_select(1, arrays.place)
    vertices, rest = _skin(feature, world, arrays, keep)
    return vertices, joints, (rotations, centres, local, world, rest)


def _product(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """`a` (B, n | 1, i, k) @ `b` (B, n, k, l): for one hand a third of the time of `@`."""
    if a.shape[1] != b.shape[1]:
        a = a.expand(-1, b.shape[1], -1, -1)
    return torch.bmm(a.flatten(0, 1), b.flatten(0, 1)).view(*b.shape[:2], a.shape[2], b.shape[3])


class _Skinned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rotations, betas, transl, arrays: Arrays, tree: Tree):
        vertices, joints, needed = _forward(rotations, betas, transl, arrays, tree, keep=True)
        ctx.save_for_backward(*needed)
        ctx.arrays, ctx.tree = arrays, tree
        return vertices, joints

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_vertices, grad_joints):
        rotations, centres, local, world, rest = ctx.saved_tensors
        arrays = ctx.arrays
        batch, count = rotations.shape[:2]
        grad_feature, grad_world = _skin_backward(grad_vertices, rest, world, arrays)
        grad_joints = grad_joints.index_select(1, arrays.by_level).view(-1, 3, 1)
        grad_world = torch.baddbmm(grad_world.flatten(0, 1), grad_joints, centres.transpose(1, 2)).view(batch, count, 3, 4)
        grad_local = _chain_backward(grad_world, local, world, arrays, ctx.tree).view(-1, 3, 4)
        grad_shift = grad_local[..., 3:]
        grad_rotations = torch.baddbmm(grad_local[..., :3], grad_shift, centres[:, :3].transpose(1, 2), alpha=-1).view(batch, count, 3, 3)
        shapes = len(arrays.joint_dirs)
        grad_rotations[:, 1:].add_(grad_feature[:, shapes:].view(batch, count - 1, 3, 3))
        # A rest position enters through its own shift, c − R c, and as the point the joint's transform moves.
        grad_centres = torch.bmm(world.flatten(0, 1).transpose(1, 2), grad_joints)
        grad_centres[:, :3].add_(torch.baddbmm(grad_shift, rotations.view(-1, 3, 3).transpose(1, 2), grad_shift, alpha=-1))
        grad_betas = torch.addmm(grad_feature[:, :shapes], grad_centres.view(batch, -1), arrays.joint_dirs.T)
        grad_transl = grad_shift.view(batch, count, 3)[:, 0]
        return grad_rotations.index_select(1, arrays.place), grad_betas, grad_transl, None, None


def _chain_backward(grad: torch.Tensor, local: torch.Tensor, world: torch.Tensor, arrays: Arrays, tree: Tree) -> torch.Tensor:
    """Gradients of the joints' own transforms (B, J, 3, 4), from those of the world transforms `grad` (B, J, 3, 4), which are used up."""
    grads, own = grad.split(tree.sizes, 1), local.transpose(2, 3).split(tree.sizes, 1)
    for depth in range(len(tree.parents), 0, -1):
        parents, above = tree.parents[depth - 1], grads[depth - 1]
        up = _product(grads[depth], own[depth])
        if parents is not None:
            above.index_add_(1, torch.tensor(parents, device=up.device), up)
        else:
            above.add_(up if above.shape[1] == up.shape[1] else up.sum(1, keepdim=True))
    turns = world.index_select(1, arrays.parent_places)[..., :3].transpose(2, 3)
    return torch.cat([grads[0], _product(turns, grad[:, 1:])], 1)


def _slices(batch: int, size: int) -> list[slice]:
    return [slice(i, min(i + size, batch)) for i in range(0, batch, size)]


def _sizes(batch: int, vertices: int, device: torch.device) -> tuple[int, int]:
    """How many hands or bodies to blend, and to skin, at a time."""
    if device.type != "cpu":
        return max(1, batch), max(1, batch)
    return min(_BLOCK, max(1, batch)), min(max(1, _SLICE // (12 * vertices)), max(1, batch))


def _skin(feature: torch.Tensor, world: torch.Tensor, arrays: Arrays, keep: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Vertices (B, V, 3), and the posed rest shapes (B, 3, V), which are only kept whole for a backward pass."""
    batch, (joints, count) = feature.shape[0], arrays.weights.shape
    flat = world.flatten(2).transpose(1, 2).reshape(-1, joints)
    block, most = _sizes(batch, count, feature.device)
    if batch <= most:
        rest = torch.addmm(arrays.template, feature, arrays.blend).view(-1, 3, count)
        return _carried(rest, torch.mm(flat, arrays.weights)).transpose(1, 2).contiguous(), rest
    vertices = feature.new_empty(batch, count, 3)
    kept = feature.new_empty(batch if keep else block, 3 * count)
    blended, moved = feature.new_empty(12 * most, count), feature.new_empty(most, 3, count)
    for outer in _slices(batch, block):
        rest = kept[outer] if keep else kept[: outer.stop - outer.start]
        torch.addmm(arrays.template, feature[outer], arrays.blend, out=rest)
        for inner in _slices(len(rest), most):
            first, size = outer.start + inner.start, inner.stop - inner.start
            t = torch.mm(flat[12 * first : 12 * (first + size)], arrays.weights, out=blended[: 12 * size])
            row = _carried(rest[inner].view(size, 3, count), t, moved[:size])
            vertices[first : first + size] = row.transpose(1, 2)
    return vertices, kept.view(-1, 3, count)


def _carried(rest: torch.Tensor, blended: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Points `rest` (B, 3, V) moved by their blended transforms (B·12, V): (B, 3, V)."""
    x, y, z = rest.unsqueeze(1).unbind(2)
    tx, ty, tz, shift = blended.view(-1, 3, 4, blended.shape[1]).unbind(2)
    return torch.addcmul(shift, tx, x, out=out).addcmul_(ty, y).addcmul_(tz, z)


def _skin_backward(grad: torch.Tensor, rest: torch.Tensor, world: torch.Tensor, arrays: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the features (B, n + 9(J − 1)) and of the world transforms (B, J, 3, 4)."""
    batch, (joints, count) = len(rest), arrays.weights.shape
    flat = world.flatten(2).transpose(1, 2).reshape(-1, joints)
    block, most = _sizes(batch, count, rest.device)
    if batch <= most:
        rows = grad.transpose(1, 2).contiguous().unsqueeze(2)
        t = torch.mm(flat, arrays.weights).view(batch, 3, 4, count)
        pulled = (rows * t[:, :, :3]).sum(1)
        grad_feature = torch.mm(pulled.view(batch, -1), arrays.blend.T)
        grad_flat = torch.mm(torch.cat([rows * rest.unsqueeze(1), rows], 2).view(-1, count), arrays.weights.T)
    else:
        grad_feature, grad_flat = _skin_backward_sliced(grad, rest, flat, arrays, block, most)
    return grad_feature, grad_flat.view(batch, 12, joints).transpose(1, 2).reshape(batch, joints, 3, 4)


def _skin_backward_sliced(
    grad: torch.Tensor, rest: torch.Tensor, flat: torch.Tensor, arrays: Arrays, block: int, most: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in slices of `most`, into arrays made once: gradients of the features and of `flat` (12B, J)."""
    batch, count = len(rest), rest.shape[2]
    grad_flat, grad_feature = torch.empty_like(flat), rest.new_empty(batch, len(arrays.blend))
    scratch, pulled = rest.new_empty(most, 3, 4, count), rest.new_empty(block, 3, count)
    for outer in _slices(batch, block):
        for inner in _slices(outer.stop - outer.start, most):
            first, size = outer.start + inner.start, inner.stop - inner.start
            part, rows_of_flat = slice(first, first + size), slice(12 * first, 12 * (first + size))
            rows, work = grad[part].transpose(1, 2).contiguous(), scratch[:size]
            t = torch.mm(flat[rows_of_flat], arrays.weights, out=work.view(-1, count)).view(size, 3, 4, count)
            pull = torch.mul(t[:, 0, :3], rows[:, None, 0], out=pulled[inner])
            pull.addcmul_(t[:, 1, :3], rows[:, None, 1]).addcmul_(t[:, 2, :3], rows[:, None, 2])
            torch.mul(rows[:, :, None], rest[part, None], out=work[:, :, :3])
            work[:, :, 3] = rows
            torch.mm(work.view(-1, count), arrays.weights.T, out=grad_flat[rows_of_flat])
        torch.mm(pulled[: outer.stop - outer.start].view(-1, 3 * count), arrays.blend.T, out=grad_feature[outer])
    return grad_feature, grad_flat
