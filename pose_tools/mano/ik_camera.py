"""How landmarks are observed: in space, by a camera with known intrinsics, or by a weak-perspective one."""

from __future__ import annotations

from typing import NamedTuple

import torch

from pose_tools.mano.ik_chain import Hand, State, landmarks, landmarks_and_jacobian


class View(NamedTuple):
    """What each of B hands was seen as.

    `target` (B, 21, 2|3) in MANO's order with tips; `weight` (B, 21) ≥ 0; `unit` (B,) target units per metre at the hand (1 in space,
    pixels in pictures), by which residuals are divided; `intrinsics` (B, 3, 3), or None for weak perspective and for space.
    """

    target: torch.Tensor
    weight: torch.Tensor
    unit: torch.Tensor
    intrinsics: torch.Tensor | None

    def rows(self, index: torch.Tensor) -> View:
        """The hands of `index`."""
        return View(
            self.target[index], self.weight[index], self.unit[index], None if self.intrinsics is None else self.intrinsics[index]
        )


NEAREST = 0.02
"""Metres: landmarks nearer to the camera are taken as this far, so that a step through the camera's centre stays finite."""


def residuals(hand: Hand, state: State, view: View) -> torch.Tensor:
    """Observed minus given (B, 21, d), metres at the hand."""
    return (_observe(landmarks(hand, state), state, view) - view.target) / view.unit[:, None, None]


def residuals_and_jacobian(hand: Hand, state: State, view: View, with_shape: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """As `residuals`, and their derivatives (B, 21, d, 62 or 52) in the order of the step vector."""
    points, jacobian = landmarks_and_jacobian(hand, state, with_shape)
    size = view.target.shape[2]
    if view.intrinsics is None:
        scale = state.log_scale.exp()[:, :, None, None]
        seen = points[:, :, :size, None]
        jacobian = torch.cat([jacobian[:, :, :size, :51], seen, jacobian[:, :, :size, 51:]], 3) * scale
    else:
        depth = points[:, :, 2].clamp(min=NEAREST)[..., None, None]
        image = view.intrinsics[:, None, :2] @ (points / depth[..., 0])[..., None]
        slope = (view.intrinsics[:, None, :2] - image * torch.tensor([0.0, 0.0, 1.0], dtype=points.dtype, device=points.device)) / depth
        jacobian = slope @ jacobian
        jacobian = torch.cat([jacobian[..., :51], torch.zeros_like(jacobian[..., :1]), jacobian[..., 51:]], 3)
    seen = (_observe(points, state, view) - view.target) / view.unit[:, None, None]
    return seen, jacobian / view.unit[:, None, None, None]


def _observe(points: torch.Tensor, state: State, view: View) -> torch.Tensor:
    if view.intrinsics is None:
        return points[:, :, : view.target.shape[2]] * state.log_scale.exp()[:, :, None]
    ahead = points / points[:, :, 2:].clamp(min=NEAREST)
    return ahead @ view.intrinsics[:, :2].transpose(1, 2)
