"""Linear blend skinning with a hand-written backward pass, fast on a CPU.

Every joint's transform acts on the rest pose: A_j = A_parent · [R_j | c_j − R_j c_j] turns about the rest position c_j, so no
inverse of the rest pose is needed. The vertices see 3 × 4 transforms in slices of the batch that stay in the cache; the blended
transforms (B, 12, V) never exist as a whole. For one hand the cost is the number of calls, so there are few.

Formulas: Loper et al., SMPL (2015), equations 2–10; MANO (Romero et al., 2017) uses the same.
"""

from __future__ import annotations

import math
import threading
from typing import NamedTuple

import torch
from torch.autograd.function import once_differentiable

_SLICE = 300_000
"""Floats of blended transforms held at a time, 32 hands': two cores' second-level caches hold them, and both cores get work."""
_FEW = 3_200
"""Up to so many vertices, four hands', are skinned in one go: there the calls cost more than the memory."""
_BLOCK = 128
"""Hands or bodies whose shape and pose directions are multiplied at a time: each pass reads all of the directions."""


class Arrays(NamedTuple):
    """A model's constants. The joints are in the order of the tree's levels, the vertices channel-major (all x, all y, all z).

    `template` (3V,) for rotation entries of zero, since the directions multiply R, not R − I; `blend` (n + 9(J − 1), 3V) shape and
    pose directions, the latter in the file's order; `joints_at_rest` (4J,) and `joint_dirs` (n, 4J) homogeneous, (x, y, z, 1) and
    (dx, dy, dz, 0); `weights` (J, V); `bottom` (1, J, 1, 4) rows (0, 0, 0, 1); int64 `by_level` (J,) the file's joints in the order
    of the levels, `place` (J,) its inverse, `below` (J − 1,) its entries below the root less one, `parent_places` (J − 1,) the places
    of the parents of all joints but the root.
    """

    template: torch.Tensor
    blend: torch.Tensor
    joints_at_rest: torch.Tensor
    joint_dirs: torch.Tensor
    weights: torch.Tensor
    bottom: torch.Tensor
    by_level: torch.Tensor
    place: torch.Tensor
    below: torch.Tensor
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


class Picked(NamedTuple):
    """Which points make up a second set of joints: `vertices` (T,) to append to the model's J joints in the order of the levels, and the
    `order` (J + T,) in which the sum is given out; `place` is its inverse."""

    vertices: torch.Tensor
    order: torch.Tensor
    place: torch.Tensor


def pose_and_skin(
    rotations: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, arrays: Arrays, tree: Tree, picked: Picked | None = None
) -> tuple[torch.Tensor, ...]:
    """Vertices (B, V, 3) and joints (B, J, 3) from `rotations` (B, J, 3, 3) relative to the parents, `betas` (B, n) and `transl`
    (B, 3); with `picked` also those (B, J + T, 3). Differentiable once, in all three."""
    if torch.is_grad_enabled() and (rotations.requires_grad or betas.requires_grad or transl.requires_grad):
        return _Skinned.apply(rotations, betas, transl, arrays, tree, picked)
    return _forward(rotations, betas, transl, arrays, tree, picked, keep=False)[0]


def _forward(rotations, betas, transl, arrays: Arrays, tree: Tree, picked: Picked | None, keep: bool):
    """What `pose_and_skin` gives, the posed rest shapes (B, 3V) or None, and what else the backward pass needs.

    Inside `inference_mode` calls are a sixth cheaper; what is given out is made outside, since others may go on to differentiate it.
    """
    batch, (count, vertex_count) = len(rotations), arrays.weights.shape
    vertices = rotations.new_empty(batch, vertex_count, 3)
    rest = rotations.new_empty(batch, 3 * vertex_count) if keep else None
    with torch.inference_mode():
        feature = torch.cat([betas, rotations.flatten(1)[:, 9:]], 1)
        rotations = rotations.index_select(1, arrays.by_level)
        centres, local, world = _chain(rotations, betas, transl, arrays, tree)
        joints = torch.bmm(world.view(-1, 4, 4), centres).view(batch, count, 4)[:, :, :3]
        _skin(feature, world, arrays, vertices, rest)
        if picked is not None:
            points = torch.cat([joints, vertices.index_select(1, picked.vertices)], 1)
    out: tuple[torch.Tensor, ...] = (vertices, joints.index_select(1, arrays.place))
    if picked is not None:
        out += (points.index_select(1, picked.order),)
    return out, rest, (rotations, centres, local, world)


def _chain(rotations, betas, transl, arrays: Arrays, tree: Tree) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rest positions of the joints (B · J, 4, 1), their own transforms and the world's, both (B, J, 4, 4)."""
    batch, count = rotations.shape[:2]
    centres = torch.addmm(arrays.joints_at_rest, betas, arrays.joint_dirs).view(-1, 4, 1)
    point = centres[:, :3]
    shift = torch.baddbmm(point, rotations.view(-1, 3, 3), point, alpha=-1)
    shift = shift.view(batch, count, 3, 1)
    shift[:, 0, :, 0].add_(transl)  # not +=, which writes the view back once more
    local = torch.cat([torch.cat([rotations, shift], 3), arrays.bottom.expand(batch, -1, -1, -1)], 2)
    own = local.split(tree.sizes, 1)
    parts = [own[0]]
    for mine, parents in zip(own[1:], tree.parents, strict=True):
        parts.append(torch.matmul(parts[-1] if parents is None else parts[-1][:, parents], mine))
    return centres, local, torch.cat(parts, 1)


class _Skinned(torch.autograd.Function):
    @staticmethod
    def forward(ctx, rotations, betas, transl, arrays: Arrays, tree: Tree, picked: Picked | None):
        points, rest, ctx.needed = _forward(rotations, betas, transl, arrays, tree, picked, keep=True)
        ctx.save_for_backward(rest)
        ctx.arrays, ctx.tree, ctx.picked = arrays, tree, picked
        return points

    @staticmethod
    @once_differentiable
    def backward(ctx, grad_vertices, grad_joints, *grad_picked):
        rest, arrays = ctx.saved_tensors[0], ctx.arrays
        with torch.inference_mode():
            if ctx.picked is not None:
                sizes = [len(arrays.place), len(ctx.picked.vertices)]
                grad_own, grad_tips = grad_picked[0].index_select(1, ctx.picked.place).split(sizes, 1)
                grad_vertices = (grad_vertices, grad_tips, ctx.picked.vertices)
            else:
                grad_vertices, grad_own = (grad_vertices, None, None), 0
            grad_joints = grad_joints.index_select(1, arrays.by_level) + grad_own
            rotations, centres, local, world = ctx.needed
            grad_rotations, grad_betas, grad_transl = _backward(
                grad_vertices, grad_joints, rest, rotations, centres, local, world, arrays, ctx.tree
            )
        # as in _forward: gradients belong to the caller
        return grad_rotations.index_select(1, arrays.place), grad_betas.clone(), grad_transl.clone(), None, None, None


def _backward(grad_vertices, grad_joints, rest, rotations, centres, local, world, arrays: Arrays, tree: Tree):
    """Gradients of the rotations, of betas and transl; joints in the order of the levels. For `grad_vertices` see `_skin_backward`."""
    batch, count = rotations.shape[:2]
    grad_feature, grad_world = _skin_backward(grad_vertices, rest, world, arrays)
    grad_joints = grad_joints.view(-1, 3, 1)
    grad_world = torch.baddbmm(grad_world.flatten(0, 1), grad_joints, centres.mT).view(batch, count, 3, 4)
    grad_local = _chain_backward(grad_world, local, world, arrays, tree).view(-1, 3, 4)
    grad_shift = grad_local[..., 3:]
    grad_rotations = torch.baddbmm(grad_local[..., :3], grad_shift, centres[:, :3].mT, alpha=-1).view(batch, count, 9)
    shapes = len(arrays.joint_dirs)
    grad_rotations[:, 1:].add_(grad_feature[:, shapes:].view(batch, count - 1, 9).index_select(1, arrays.below))
    # A rest position enters through its own shift, c − R c, and as the point the joint's transform moves.
    grad_centres = torch.bmm(world.view(-1, 4, 4)[:, :3].mT, grad_joints)
    grad_centres[:, :3].add_(torch.baddbmm(grad_shift, rotations.view(-1, 3, 3).mT, grad_shift, alpha=-1))
    grad_betas = torch.addmm(grad_feature[:, :shapes], grad_centres.view(batch, 4 * count), arrays.joint_dirs.T)
    return grad_rotations.view(batch, count, 3, 3), grad_betas, grad_shift.view(batch, count, 3)[:, 0]


def _chain_backward(grad: torch.Tensor, local: torch.Tensor, world: torch.Tensor, arrays: Arrays, tree: Tree) -> torch.Tensor:
    """Gradients of the joints' own transforms (B, J, 3, 4), from those of the world transforms `grad` (B, J, 3, 4), which are used up."""
    grads, own = grad.split(tree.sizes, 1), local.transpose(2, 3).split(tree.sizes, 1)
    for depth in range(len(tree.parents), 0, -1):
        parents, above = tree.parents[depth - 1], grads[depth - 1]
        up = torch.matmul(grads[depth], own[depth])
        if parents is not None:
            above.index_add_(1, torch.tensor(parents, device=up.device), up)
        else:
            above.add_(up if above.shape[1] == up.shape[1] else up.sum(1, keepdim=True))
    turns = world.index_select(1, arrays.parent_places)[:, :, :3, :3].mT
    return torch.cat([grads[0], torch.matmul(turns, grad[:, 1:])], 1)


def _slices(batch: int, most: int) -> list[slice]:
    """As few slices of at most `most` as there can be, of nearly equal sizes."""
    size = math.ceil(batch / max(1, math.ceil(batch / most)))
    return [slice(i, min(i + size, batch)) for i in range(0, batch, max(1, size))]


def _sizes(vertices: int) -> tuple[int, int]:
    """How many hands or bodies to blend, and to skin, at a time."""
    return _BLOCK, max(1, _SLICE // (12 * vertices))


def _at_once(vertices: int, device: torch.device) -> bool:
    """Whether so many vertices are skinned without slices; on an accelerator, which pools its memory, always."""
    return vertices <= _FEW or device.type != "cpu"


class _Scratch(threading.local):
    """Each thread's memory for what lives within one call, kept from call to call: fresh memory costs a page fault every 4 KB, which
    is more than the arithmetic done in it."""

    def __init__(self) -> None:
        self.held: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def take(self, name: str, shape: tuple[int, ...], like: torch.Tensor) -> torch.Tensor:
        """Whatever lies there, in this shape, and in the type of `like`."""
        size = math.prod(shape)
        held = self.held.get((name, like.dtype))
        if held is None or held.numel() < size:
            held = self.held[name, like.dtype] = torch.empty(size, dtype=like.dtype)
        return held[:size].view(shape)


_scratch = _Scratch()


def _rows(world: torch.Tensor) -> torch.Tensor:
    """The transforms (B, J, 4, 4) as the factor of the skin weights: (B · 12, J)."""
    return world.flatten(2).mT[:, :12].reshape(-1, world.shape[1])


def _skin(feature: torch.Tensor, world: torch.Tensor, arrays: Arrays, vertices: torch.Tensor, rest: torch.Tensor | None) -> None:
    """Fills `vertices` (B, V, 3) and, unless it is None, the posed rest shapes `rest` (B, 3V)."""
    batch, count = feature.shape[0], arrays.weights.shape[1]
    flat = _rows(world)
    if _at_once(batch * count, feature.device):
        rest = torch.addmm(arrays.template, feature, arrays.blend, out=rest)
        vertices.copy_(_carried(rest.view(-1, 3, count), torch.mm(flat, arrays.weights)).mT)
        return
    block, most = _sizes(count)
    for outer in _slices(batch, block):
        shape = (outer.stop - outer.start, 3 * count)
        posed = torch.addmm(
            arrays.template, feature[outer], arrays.blend, out=_scratch.take("rest", shape, feature) if rest is None else rest[outer]
        )
        for inner in _slices(len(posed), most):
            first, size = outer.start + inner.start, inner.stop - inner.start
            t = _scratch.take("blended", (12 * size, count), feature)
            torch.mm(flat[12 * first : 12 * (first + size)], arrays.weights, out=t)
            row = _carried(posed[inner].view(size, 3, count), t, _scratch.take("moved", (size, 3, count), feature))
            vertices[first : first + size] = row.mT


def _carried(rest: torch.Tensor, blended: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
    """Points `rest` (B, 3, V) moved by their blended transforms (B·12, V): (B, 3, V)."""
    x, y, z = rest.unsqueeze(1).unbind(2)
    tx, ty, tz, shift = blended.view(-1, 3, 4, blended.shape[1]).unbind(2)
    return torch.addcmul(shift, tx, x, out=out).addcmul_(ty, y).addcmul_(tz, z)


def _skin_backward(grads, rest: torch.Tensor, world: torch.Tensor, arrays: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradients of the features (B, n + 9(J − 1)) and of the world transforms (B, J, 3, 4), from `grads`: those of the vertices
    (B, V, 3), and further ones (B, T, 3) of the vertices whose numbers follow, or None and None."""
    batch, (joints, count) = len(rest), arrays.weights.shape
    turns = world[:, :, :3, :3].flatten(2).mT.reshape(-1, joints)  # what moves the gradients; the shifts don't
    if _at_once(batch * count, rest.device):
        rows = _as_rows(torch.empty_like(rest).view(-1, 3, count), slice(None), *grads)
        tx, ty, tz = torch.mm(turns, arrays.weights).view(batch, 3, 3, count).unbind(1)
        x, y, z = rows.split(1, 1)
        grad_feature = torch.mm((tx * x).addcmul_(ty, y).addcmul_(tz, z).view(batch, -1), arrays.blend.T)
        rows = rows.unsqueeze(2)
        work = torch.cat([rows * rest.view(-1, 1, 3, count), rows], 2)
        grad_flat = torch.mm(work.view(-1, count), arrays.weights.T)
    else:
        grad_feature, grad_flat = _skin_backward_sliced(grads, rest, turns, arrays)
    return grad_feature, grad_flat.view(batch, 12, joints).mT.reshape(batch, joints, 3, 4)


def _skin_backward_sliced(grads, rest: torch.Tensor, turns: torch.Tensor, arrays: Arrays) -> tuple[torch.Tensor, torch.Tensor]:
    """The same in slices: gradients of the features and, (B · 12, J), of the world transforms."""
    batch, (joints, count) = len(rest), arrays.weights.shape
    block, most = _sizes(count)
    grad_flat, grad_feature = rest.new_empty(12 * batch, joints), rest.new_empty(batch, len(arrays.blend))
    for outer in _slices(batch, block):
        pulled = _scratch.take("rest", (outer.stop - outer.start, 3, count), rest)
        for inner in _slices(len(pulled), most):
            first, size = outer.start + inner.start, inner.stop - inner.start
            part = slice(first, first + size)
            rows = _as_rows(_scratch.take("moved", (size, 3, count), rest), part, *grads)
            t = _scratch.take("blended", (size, 3, 3, count), rest)
            torch.mm(turns[9 * first : 9 * (first + size)], arrays.weights, out=t.view(-1, count))
            pull = torch.mul(t[:, 0], rows[:, :1], out=pulled[inner])
            pull.addcmul_(t[:, 1], rows[:, 1:2]).addcmul_(t[:, 2], rows[:, 2:])
            work = _scratch.take("blended", (size, 3, 4, count), rest)  # where t was
            torch.mul(rows[:, :, None], rest[part].view(size, 1, 3, count), out=work[:, :, :3])
            work[:, :, 3] = rows
            torch.mm(work.view(-1, count), arrays.weights.T, out=grad_flat[12 * first : 12 * (first + size)])
        torch.mm(pulled.view(-1, 3 * count), arrays.blend.T, out=grad_feature[outer])
    return grad_feature, grad_flat


def _as_rows(out: torch.Tensor, part: slice, grad: torch.Tensor, extra: torch.Tensor | None, numbers: torch.Tensor | None) -> torch.Tensor:
    """A part of the vertices' gradients channel-major, into `out` (b, 3, V), with the `extra` ones of the vertices `numbers` added."""
    out.copy_(grad[part].mT)
    if extra is not None:
        out.index_add_(2, numbers, extra[part].mT)
    return out
