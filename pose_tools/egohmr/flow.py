"""A conditional Glow over body poses (ProHMR, Kolotouros et al. 2021): exact densities, one-pass sampling, and the head beside it.

Repetitions of [activation normalisation, LU-factored linear map, additive coupling]; data → noise is the forward direction. The condition
enters the couplings' first layer only, so its share is computed once per picture, however many poses are sampled.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

POSE_WIDTH = 144
_LEAST_DIAGONAL = 1e-3


class ActNorm(nn.Module):
    """y = exp(log_scale) · x + shift. The first batch in training mode sets both, so that its y has mean 0 and deviation 1."""

    def __init__(self, width: int):
        super().__init__()
        self.log_scale, self.shift = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.register_buffer("initialized", torch.tensor(False))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """x (n, width) → (y, log |det| ())."""
        if self.training and not self.initialized:
            self.initialize(x)
        return torch.exp(self.log_scale) * x + self.shift, self.log_scale.sum()

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        return (y - self.shift) * torch.exp(-self.log_scale), -self.log_scale.sum()

    @torch.no_grad()
    def initialize(self, x: Tensor) -> None:
        """From a batch (n, width), n ≥ 2."""
        if len(x) < 2:
            raise ValueError(f"the flow's first training batch sets its normalisation and needs 2 poses or more, got {len(x)}")
        deviation = x.std(0).clamp_min(1e-3)
        self.log_scale.copy_(-deviation.log())
        self.shift.copy_(-(x / deviation).mean(0))
        self.initialized.fill_(True)


class LULinear(nn.Module):
    """y = L (U x) + bias: L unit lower triangular, U upper triangular with a positive diagonal. Starts as the identity."""

    def __init__(self, width: int):
        super().__init__()
        below, above = torch.tril_indices(width, width, -1), torch.triu_indices(width, width, 1)
        self.register_buffer("below", below, persistent=False)
        self.register_buffer("above", above, persistent=False)
        self.lower_entries, self.upper_entries = nn.Parameter(torch.zeros(below.shape[1])), nn.Parameter(torch.zeros(above.shape[1]))
        self.unconstrained_upper_diag = nn.Parameter(torch.full((width,), math.log(math.expm1(1 - _LEAST_DIAGONAL))))
        self.bias = nn.Parameter(torch.zeros(width))

    def diagonal(self) -> Tensor:
        return functional.softplus(self.unconstrained_upper_diag) + _LEAST_DIAGONAL

    def factors(self) -> tuple[Tensor, Tensor]:
        """L and U, each (width, width)."""
        width = len(self.bias)
        empty = self.bias.new_zeros(width, width)
        lower = empty.index_put(tuple(self.below), self.lower_entries) + torch.eye(width, dtype=empty.dtype, device=empty.device)
        return lower, empty.index_put(tuple(self.above), self.upper_entries) + torch.diag(self.diagonal())

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.factors()
        return functional.linear(functional.linear(x, upper), lower, self.bias), self.diagonal().log().sum()

    def inverse(self, y: Tensor) -> tuple[Tensor, Tensor]:
        lower, upper = self.factors()
        x = torch.linalg.solve_triangular(lower, (y - self.bias).T, upper=False, unitriangular=True)
        return torch.linalg.solve_triangular(upper, x, upper=True).T, -self.diagonal().log().sum()


class ResidualLayer(nn.Module):
    """Pre-activation block [batch norm, relu, linear, batch norm, relu, dropout, linear] on (n, width)."""

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.batch_norm_layers = nn.ModuleList(nn.BatchNorm1d(width) for _ in range(2))
        self.linear_layers = nn.ModuleList(nn.Linear(width, width) for _ in range(2))
        self.dropout = nn.Dropout(dropout)
        for value in self.linear_layers[1].parameters():  # starts close to the identity
            nn.init.uniform_(value, -1e-3, 1e-3)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.linear_layers[0](functional.relu(self.batch_norm_layers[0](x)))
        return x + self.linear_layers[1](self.dropout(functional.relu(self.batch_norm_layers[1](hidden))))


class Coupling(nn.Module):
    """Moves half of the numbers by a function of the other half and the condition; log |det| = 0."""

    def __init__(self, width: int, context: int, hidden: int, keep_even: bool, blocks: int = 2, dropout: float = 0.5):
        super().__init__()
        self.first = 0 if keep_even else 1
        self.initial_layer = nn.Linear(width // 2 + context, hidden)
        self.blocks = nn.ModuleList(ResidualLayer(hidden, dropout) for _ in range(blocks))
        self.final_layer = nn.Linear(hidden, width // 2)

    def condition(self, context: Tensor) -> Tensor:
        """The condition's share of the first layer: (B, context) → (B, hidden)."""
        return functional.linear(context, self.initial_layer.weight[:, self.final_layer.out_features :], self.initial_layer.bias)

    def shift(self, kept: Tensor, condition: Tensor) -> Tensor:
        hidden = functional.linear(kept, self.initial_layer.weight[:, : kept.shape[-1]]) + condition
        for block in self.blocks:
            hidden = block(hidden)
        return self.final_layer(hidden)

    def move(self, x: Tensor, condition: Tensor, sign: float) -> Tensor:
        kept, moved = x[:, self.first :: 2], x[:, 1 - self.first :: 2]
        pair = [kept, moved + sign * self.shift(kept, condition)]
        return torch.stack(pair if self.first == 0 else pair[::-1], -1).flatten(1)


class Glow(nn.Module):
    """The transforms one after the other; `transforms` holds them as [norm, linear, coupling] × repetitions."""

    def __init__(self, context: int, hidden: int = 1024, repetitions: int = 4, width: int = POSE_WIDTH):
        super().__init__()
        self.width = width
        self.transforms = nn.ModuleList()
        for number in range(repetitions):
            self.transforms.extend([ActNorm(width), LULinear(width), Coupling(width, context, hidden, keep_even=number % 2 == 0)])

    def stages(self, x: Tensor, context: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Every transform's output (n, width) and log |det| () from data x (n, width) on; `context` (n / k, c) serves k rows each."""
        found, none = [], x.new_zeros(())
        for transform in self.transforms:
            if isinstance(transform, Coupling):
                found.append((transform.move(x, _spread(transform.condition(context), len(x)), 1.0), none))
            else:
                found.append(transform(x))
            x = found[-1][0]
        return found

    def forward(self, x: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Data x (n, width) → (noise z (n, width), log |det| ())."""
        found = self.stages(x, context)
        return found[-1][0], torch.stack([value for _, value in found]).sum()

    def inverse(self, z: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """Noise z (n, width) → (data, log |det| of the inverse ())."""
        total = z.new_zeros(())
        for transform in reversed(self.transforms):
            if isinstance(transform, Coupling):
                z = transform.move(z, _spread(transform.condition(context), len(z)), -1.0)
            else:
                z, value = transform.inverse(z)
                total = total + value
        return z, total


class ShapeHead(nn.Module):
    """Body shape and weak-perspective camera of a picture, as corrections to the mean: context (B, c) → betas (B, 10), cam (B, 3)."""

    def __init__(self, context: int, hidden: int = 1024):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(context, hidden), nn.ReLU(), nn.Linear(hidden, 13))
        self.register_buffer("init_betas", torch.zeros(1, 1, 10))
        self.register_buffer("init_cam", torch.tensor([[[0.9, 0.0, 0.0]]]))
        nn.init.xavier_uniform_(self.layers[2].weight, gain=0.02)

    def forward(self, context: Tensor) -> tuple[Tensor, Tensor]:
        out = self.layers(context)
        return out[:, :10] + self.init_betas[0], out[:, 10:] + self.init_cam[0]


class PoseFlow(nn.Module):
    """p(pose | picture, scene) over 24 × 6D rotations (column order, root first), with the shape and camera head."""

    def __init__(self, context: int = 2566, hidden: int = 1024, repetitions: int = 4):
        super().__init__()
        self.flow = Glow(context, hidden, repetitions)
        self.fc_head = ShapeHead(context, hidden)

    def log_prob(self, pose6d: Tensor, context: Tensor) -> tuple[Tensor, Tensor]:
        """`pose6d` (B, n, 144), `context` (B, c) → (log density (B, n), z (B, n, 144))."""
        self._check(pose6d, context, "pose6d")
        z, determinant = self.flow(pose6d.flatten(0, 1), context)
        return (_standard_normal(z) + determinant).view(pose6d.shape[:2]), z.view(pose6d.shape)

    def sample(self, context: Tensor, z: Tensor) -> dict[str, Tensor]:
        """Poses at chosen noise z (B, n, 144), any n per picture; z = 0 is the most likely pose.

        Returns pose6d (B, n, 144), rotations (B, n, 24, 3, 3), log_prob (B, n), z, and betas (B, n, 10), cam (B, n, 3), which are the same
        for all poses of a picture.
        """
        from pose_tools.egohmr.body import decode_pose

        self._check(z, context, "z")
        pose6d, determinant = self.flow.inverse(z.flatten(0, 1), context)
        betas, cam = (value[:, None].expand(-1, z.shape[1], -1) for value in self.fc_head(context))
        log_prob = (_standard_normal(z.flatten(0, 1)) - determinant).view(z.shape[:2])
        pose6d = pose6d.view(z.shape)
        rotations = decode_pose(pose6d, "prohmr")
        return {"pose6d": pose6d, "rotations": rotations, "global_orient": rotations[:, :, :1], "body_pose": rotations[:, :, 1:],
                "betas": betas, "cam": cam, "log_prob": log_prob, "z": z}  # fmt: skip

    def _check(self, value: Tensor, context: Tensor, name: str) -> None:
        if value.ndim != 3 or value.shape[-1] != POSE_WIDTH or not value.shape[1] or len(value) != len(context):
            raise ValueError(f"{name} has shape {tuple(value.shape)}: expected (B, n, {POSE_WIDTH}) with n ≥ 1 and B = {len(context)}")


def _spread(condition: Tensor, rows: int) -> Tensor:
    """(B, hidden) → (rows, hidden), every row `rows / B` times in turn."""
    return condition if len(condition) == rows else condition.repeat_interleave(rows // len(condition), 0)


def _standard_normal(z: Tensor) -> Tensor:
    return -0.5 * (z * z).sum(-1) - 0.5 * z.shape[-1] * math.log(2 * math.pi)
