"""The 21 landmarks of a MANO hand and their derivatives, without its mesh: 16 joints and five tip vertices.

Turning joint k by a small world rotation φ moves a point p that hangs on it by φ × (p − c_k), c_k being where the joint is. A skinned
tip is Σ_m w_m x_m, so it moves by φ × Σ_{m below k} w_m (x_m − c_k), and with its pose blend shapes besides. φ follows from the
axis-angle vector by the left Jacobian of SO(3) (Solà et al., A micro Lie theory, 2018, eq. 145).
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pose_tools.body_models import Mano
from pose_tools.body_models.kinematics import MANO_FINGERS, MANO_PARENTS, TIP_VERTICES

TIP_OF_FINGER = [("thumb", "index", "middle", "ring", "pinky").index(name) for name in MANO_FINGERS]
"""Which of the tips (thumb … pinky) ends each of MANO's fingers."""

ROOT, POSE, TRANSL, SCALE, SHAPE = slice(0, 3), slice(3, 48), slice(48, 51), slice(51, 52), slice(52, 62)
"""Where each parameter's step lies in the vector of all 62; `ROOT` is a world rotation applied from the left, `SCALE` a logarithm."""


class State(NamedTuple):
    """Parameters of B hands, float64: `root` (B, 3, 3), `pose` (B, 45) absolute axis-angle, `transl` (B, 3), `log_scale` (B, 1),
    `betas` (B, 10)."""

    root: torch.Tensor
    pose: torch.Tensor
    transl: torch.Tensor
    log_scale: torch.Tensor
    betas: torch.Tensor


class Hand(NamedTuple):
    """A hand model's constants in MANO's joint order, float64: `rest` (16, 3), `rest_dirs` (10, 16, 3), and of the five tips (thumb …
    pinky) `tips` (5, 3), `tip_dirs` (10, 5, 3), `tip_blend` (15 joints, 9, 5·3), `weights` (16, 5); `below` (16, 16) is 1 where the
    second joint hangs on the first or is the same."""

    rest: torch.Tensor
    rest_dirs: torch.Tensor
    tips: torch.Tensor
    tip_dirs: torch.Tensor
    tip_blend: torch.Tensor
    weights: torch.Tensor
    below: torch.Tensor


def hand_constants(mano: Mano, tips: str) -> Hand:
    """The part of `mano` that 21 landmarks need, with the finger tips named `tips`. Raises ValueError for an unknown name."""
    if tips not in TIP_VERTICES:
        raise ValueError(f"tips={tips!r}: expected one of {', '.join(TIP_VERTICES)}")
    device, vertices = mano.template.device, torch.tensor(TIP_VERTICES[tips])
    template, blend, weights = (x.detach().cpu().double() for x in (mano.template, mano.blend, mano.weights))
    rest, dirs = mano.joints_at_rest.cpu().double().view(-1, 4)[:, :3], mano.joint_dirs.cpu().double().view(mano.num_betas, -1, 4)[..., :3]
    place = mano.place.cpu()
    shape, pose = blend[: mano.num_betas].view(mano.num_betas, 3, -1), blend[mano.num_betas :].view(15, 9, 3, -1)
    below = torch.eye(16, dtype=torch.float64)
    for j in range(1, 16):
        k = j
        while k >= 0:
            below[k, j], k = 1.0, MANO_PARENTS[k]
    values = (
        rest[place],
        dirs[:, place],
        template.view(3, -1)[:, vertices].T,
        shape[:, :, vertices].transpose(1, 2),
        pose[..., vertices].transpose(2, 3).reshape(15, 9, 15),
        weights[place][:, vertices],
        below,
    )
    return Hand(*(value.contiguous().to(device) for value in values))


def rotation_and_left_jacobian(axis_angle: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Rotations and left Jacobians (…, 3, 3) of axis-angle (…, 3): a step dθ turns the world side by J dθ."""
    square = (axis_angle * axis_angle).sum(-1)[..., None, None]
    small = square < 1e-6
    safe = torch.where(small, torch.ones_like(square), square)
    angle = safe.sqrt()
    s = torch.where(small, 1 - square / 6, torch.sin(angle) / angle)
    c = torch.where(small, 0.5 - square / 24, (1 - torch.cos(angle)) / safe)
    d = torch.where(small, 1 / 6 - square / 120, (1 - s) / safe)
    turn = skew(axis_angle)
    eye = torch.eye(3, dtype=axis_angle.dtype, device=axis_angle.device)
    twice = axis_angle[..., :, None] * axis_angle[..., None, :] - square * eye
    return eye + s * turn + c * twice, eye + c * turn + d * twice


def skew(x: torch.Tensor) -> torch.Tensor:
    """[x]ₓ (…, 3, 3) of x (…, 3)."""
    a, b, c = x.unbind(-1)
    zero = torch.zeros_like(a)
    return torch.stack([zero, -c, b, c, zero, -a, -b, a, zero], -1).unflatten(-1, (3, 3))


def moved(state: State, step: torch.Tensor) -> State:
    """The state after `step` (B, 62)."""
    turn, _ = rotation_and_left_jacobian(step[:, ROOT])
    return State(
        turn @ state.root,
        state.pose + step[:, POSE],
        state.transl + step[:, TRANSL],
        state.log_scale + step[:, SCALE],
        state.betas + step[:, SHAPE],
    )


class _Posed(NamedTuple):
    rotations: torch.Tensor  # (B, 15, 3, 3) local
    jacobians: torch.Tensor  # (B, 15, 3, 3) left Jacobians
    world: torch.Tensor  # (B, 16, 3, 3)
    parents: torch.Tensor  # (B, 15, 3, 3) world rotations of the parents
    joints: torch.Tensor  # (B, 16, 3)
    skinned: torch.Tensor  # (B, 16, 5, 3) each joint's share of each tip

    def points(self) -> torch.Tensor:
        return torch.cat([self.joints, self.skinned.sum(1)], 1)


def _pose(hand: Hand, state: State) -> _Posed:
    batch = len(state.pose)
    rotations, jacobians = rotation_and_left_jacobian(state.pose.view(batch, 15, 3))
    rest = hand.rest + (state.betas @ hand.rest_dirs.flatten(1)).view(batch, 16, 3)
    local, chain = rotations.view(batch, 5, 3, 3, 3), rest[:, 1:].view(batch, 5, 3, 3)
    wrist = rest[:, 0] + state.transl
    turn, here, at = state.root[:, None].expand(-1, 5, -1, -1), wrist[:, None], rest[:, None, 0]
    worlds, parents, places = [], [], []
    for level in range(3):
        here = here + (turn @ (chain[:, :, level] - at)[..., None])[..., 0]
        parents.append(turn)
        turn, at = turn @ local[:, :, level], chain[:, :, level]
        worlds.append(turn)
        places.append(here)
    world = torch.cat([state.root[:, None], torch.stack(worlds, 2).flatten(1, 2)], 1)
    joints = torch.cat([wrist[:, None], torch.stack(places, 2).flatten(1, 2)], 1)
    flesh = rotations.flatten(1) @ hand.tip_blend.flatten(0, 1) + state.betas @ hand.tip_dirs.flatten(1)
    flesh = hand.tips + flesh.view(batch, 5, 3)
    carried = (flesh[:, None] - rest[:, :, None]) @ world.transpose(2, 3) + joints[:, :, None]
    return _Posed(rotations, jacobians, world, torch.stack(parents, 2).flatten(1, 2), joints, hand.weights[..., None] * carried)


def landmarks(hand: Hand, state: State) -> torch.Tensor:
    """Points (B, 21, 3) metres in MANO's order with tips ("mano16_plus_tips"), before the scale."""
    return _pose(hand, state).points()


def landmarks_and_jacobian(hand: Hand, state: State, with_shape: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As `landmarks`, and their derivatives (B, 21, 3, 51 or 61) by root, pose and translation, and by betas where `with_shape`."""
    posed = _pose(hand, state)
    batch, points = len(state.pose), posed.points()
    arms = (points[:, None, :16] - posed.joints[:, :, None]) * hand.below[..., None]
    shares = torch.cat([posed.skinned.sum(1, keepdim=True), _from_the_tip(posed.skinned[:, 1:])], 1)
    below = torch.cat([hand.weights.sum(0, keepdim=True), _from_the_tip(hand.weights[None, 1:, :, None])[0, ..., 0]], 0)
    arms = torch.cat([arms, shares - below[..., None] * posed.joints[:, :, None]], 2)
    eye = torch.eye(3, dtype=points.dtype, device=points.device)
    axes = torch.cat([eye.expand(batch, 1, 3, 3), posed.parents @ posed.jacobians], 1).transpose(2, 3)
    turned = torch.linalg.cross(axes[:, :, None], arms[:, :, :, None], dim=-1)  # (B, 16 joints, 21 points, 3 components, 3)
    jacobian = turned.permute(0, 2, 4, 1, 3).reshape(batch, 21, 3, 48)
    jacobian[:, 16:, :, 3:] += _flesh_jacobian(hand, posed)
    parts = [jacobian, eye.expand(batch, 21, 3, 3)]
    if with_shape:
        parts.append(_shape_jacobian(hand, posed))
    return points, torch.cat(parts, 3)


def _from_the_tip(values: torch.Tensor) -> torch.Tensor:
    """Sums over each finger's joints (B, 15, 5, d) from a joint to the last one."""
    return values.unflatten(1, (5, 3)).flip(2).cumsum(2).flip(2).flatten(1, 2)


def _flesh_jacobian(hand: Hand, posed: _Posed) -> torch.Tensor:
    """What the pose blend shapes add to the tips' derivatives (B, 5, 3, 45)."""
    batch = len(posed.world)
    columns = torch.linalg.cross(posed.jacobians.transpose(2, 3)[:, :, :, None], posed.rotations.transpose(2, 3)[:, :, None], dim=-1)
    slopes = columns.transpose(3, 4).reshape(batch, 15, 3, 9) @ hand.tip_blend
    slopes = slopes.view(batch, 45, 5, 3).permute(0, 2, 3, 1)
    blended = (hand.weights.T @ posed.world.flatten(2)).view(batch, 5, 3, 3)
    return blended @ slopes


def _shape_jacobian(hand: Hand, posed: _Posed) -> torch.Tensor:
    """Derivatives of the points by betas (B, 21, 3, 10)."""
    batch = len(posed.world)
    rest = hand.rest_dirs.permute(1, 2, 0)  # (16, 3, 10)
    chain, at = rest[1:].view(5, 3, 3, 10), rest[0].expand(5, 3, 10)
    parents, here, places = posed.parents.view(batch, 5, 3, 3, 3), at.expand(batch, 5, 3, 10), []
    for level in range(3):
        here, at = here + parents[:, :, level] @ (chain[:, level] - at), chain[:, level]
        places.append(here)
    joints = torch.cat([rest[0].expand(batch, 1, 3, 10), torch.stack(places, 2).flatten(1, 2)], 1)
    flesh = hand.tip_dirs.permute(1, 2, 0) - rest[:, None]  # (16, 5, 3, 10)
    carried = posed.world[:, :, None] @ flesh + joints[:, :, None]
    return torch.cat([joints, (hand.weights[..., None, None] * carried).sum(1)], 1)
