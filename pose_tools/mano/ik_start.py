"""Where the search for a hand's parameters begins, in closed form: the palm gives rotation and place, every bone its joint's turn.

The wrist and the five finger bases do not move against each other, whatever the fingers do. In space a weighted Umeyama alignment
of those six (determinant fixed) is exact for exact landmarks. In a picture the palm is a plane seen by an affine camera: the 2 × 2 map
from the plane to pixels holds the scale (its greater singular value) and the rotation up to the sign of the tilt.
"""

from __future__ import annotations

import torch

from pose_tools.geometry import similarity
from pose_tools.mano.ik_chain import TIP_OF_FINGER, Hand, State, landmarks, rotation_and_left_jacobian

PALM = [0, 1, 4, 7, 10, 13]
_REST_OF_HAND = 1e-3
"""Weight of the other landmarks in the usual pose: nothing beside the palm's, all there is where the palm is hidden."""
_MOST_BEND = 2.2
"""Radians a joint turns at the start; noise on a short bone can point anywhere."""


def start_in_space(hand: Hand, pose: torch.Tensor, betas: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, with_scale: bool):
    """The state (B) that places the palm on `target` (B, 21, 3) and bends each joint so that its bone points the right way.

    `pose` (45,) is the usual pose, which joints keep whose bone has no landmarks (`weight` 0).
    """
    flat = _usual(hand, pose, betas)
    points = landmarks(hand, flat)
    found = similarity(points.cpu().numpy(), target.cpu().numpy(), weights=_palm_weights(weight).cpu().numpy(), with_scale=with_scale)
    scale, root, shift = (torch.as_tensor(x, dtype=target.dtype, device=target.device) for x in found[:3])
    scale = scale.clamp(min=1e-9)
    # The model turns about its wrist: R (p − w) + w + t against s (R p) + shift.
    wrist = points[:, 0]
    transl = (root @ wrist[..., None])[..., 0] + shift / scale[:, None] - wrist
    state = State(root, flat.pose, transl, scale.log()[:, None], betas)
    return state._replace(pose=_bend(hand, state, target, weight))


def starts_in_picture(
    hand: Hand, pose: torch.Tensor, betas: torch.Tensor, target: torch.Tensor, weight: torch.Tensor, intrinsics: torch.Tensor | None
) -> list[State]:
    """Four states whose palms are seen at `target` (B, 21, 2) pixels, fingers in the usual pose: tilted one way and the other, and both
    with the palm's other face towards the camera, which differs little where it is seen edge-on."""
    flat = _usual(hand, pose, betas)
    points, share = landmarks(hand, flat), _palm_weights(weight)
    share = (share / share.sum(1, keepdim=True))[..., None]
    centre, seen = (share * points).sum(1), (share * target).sum(1)
    *_, plane = torch.linalg.svd(points[:, PALM] - points[:, PALM].mean(1, keepdim=True))
    plane = torch.cat([plane[:, :2], torch.linalg.cross(plane[:, 0], plane[:, 1], dim=-1)[:, None]], 1)
    flat_points, image = ((points - centre[:, None]) @ plane.transpose(1, 2))[..., :2], target - seen[:, None]
    spread = (share * flat_points).transpose(1, 2) @ flat_points
    spread += 1e-9 * torch.eye(2, dtype=spread.dtype, device=spread.device)
    u, sizes, vt = torch.linalg.svd((share * image).transpose(1, 2) @ flat_points @ torch.linalg.inv(spread))
    scale = sizes[:, :1].clamp(min=1e-9)
    narrow = (sizes[:, 1:] / scale).clamp(max=1.0)
    states = []
    for face, sign in ((1.0, 1.0), (1.0, -1.0), (-1.0, 1.0), (-1.0, -1.0)):
        top = u[:, :, :1] @ vt[:, :1] + face * narrow[..., None] * (u[:, :, 1:] @ vt[:, 1:])
        columns = torch.cat([top, sign * (1 - narrow.square()).clamp(min=0).sqrt()[..., None] * vt[:, 1:]], 1)
        third = torch.linalg.cross(columns[..., 0], columns[..., 1], dim=-1)
        root = torch.cat([columns, third[..., None]], 2) @ plane
        transl = _place(root, points[:, 0], centre, seen, scale, intrinsics)
        log_scale = torch.zeros_like(scale) if intrinsics is not None else scale.log()
        states.append(State(root, flat.pose, transl, log_scale, betas))
    return states


def pixels_per_metre(hand: Hand, state: State, intrinsics: torch.Tensor | None) -> torch.Tensor:
    """(B,) at the hand's wrist."""
    if intrinsics is None:
        return state.log_scale[:, 0].exp()
    return (intrinsics[:, 0, 0] * intrinsics[:, 1, 1]).sqrt() / landmarks(hand, state)[:, 0, 2].clamp(min=0.02)


def _usual(hand: Hand, pose: torch.Tensor, betas: torch.Tensor) -> State:
    batch = len(betas)
    eye = torch.eye(3, dtype=betas.dtype, device=betas.device)
    return State(eye.repeat(batch, 1, 1), pose.expand(batch, 45).clone(), betas.new_zeros(batch, 3), betas.new_zeros(batch, 1), betas)


def _palm_weights(weight: torch.Tensor) -> torch.Tensor:
    share = torch.full_like(weight, _REST_OF_HAND)
    share[:, PALM] = 1.0
    return share * weight


def _place(root, wrist, centre, seen, scale, intrinsics) -> torch.Tensor:
    """The translation (B, 3) that brings the palm's `centre` to the pixel `seen`, at the depth its size implies."""
    turned = (root @ (centre - wrist)[..., None])[..., 0] + wrist
    if intrinsics is None:
        return torch.cat([seen / scale - turned[:, :2], torch.zeros_like(scale)], 1)
    depth = (intrinsics[:, :1, 0] * intrinsics[:, 1:2, 1]).sqrt() / scale
    ray = torch.linalg.solve(intrinsics, torch.cat([seen, torch.ones_like(scale)], 1)[..., None])[..., 0]
    return depth * ray - turned


def _bend(hand: Hand, state: State, target: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """The pose (B, 45) in which every bone points along its two landmarks, by the smallest turn of its joint."""
    batch = len(target)
    rest = hand.rest + (state.betas @ hand.rest_dirs.flatten(1)).view(batch, 16, 3)
    tips = (hand.tips + (state.betas @ hand.tip_dirs.flatten(1)).view(batch, 5, 3))[:, TIP_OF_FINGER]

    def by_finger(values: torch.Tensor, ends: torch.Tensor) -> torch.Tensor:
        return torch.cat([values[:, 1:16].unflatten(1, (5, 3)), ends[:, :, None]], 2)

    bones = by_finger(rest, tips).diff(dim=2)
    seen = by_finger(target[..., :3], target[:, 16:][:, TIP_OF_FINGER]).diff(dim=2)
    known = by_finger(weight[..., None], weight[:, 16:, None][:, TIP_OF_FINGER])[..., 0] > 0
    pose, turn = state.pose.view(batch, 5, 3, 3).clone(), state.root[:, None].expand(-1, 5, -1, -1)
    for level in range(3):
        wanted = (turn.transpose(2, 3) @ seen[:, :, level, :, None])[..., 0]
        both = known[:, :, level] & known[:, :, level + 1]
        pose[:, :, level] = torch.where(both[..., None], _smallest_turn(bones[:, :, level], wanted), pose[:, :, level])
        turn = turn @ rotation_and_left_jacobian(pose[:, :, level])[0]
    return pose.view(batch, 45)


def _smallest_turn(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Axis-angle (…, 3) of the smallest rotation from the direction of `a` to that of `b`, at most `_MOST_BEND`."""
    axis = torch.linalg.cross(a, b, dim=-1)
    length = axis.norm(dim=-1, keepdim=True)
    angle = torch.atan2(length, (a * b).sum(-1, keepdim=True)).clamp(max=_MOST_BEND)
    return axis / length.clamp(min=1e-15) * angle
