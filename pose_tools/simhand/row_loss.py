"""NT-Xent a few rows at a time, with its gradient made on the way: no array of all rows by all columns ever exists."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

Panel = Callable[[int, int], Tensor]
"""(start, stop) → weights (stop − start, M) of those rows; the caller gives them away."""


def row_loss(
    rows: Tensor,
    columns: Tensor,
    own: Tensor,
    partner: Tensor,
    positive_weights: Tensor | None,
    negative_weights: Panel | None,
    temperature: float,
    block: int,
) -> Tensor:
    """Mean over rows (R, D) of −log( exp(w⁺ s_partner / τ) / Σ_{k ≠ own} exp(w⁻_k s_k / τ) ), s = row · columns (M, D) → scalar.

    `own`, `partner` (R,): the columns of the row itself and of its positive. `positive_weights` (R,) or None.
    """
    if block < 1:
        raise ValueError(f"block must be at least 1 row, got {block}")
    with torch.autocast(rows.device.type, enabled=False):
        return _RowLoss.apply(rows, columns, own, partner, positive_weights, negative_weights, temperature, block)


class _RowLoss(torch.autograd.Function):
    """The forward pass has all it needs for the gradient of a panel of rows, so it makes it there; backward only scales it."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, columns: Tensor, own: Tensor, partner: Tensor, positive: Tensor | None,
                negative: Panel | None, temperature: float, block: int) -> Tensor:  # fmt: skip
        rows, columns = rows.detach(), columns.detach()
        wanted = ctx.needs_input_grad[0] or ctx.needs_input_grad[1]
        # without a gradient to make, these stay empty
        grad_rows = torch.empty_like(rows if wanted else rows[:0])
        grad_columns = torch.zeros_like(columns if wanted else columns[:0])
        total = torch.zeros((), dtype=torch.float64, device=rows.device)
        for start in range(0, len(rows), block):
            stop = min(start + block, len(rows))
            panel, to, at = rows[start:stop], partner[start:stop, None], own[start:stop, None]
            logits = panel @ columns.T
            pull = torch.ones_like(logits[:, :1]) if positive is None else positive[start:stop, None].to(logits.dtype)
            target = logits.gather(1, to) * pull
            weights = None if negative is None else negative(start, stop).to(logits.dtype)
            if weights is not None:
                logits.mul_(weights)
            logits.div_(temperature).scatter_(1, at, float("-inf"))
            normaliser = logits.logsumexp(1, keepdim=True)
            total += (normaliser - target / temperature).sum(dtype=torch.float64)
            if not wanted:
                continue
            slope = logits.sub_(normaliser).exp_()
            if weights is not None:
                slope.mul_(weights)
            slope.scatter_add_(1, to, -pull).div_(temperature * len(rows))
            torch.matmul(slope, columns, out=grad_rows[start:stop])
            grad_columns.addmm_(slope.T, panel)
        ctx.save_for_backward(grad_rows, grad_columns)
        return (total / len(rows)).to(rows.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        grad_rows, grad_columns = ctx.saved_tensors
        return grad_rows * grad, grad_columns * grad, None, None, None, None, None, None
