"""Rows of all processes, with gradients that flow back to the process they came from."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, distributed


def world() -> int:
    """Number of processes of the group, 1 without one."""
    return distributed.get_world_size() if distributed.is_available() and distributed.is_initialized() else 1


def gather_rows(local: Tensor) -> tuple[Tensor, int]:
    """(all rows in the order of the ranks, this rank). Every process must bring the same number of rows.

    Backward: the gradients that all processes have for this process's rows, summed.
    """
    if world() == 1:
        return local, 0
    counts = [torch.zeros(1, dtype=torch.long, device=local.device) for _ in range(world())]
    distributed.all_gather(counts, torch.tensor([len(local)], device=local.device))
    sizes = [int(count) for count in counts]
    if len(set(sizes)) > 1:
        raise ValueError(f"gathered negatives need batches of one size, the processes have {sizes}: drop the incomplete last batch")
    return _Gather.apply(local), distributed.get_rank()


def reduce_number(value: float, how: Literal["max", "sum"], device: torch.device) -> float:
    """The largest value of all processes, or their sum."""
    if world() == 1:
        return value
    number = torch.tensor([value], dtype=torch.float64, device=device)
    distributed.all_reduce(number, distributed.ReduceOp.MAX if how == "max" else distributed.ReduceOp.SUM)
    return float(number)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, local: Tensor) -> Tensor:
        ctx.rows = len(local)
        parts = [torch.empty_like(local) for _ in range(world())]
        distributed.all_gather(parts, local.detach().contiguous())
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        total = grad.contiguous().clone()
        distributed.all_reduce(total)
        first = distributed.get_rank() * ctx.rows
        return total[first : first + ctx.rows]
