"""Sampling that avoids the scene: predicted bodies move along the gradient of their penetration.

The gradient is taken per picture, of the *predicted* pose and with respect to the numbers that are moved (the normalised x_0), so its
strength depends neither on the batch nor on the pose statistics nor on how densely the scene was sampled (a cloud of fewer points than the
published 20,000 counts as often), and it reaches the result, the last prediction, too. What the published system does instead is in
compat.py.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pose_tools.body_models import Smpl
from pose_tools.egohmr.body import decode_pose, pose_body
from pose_tools.egohmr.collision import BodyField, CapsuleField, penetration
from pose_tools.egohmr.diffusion import Schedule
from pose_tools.egohmr.scene import TARGET

LEGS = (1, 2, 4, 5, 7, 8, 10, 11)
"""Hips, knees, ankles, feet: what a table or a sofa hides."""


def leg_weights() -> Tensor:
    """(24,): 1 for hips, 2 for the rest of the legs, 0 above, as published."""
    weights = torch.zeros(24)
    weights[list(LEGS)] = torch.tensor([1.0 if joint < 3 else 2.0 for joint in LEGS])
    return weights


WEIGHT, REPEATS = 10.0, 4
"""Chosen on the synthetic rooms' validation pictures for capsules, whose penetration is in metres: collisions fall by a quarter, visible
joints stay where they are."""


@dataclass(frozen=True)
class Guidance:
    """How to guide a sampling.

    `field` measures penetration. `weight` scales the gradient (None: `WEIGHT`, in compat mode the published one); `start` is the noisiest
    step (of the full schedule) at which it acts; `joints` (24,) weights of the joints' gradients (None: the legs', as published);
    `least` keeps the strength from vanishing with the noise; a step moves no joint's six numbers further than `longest`;
    `repeats` gradient steps per prediction; `most` points per body are looked at.
    """

    field: BodyField
    weight: float | None = None
    start: int = 20
    joints: Tensor | None = None
    least: float = 0.02
    longest: float = 0.3
    repeats: int = REPEATS
    most: int | None = 2000

    def move(self, x0: Tensor, t: int, betas: Tensor, points: Tensor, smpl: Smpl, mean: Tensor, std: Tensor, schedule: Schedule) -> Tensor:
        """Predictions x_0 (B, 24, 6) at step `t` → moved ones; `betas` (B, 10), `points` (B, N, 3) around the body's own origin."""
        if t > self.start:
            return x0
        strength = (WEIGHT if self.weight is None else self.weight) * max(1 - float(schedule.alphas_cumprod[t]), self.least)
        field = self.field
        if isinstance(field, CapsuleField) and field.smpl is smpl:  # which depend on joints and few vertices only
            field = field.lean
            smpl = field.body
        strength = strength * TARGET / max(1, points.shape[1])
        joints = (leg_weights() if self.joints is None else self.joints).to(x0)[:, None]
        for _ in range(self.repeats):
            with torch.enable_grad():
                moving = x0.detach().requires_grad_()
                body = pose_body(smpl, decode_pose(moving.flatten(1) * std + mean, "row"), betas.detach())
                (gradient,) = torch.autograd.grad(penetration(field, body, points, self.most).sum(), moving)
            step = -strength * joints * gradient
            length = step.norm(dim=-1, keepdim=True)
            x0 = x0 + step * (self.longest / length.clamp_min(self.longest))
        return x0
