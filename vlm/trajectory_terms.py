"""What the losses of all path heads share: what counts, and what it is divided by."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor

COMPAT = ("handsonvlm", "handsonvlm_fp32")


def published(compat: bool | str | None) -> str | None:
    """The published loss and sampling that `compat` asks for: None for ours; True is "handsonvlm". Raises ValueError for another name."""
    if compat in (None, False):
        return None
    name = "handsonvlm" if compat is True else str(compat)
    if name not in COMPAT:
        raise ValueError(f"compat is {compat!r}, expected None, True, {' or '.join(map(repr, COMPAT))}")
    return name


def count_of(valid: Tensor, count: Tensor | int | None) -> Tensor | int:
    """What a loss is divided by: `count` where it is given, else the number of valid hand-steps here."""
    return valid.sum() if count is None else count


def check_states(states: Tensor, width: int, compat: bool | str | None) -> None:
    """Raises ValueError for states that are not (B, 2, T, width), and for an unknown `compat`."""
    published(compat)
    if states.dim() != 4 or states.shape[1] != 2 or states.shape[-1] != width:
        raise ValueError(f"expected states (B, 2, T, {width}), hands left, right, got {tuple(states.shape)}")


def checked(states: Tensor, width: int, target: Tensor, valid: Tensor, compat: bool | str | None) -> tuple[Tensor, Tensor]:
    """`target` (B, 2, T, 2) in float32, zero where it does not count, and `valid` (B, 2, T) bool, on the device of `states`.

    Raises ValueError for shapes that do not belong together, and for a valid step whose target is not finite.
    """
    check_states(states, width, compat)
    if target.shape != (*states.shape[:-1], 2):
        raise ValueError(f"expected a target {(*states.shape[:-1], 2)} for states {tuple(states.shape)}, got {tuple(target.shape)}")
    if tuple(valid.shape) not in (tuple(states.shape[:2]), tuple(states.shape[:3])):
        raise ValueError(f"expected valid {tuple(states.shape[:3])} or {tuple(states.shape[:2])}, got {tuple(valid.shape)}")
    valid = valid.to(states.device) > 0
    if valid.dim() == 2:
        valid = valid.unsqueeze(-1).expand(states.shape[:3])
    elif compat:
        valid = valid.any(-1, keepdim=True).expand_as(valid)
    target = target.to(states.device, torch.float32)
    if not bool(torch.isfinite(target[valid]).all()):
        raise ValueError("a valid step has a target that is not a finite number; mark it as not valid in its label")
    # The published encoder sees the placeholders of missing hands; only what is no number must not get into the sums.
    return (target.nan_to_num() if compat else torch.where(valid.unsqueeze(-1), target, 0.0)), valid


def mean_of_valid(values: Tensor, valid: Tensor, count: Tensor | int | None) -> Tensor:
    """Sum of `values` (…) where `valid` (as large, bool or weights) divided by `count_of`, at least 1.

    Where nothing is valid it is zero, but with a gradient: data-parallel engines wait for every parameter.
    """
    divisor = torch.as_tensor(count_of(valid, count), device=values.device)
    return (values * valid).sum() / cast(Tensor, divisor).clamp(min=1)
