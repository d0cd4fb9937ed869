"""PeCLR's fine-tuned net: pixels and relative depths of 21 joints from a picture, with a refined depth of the root.

Joints are in AIT order (`pose_tools.joints`), joint 0 being the palm, the mid point of wrist and middle base.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from pose_tools.simhand.lifting import PECLR_BONE, rays, root_depth

if TYPE_CHECKING:
    from pose_tools.simhand.encoder import Encoder

DEFAULT_INTRINSICS = ((388.9018310596544, 0.0, 112.0), (0.0, 388.71231836584275, 112.0), (0.0, 0.0, 1.0))
"""For 224-px pictures without a camera of their own."""


class Regression25D(nn.Module):
    """`forward(pictures (B, 3, 224, 224), intrinsics (3, 3) | (B, 3, 3) | None)` → dict, AIT order, scale-normalised by the reference bone:

    kp3d (B, 21, 3) camera coordinates in lengths of the bone middle base – middle PIP (times its metric length: metres), kp2d (B, 21, 2)
    pixels, zrel (B, 21, 1) depth relative to the palm in bone lengths, kp25d (B, 21, 3) the two together.
    """

    def __init__(self, encoder: Encoder):
        super().__init__()
        self.encoder = encoder
        self.fc = nn.Linear(encoder.width, 3 * 21 + 1)
        self.root_refinement = nn.Sequential(
            nn.Linear(64, 128),
            nn.BatchNorm1d(128),
            nn.LeakyReLU(),
            nn.Linear(128, 128),
            nn.BatchNorm1d(128),
            nn.LeakyReLU(),
            nn.Linear(128, 1),
        )
        self.register_buffer("intrinsics", torch.tensor(DEFAULT_INTRINSICS), persistent=False)

    def forward(self, pixels: Tensor, intrinsics: Tensor | None = None) -> dict[str, Tensor]:
        output = self.fc(self.encoder(pixels))[:, :-1].view(-1, 21, 3)  # the 64th number is not used
        xy, z_rel = output[..., :2], torch.cat([torch.zeros_like(output[:, :1, 2]), output[:, 1:, 2]], dim=1)
        intrinsics = self.intrinsics if intrinsics is None else intrinsics.to(xy)
        points = rays(xy, intrinsics)
        depth = root_depth(points, z_rel, PECLR_BONE, 1e-8).detach().clamp(4.0, 50.0)[:, None]
        seen = torch.cat([z_rel, points[..., :2].flatten(1), depth], dim=1)
        depth = depth + self.root_refinement(seen)
        joints = points * (z_rel + depth)[..., None]
        return {"kp3d": joints, "zrel": z_rel[..., None], "kp2d": xy, "kp25d": torch.cat([xy, z_rel[..., None]], dim=-1)}
