"""The contrastive losses of SimCLR, PeCLR and SiMHand, plain and weighted by pose.

z1, z2 (N, D) are projections of two views of N hands; row i of one is the positive of row i of the other, all other rows of
both are negatives. The losses take them as they are: `undo_view` normalises.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from pose_tools.simhand.gather import gather_rows, reduce_number, world
from pose_tools.simhand.pose_distance import (
    Distance,
    Kind,
    WeightRule,
    check_joints,
    check_kind,
    one_basis,
    pair_distances,
    positive_distances,
    rule_for,
    statistics,
)
from pose_tools.simhand.row_loss import row_loss
from pose_tools.simhand.undo import undo_view

__all__ = ["nt_xent", "pose_weights", "undo_view", "weighted_nt_xent"]

ApplyTo = Literal["pos", "neg", "pos_neg"]
LAMBDAS = (5.0, 0.05)
"""Rates of the non-linear weights for positives and negatives, the published first choice."""
GATHERED_BLOCK = 512


def nt_xent(
    z1: Tensor,
    z2: Tensor,
    temperature: float = 0.5,
    positive_weights: Tensor | None = None,
    negative_weights: Tensor | None = None,
    *,
    block: int | None = None,
    gather: bool = False,
) -> Tensor:
    """Normalised-temperature cross entropy of N pairs z1, z2 (N, D) → scalar (Chen et al., SimCLR, ICML 2020, eq. 1).

    L = −(1/2N) Σ_i log( exp(w⁺_i s_i,p(i) / τ) / Σ_{k≠i} exp(w⁻_ik s_ik / τ) ), s_ik = z_i · z_k over z = [z1; z2], p(i) the
    partner of i. `positive_weights` (N,) hold for both directions of a pair, `negative_weights` (2N, 2N) for the whole
    denominator, the positive's own term included (SiMHand). Both are 1 by default, and no gradient flows through them.

    `block`: so many rows at a time; no (2N, 2N) array of ours is kept then. `gather`: the negatives of all processes count, and
    the mean of the processes' losses is the loss of the whole batch, gradients included (without weights only: the weighted
    form is `weighted_nt_xent`).
    """
    z1, z2 = _pairs(z1, z2)
    n = len(z1)
    if positive_weights is not None and positive_weights.shape != (n,):
        raise ValueError(f"positive_weights must be ({n},), got {tuple(positive_weights.shape)}")
    if negative_weights is not None and negative_weights.shape != (2 * n, 2 * n):
        raise ValueError(f"negative_weights must be ({2 * n}, {2 * n}), got {tuple(negative_weights.shape)}")
    if gather and world() > 1:
        if positive_weights is not None or negative_weights is not None:
            raise ValueError("nt_xent: weights of one process's pairs do not fit gathered negatives; use weighted_nt_xent(…, gather=True)")
        return _gathered(z1, z2, temperature, None, None, GATHERED_BLOCK if block is None else block)
    if block is not None:
        weights = None if positive_weights is None else positive_weights.detach().repeat(2)
        panel = None if negative_weights is None else (lambda start, stop: negative_weights[start:stop].detach().float())
        return row_loss(torch.cat([z1, z2]), torch.cat([z1, z2]), *_own_and_partner(n, n, 0, z1.device), weights, panel, temperature, block)
    z = torch.cat([z1, z2])
    cosines = z @ z.T
    target = torch.cat([cosines.diagonal(n), cosines.diagonal(-n)])
    if positive_weights is not None:
        target = target * positive_weights.detach().to(z.dtype).repeat(2)
    if negative_weights is not None:
        cosines = cosines * negative_weights.detach().to(z.dtype)
    logits = (cosines / temperature).masked_fill(torch.eye(2 * n, dtype=torch.bool, device=z.device), float("-inf"))
    return (logits.logsumexp(1) - target / temperature).mean()


def pose_weights(
    joints_1: Tensor,
    joints_2: Tensor,
    *,
    kind: Kind = "linear",
    distance: Distance = "mpjpe",
    lambdas: tuple[float, float] = LAMBDAS,
) -> tuple[Tensor, Tensor]:
    """Weights of N pairs from their key points (N, 21, 2) pixels of the augmented view → positive (N,), negative (2N, 2N).

    linear: w⁺ = (max d − d_i) / (max d − min d), w⁻ = 1 − d_ik / max d: the nearest positive pulls fully, the farthest not at
    all; near-by negatives push fully. non_linear: 1 / (1 + exp(λ (d − mean d))), `lambdas` = (λ of positives, λ of negatives).
    Where the published formula is 0 / 0 (a single pair, identical poses) the weight is 1.
    """
    check_kind(kind)
    joints_1, joints_2 = _reduced(*check_joints(joints_1, joints_2, distance), distance)
    positive = positive_distances(joints_1, joints_2, distance)
    joints = torch.cat([joints_1, joints_2])
    negative = pair_distances(joints, joints, distance)
    positive_rule, negative_rule = rule_for(positive, kind, lambdas[0]), rule_for(negative, kind, lambdas[1])
    return positive_rule.apply_(positive), negative_rule.apply_(negative)


def weighted_nt_xent(
    z1: Tensor,
    z2: Tensor,
    joints_1: Tensor,
    joints_2: Tensor,
    *,
    kind: Kind = "linear",
    distance: Distance = "mpjpe",
    apply_to: ApplyTo = "pos_neg",
    lambdas: tuple[float, float] = LAMBDAS,
    temperature: float = 0.5,
    block: int | None = None,
    gather: bool = False,
) -> Tensor:
    """`nt_xent` with the weights of `pose_weights` → scalar. z1, z2 (N, D); key points joints_1, joints_2 (N, 21, 2).

    `apply_to`: weights on the positive in the numerator, on the denominator, or both. `block`: so many rows of the (2N, 2N)
    similarities and weights exist at a time, in the backward pass too; the value and the gradient are the same. `gather`:
    negatives, and the weights' extremes, of all processes (equal batches); the mean of the processes' losses and gradients
    (what DistributedDataParallel takes) is that of the whole batch.
    """
    check_kind(kind)
    if apply_to not in ("pos", "neg", "pos_neg"):
        raise ValueError(f"apply_to must be 'pos', 'neg' or 'pos_neg', got {apply_to!r}")
    z1, z2 = _pairs(z1, z2)
    joints_1, joints_2 = check_joints(joints_1, joints_2, distance)
    if len(joints_1) != len(z1):
        raise ValueError(f"{len(z1)} pairs of projections, but {len(joints_1)} pairs of key points")
    gather = gather and world() > 1
    if block is None and not gather:
        positive, negative = pose_weights(joints_1, joints_2, kind=kind, distance=distance, lambdas=lambdas)
        return nt_xent(z1, z2, temperature, positive if "pos" in apply_to else None, negative if "neg" in apply_to else None)
    block, n = GATHERED_BLOCK if block is None else block, len(z1)
    rank, all_1, all_2 = 0, joints_1, joints_2
    if gather:
        (all_1, rank), (all_2, _) = gather_rows(joints_1), gather_rows(joints_2)
    all_1, all_2 = _reduced(all_1, all_2, distance)
    positive = None
    if "pos" in apply_to:
        positive = positive_distances(all_1, all_2, distance)
        positive = rule_for(positive, kind, lambdas[0]).apply_(positive)[rank * n : rank * n + n].repeat(2)
    panel = None
    if "neg" in apply_to:
        columns = torch.cat([all_1, all_2])
        rows = torch.cat([all_1[rank * n : rank * n + n], all_2[rank * n : rank * n + n]]) if gather else columns
        rule = _negative_rule(rows, columns, distance, kind, lambdas[1], block)
        panel = lambda start, stop: rule.apply_(pair_distances(rows[start:stop], columns, distance))  # noqa: E731
    if gather:
        return _gathered(z1, z2, temperature, positive, panel, block)
    z = torch.cat([z1, z2])
    return row_loss(z, z, *_own_and_partner(n, n, 0, z.device), positive, panel, temperature, block)


def _negative_rule(rows: Tensor, columns: Tensor, distance: Distance, kind: Kind, rate: float, block: int) -> WeightRule:
    """The rule over the whole (2N, 2N) matrix of all processes, of which this one sees `rows`; its diagonal is zero."""
    most, total = statistics(rows, columns, distance, kind, block)
    most, total = reduce_number(most, "max", rows.device), reduce_number(total, "sum", rows.device)
    return WeightRule(kind, 0.0, most, total / len(columns) ** 2, rate)


def _gathered(z1: Tensor, z2: Tensor, temperature: float, positive: Tensor | None, panel, block: int) -> Tensor:
    (all_1, rank), (all_2, _) = gather_rows(z1), gather_rows(z2)
    own, partner = _own_and_partner(len(z1), len(all_1), rank, z1.device)
    return row_loss(torch.cat([z1, z2]), torch.cat([all_1, all_2]), own, partner, positive, panel, temperature, block)


def _own_and_partner(n: int, total: int, rank: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Columns of each of the 2n rows itself and of its partner, among 2·total columns [view 1 of all; view 2 of all]."""
    first = torch.arange(rank * n, rank * n + n, device=device)
    return torch.cat([first, first + total]), torch.cat([first + total, first])


def _reduced(joints_1: Tensor, joints_2: Tensor, distance: Distance) -> tuple[Tensor, Tensor]:
    return one_basis(joints_1, joints_2) if distance == "pca" else (joints_1, joints_2)


def _pairs(z1: Tensor, z2: Tensor) -> tuple[Tensor, Tensor]:
    if z1.shape != z2.shape or z1.dim() != 2 or len(z1) == 0:
        raise ValueError(f"z1 and z2 must both be (N, D) with N ≥ 1, got {tuple(z1.shape)} and {tuple(z2.shape)}")
    # half precision cannot hold the sums; float64 stays
    return (z1, z2) if z1.dtype == torch.float64 else (z1.float(), z2.float())
