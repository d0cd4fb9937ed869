"""Published behaviour of EgoHMR that the defaults do not repeat: its guidance's scaling."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pose_tools.egohmr.body import PosedBody
from pose_tools.egohmr.collision import inside_box
from pose_tools.egohmr.guidance import Guidance, leg_weights

VARIANTS = ("coap", "volumetric_smpl")
"""Published guidance with COAP (points in the body's box, mean over pictures, weight 2), with VolumetricSMPL (all points, sum, 30)."""


def variant_of(compat: bool | str | None) -> str | None:
    """None for ours; True and "egohmr" are "coap". Raises ValueError for names that are none of these."""
    if compat in (None, False):
        return None
    name = "coap" if compat in (True, "egohmr") else str(compat)
    if name not in VARIANTS:
        raise ValueError(f"compat={compat!r}: expected True, 'egohmr', {' or '.join(map(repr, VARIANTS))}")
    return name


@dataclass(frozen=True)
class PublishedGuidance:
    """The penetration's gradient with respect to the *denormalised noisy* pose, added to the *normalised* mean (the statistics' factor is
    missing there), for the legs only, and without effect at the last step. `images` divides where the mean over a batch was taken:
    samples of a picture were drawn one after the other, each in its own batch.

    `pose(y)` makes the bodies of poses (B, 24, 6), with the predicted shapes; `points` (B, N, 3) are around the body's own origin.
    """

    guidance: Guidance
    variant: str
    pose: Callable[[Tensor], PosedBody]
    points: Tensor
    images: int
    mean: Tensor
    std: Tensor

    def gradient(self, x_t: Tensor) -> Tensor:
        """Of minus the loss, (B, 24, 6), legs only."""
        with torch.enable_grad():
            y = (x_t.detach().flatten(1) * self.std + self.mean).view(x_t.shape).requires_grad_()
            body = self.pose(y)
            depth = self.guidance.field.penetration(body, self.points)
            if self.variant == "coap":
                depth = torch.where(inside_box(body, self.points), depth, torch.zeros(())) / self.images
            (found,) = torch.autograd.grad(-depth.sum(), y)
        return found * leg_weights().to(found)[:, None]

    @property
    def weight(self) -> float:
        return self.guidance.weight if self.guidance.weight is not None else {"coap": 2.0, "volumetric_smpl": 30.0}[self.variant]

    def mean_shift(self, x_t: Tensor, t: int, variance: float) -> Tensor | None:
        """What DDPM's mean gains at step t."""
        if t > 10:
            return None
        return self.weight * (variance if t >= 5 else 0.01) * self.gradient(x_t)

    def noise_shift(self, x_t: Tensor, index: int, alpha_bar: float) -> Tensor | None:
        """What DDIM's noise estimate gains at a step of the respaced schedule; the weight never reached it."""
        return -((1 - alpha_bar) ** 0.5) * self.gradient(x_t) if index <= 3 else None


MOST_POINTS = 4000


def first_points(body: PosedBody, points: Tensor) -> Tensor:
    """The scene (B, N, 3) as the published penetration loss sees it: of a cloud with more than 4000 points in the body's box, only
    those among its first 4000 count; the others are moved far away."""
    chosen = inside_box(body, points)
    crowded = chosen.sum(1, keepdim=True) > MOST_POINTS
    late = torch.arange(points.shape[1], device=points.device) >= MOST_POINTS
    return torch.where((crowded & late)[..., None], torch.full_like(points, 1e6), points)
