"""What a regressor says about one crop, and how it lies before the real camera.

A regressor sees a square crop of a right hand (a left one mirrored) and answers in the crop's own camera: z goes through the
crop's centre, x and y along its sides. Crop units: x right, y down, the crop spans −0.5 … 0.5.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, fields

import torch
from torch import Tensor


@dataclass(frozen=True)
class HandPrediction:
    """A batch of right hands in their crops' cameras. Metres, radians, crop units; joints in FreiHAND order.

    `rotations` (B, 16, 3, 3): the root's, then MANO's 15 joints', absolute (mean pose added). `betas` (B, 10).
    `camera` (B, 3): crop widths per metre at the wrist's depth, then where the wrist is in the crop (x, y).
    `joints_3d` (B, 21, 3) and `vertices` (B, 778, 3) relative to the wrist.
    `joints_2d` (B, 21, 2): the network's own key points, crop units, with `log_scale_2d` (B, 21); `log_scale_3d` (B, 21) of the
    joints relative to the wrist in metres: natural logarithms of the scale of a Laplace distribution, the error to be expected.
    """

    rotations: Tensor
    betas: Tensor
    camera: Tensor
    joints_3d: Tensor
    vertices: Tensor
    joints_2d: Tensor
    log_scale_2d: Tensor
    log_scale_3d: Tensor

    @property
    def confidence(self) -> Tensor:
        """(B,) in 0..1: 1 / (1 + the expected error of a joint in centimetres)."""
        return 1 / (1 + 100 * self.log_scale_3d.exp().mean(-1))

    def wrist(self, projection: Tensor) -> Tensor:
        """(B, 3) metres: where the wrist is in the crop's camera, from `camera` and the crop's `projection` (B, 3, 3)."""
        scale, place = self.camera[:, :1], self.camera[:, 1:]
        ray = torch.linalg.solve(projection, torch.cat([place, torch.ones_like(scale)], 1))
        return ray / ray[:, 2:] * (focal(projection)[:, None] / scale)

    def map(self, function: Callable[[Tensor], Tensor]) -> HandPrediction:
        """The prediction with every tensor replaced: `prediction.map(lambda x: x[3:5])`."""
        return HandPrediction(*(function(getattr(self, field.name)) for field in fields(self)))


def focal(projection: Tensor) -> Tensor:
    """(B,) crop widths: how fast a point at the crop's centre moves per unit of x / z, from projections (B, 3, 3) to crop units."""
    # d(u/w)/dx at (0, 0, 1), where u = v = 0 and w = projection[2, 2]
    slopes = torch.stack([projection[:, 0, 0], projection[:, 1, 1]], -1) / projection[:, 2, 2:]
    return slopes.abs().prod(-1).sqrt()
