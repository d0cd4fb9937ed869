"""How different two hands' 2-D poses are, and the weights that SiMHand makes of it.

A batch has N pairs of views with key points J1, J2 (N, 21, 2); J = [J1; J2] are all 2N. d_i is the distance of a positive pair,
d_ik that of any two of the 2N views, zero on the diagonal. The three distances are those of the published code, which
averages positives and pairs differently in the last two; "pca" is ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

Distance = Literal["mpjpe", "w_abs", "w_o_abs", "pca"]
Kind = Literal["linear", "non_linear"]
DISTANCES = ("mpjpe", "w_abs", "w_o_abs", "pca")
PCA_DIMS = 14


def check_joints(joints_1: Tensor, joints_2: Tensor, distance: str) -> tuple[Tensor, Tensor]:
    """Both as float32 (N, 21, 2) without gradient; ValueError for other shapes, numbers that are not finite, unknown distances."""
    if distance not in DISTANCES:
        raise ValueError(f"distance must be one of {', '.join(DISTANCES)}, got {distance!r}")
    if joints_1.shape != joints_2.shape or joints_1.dim() != 3 or joints_1.shape[-1] < 2 or len(joints_1) == 0:
        raise ValueError(f"joints_1 and joints_2 must both be (N, 21, 2), got {tuple(joints_1.shape)} and {tuple(joints_2.shape)}")
    for name, joints in (("joints_1", joints_1), ("joints_2", joints_2)):
        bad = (~torch.isfinite(joints[..., :2])).flatten(1).any(1).nonzero().flatten().tolist()
        if bad:
            raise ValueError(
                f"{name}: key points of samples {bad[:8]} are not finite; drop hands with missing points before the batch is made"
            )
    return joints_1[..., :2].detach().float(), joints_2[..., :2].detach().float()


def positive_distances(joints_1: Tensor, joints_2: Tensor, distance: Distance) -> Tensor:
    """d_i (N,) of the pairs J1[i], J2[i]."""
    difference = joints_1 - joints_2
    if distance == "mpjpe":
        return difference.norm(dim=-1).mean(-1)
    if distance == "pca":
        return difference.flatten(1).norm(dim=-1)
    return (difference.abs() if distance == "w_abs" else difference).mean(1).norm(dim=-1)


def pair_distances(rows: Tensor, columns: Tensor, distance: Distance) -> Tensor:
    """d_ik (R, C) of every row's pose (R, J, 2) to every column's (C, J, 2), joint by joint: never more than three (R, C) arrays."""
    if distance in ("pca", "w_o_abs"):
        flat_rows, flat_columns = (x.flatten(1) if distance == "pca" else x.sum(-1) / 2 for x in (rows, columns))
        return torch.cdist(flat_rows, flat_columns, compute_mode="donot_use_mm_for_euclid_dist")
    x, y = columns[..., 0].T.contiguous(), columns[..., 1].T.contiguous()
    total = rows.new_zeros(len(rows), len(columns))
    dx, dy = torch.empty_like(total), torch.empty_like(total)
    for joint in range(rows.shape[1]):
        torch.sub(rows[:, joint, 0, None], x[joint], out=dx)
        torch.sub(rows[:, joint, 1, None], y[joint], out=dy)
        if distance == "mpjpe":
            total += dx.mul_(dx).addcmul_(dy, dy).sqrt_()
        else:
            dx.abs_().add_(dy.abs_())
            total.addcmul_(dx, dx)
    return total.div_(rows.shape[1]) if distance == "mpjpe" else total.sqrt_().div_(2)


def one_basis(joints_1: Tensor, joints_2: Tensor, dims: int = PCA_DIMS) -> tuple[Tensor, Tensor]:
    """Both batches (N, 21, 2) in the first `dims` principal directions of all 2N poses: (N, dims, 1) each, without randomness."""
    flat = torch.cat([joints_1, joints_2]).flatten(1).double()
    flat = flat - flat.mean(0)
    directions = torch.linalg.eigh(flat.T @ flat).eigenvectors.flip(1)[:, :dims]
    first, second = (flat @ directions).float().unsqueeze(-1).chunk(2)
    return first, second


@dataclass(frozen=True)
class WeightRule:
    """Distances → weights in 0…1. linear: (most − d) / (most − least). non_linear: 1 / (1 + exp(rate · (d − mean)))."""

    kind: Kind
    least: float = 0.0
    most: float = 0.0
    mean: float = 0.0
    rate: float = 0.0

    def apply_(self, distances: Tensor) -> Tensor:
        """In place. All distances equal (one pair, identical poses): weight 1, where the published formula gives 0 / 0."""
        if self.kind == "non_linear":
            return distances.sub_(self.mean).mul_(-self.rate).sigmoid_()
        if not self.most > self.least:
            return distances.fill_(1.0)
        return distances.neg_().add_(self.most).div_(self.most - self.least)


def check_kind(kind: str) -> None:
    """ValueError for anything but "linear" and "non_linear"."""
    if kind not in ("linear", "non_linear"):
        raise ValueError(f"kind must be 'linear' or 'non_linear', got {kind!r}")


def rule_for(distances: Tensor, kind: Kind, rate: float) -> WeightRule:
    """The rule whose numbers come from these distances."""
    least, most = (float(v) for v in distances.aminmax())
    return WeightRule(kind, least, most, float(distances.double().mean()), rate)


def statistics(rows: Tensor, columns: Tensor, distance: Distance, kind: Kind, block: int) -> tuple[float, float]:
    """(largest distance, sum of distances) over all rows (R, J, 2) and columns (C, J, 2), `block` rows at a time.

    With `rows is columns` the matrix is symmetric, and only half of it is computed. One of the two numbers, which the kind does
    not use, is 0.
    """
    most, total = 0.0, 0.0
    for start in range(0, len(rows), block):
        panel = rows[start : start + block]
        # the square on the diagonal once, what lies right of it for both halves
        parts = [(columns, 1.0)] if rows is not columns else [(panel, 1.0), (columns[start + block :], 2.0)]
        for part, times in parts:
            if len(part) == 0:
                continue
            distances = pair_distances(panel, part, distance)
            if kind == "linear":
                most = max(most, float(distances.max()))
            else:
                total += times * float(distances.sum(dtype=torch.float64))
    return most, total
