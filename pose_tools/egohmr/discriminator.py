"""HMR's pose and shape discriminator (Kanazawa et al. 2018)."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional


class Discriminator(nn.Module):
    """Body rotations (B, 23, 3, 3) and betas (B, 10) → 25 scores (B, 25): one per joint, one of the shape, one of all joints together."""

    def __init__(self, joints: int = 23, hidden: int = 1024):
        super().__init__()
        self.D_conv1, self.D_conv2 = nn.Conv2d(9, 32, 1), nn.Conv2d(32, 32, 1)
        self.pose_out = nn.ModuleList(nn.Linear(32, 1) for _ in range(joints))
        self.betas_fc1, self.betas_fc2, self.betas_out = nn.Linear(10, 10), nn.Linear(10, 5), nn.Linear(5, 1)
        self.D_alljoints_fc1, self.D_alljoints_fc2 = nn.Linear(32 * joints, hidden), nn.Linear(hidden, hidden)
        self.D_alljoints_out = nn.Linear(hidden, 1)

    def forward(self, body_pose: Tensor, betas: Tensor) -> Tensor:
        maps = body_pose.flatten(2).transpose(1, 2)[..., None]  # (B, 9, 23, 1)
        maps = functional.relu(self.D_conv2(functional.relu(self.D_conv1(maps))))
        joints = [head(maps[:, :, number, 0]) for number, head in enumerate(self.pose_out)]
        shape = self.betas_out(functional.relu(self.betas_fc2(functional.relu(self.betas_fc1(betas)))))
        every = functional.relu(self.D_alljoints_fc2(functional.relu(self.D_alljoints_fc1(maps.flatten(1)))))
        return torch.cat([*joints, shape, self.D_alljoints_out(every)], 1)
