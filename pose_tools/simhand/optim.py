"""LARS around another optimiser, and the published learning-rate schedule."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class LARS(Optimizer):
    """Layer-wise adaptive rates (You et al., 2017): every tensor's gradient is scaled before the inner optimiser's step.

    For a tensor p with gradient g, both norms non-zero: q = eta · |p| / (|g| + wd · |p| + eps), q = min(q / lr, 1) if `clip`, and
    g ← q (g + wd · p); the inner optimiser then sees no weight decay. All tensors count, biases and norms too. Learning rate
    and weight decay are those of the inner optimiser's groups, which are shared: a scheduler may be given either.
    """

    def __init__(self, optimizer: Optimizer, eta: float = 0.02, clip: bool = True, eps: float = 1e-8):
        self.inner, self.eta, self.clip, self.eps = optimizer, eta, clip, eps
        super().__init__(optimizer.param_groups, optimizer.defaults)
        self.param_groups, self.state = optimizer.param_groups, optimizer.state

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """To the inner optimiser, with whom the groups are shared."""
        if not any(group is param_group for group in self.inner.param_groups):
            self.inner.add_param_group(param_group)

    def state_dict(self) -> dict[str, Any]:
        """The inner optimiser's; LARS itself has none."""
        return self.inner.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Of `state_dict`."""
        self.inner.load_state_dict(state_dict)
        self.param_groups, self.state = self.inner.param_groups, self.inner.state

    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """One step of the inner optimiser on the scaled gradients, which stay in .grad."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        decays = [group.get("weight_decay", 0.0) for group in self.param_groups]
        for group, decay in zip(self.param_groups, decays, strict=True):
            self._scale(group, decay)
            group["weight_decay"] = 0.0
        try:
            self.inner.step()
        finally:
            for group, decay in zip(self.param_groups, decays, strict=True):
                group["weight_decay"] = decay
        return loss

    @torch.no_grad()
    def _scale(self, group: dict[str, Any], decay: float) -> None:
        for p in group["params"]:
            if p.grad is None:
                continue
            size, slope = p.norm(), p.grad.norm()
            ratio = self.eta * size / (slope + decay * size + self.eps)
            if self.clip:
                ratio = (ratio / group["lr"]).clamp(max=1.0) if group["lr"] else torch.ones_like(ratio)
            scaled = ratio * p.grad.add(p, alpha=decay)
            p.grad.copy_(torch.where((size > 0) & (slope > 0), scaled, p.grad))


def warmup_cosine(step: int, warmup_steps: int, total_steps: int, learning_rate: float = 1.0, final: float = 0.0) -> float:
    """Learning rate of step 0, 1, …: a line from 0 that is full at step warmup_steps − 1, then a cosine down to `final` at total_steps."""
    if not 0 <= warmup_steps < total_steps:
        raise ValueError(f"warmup_cosine: expected 0 ≤ warmup_steps < total_steps, got {warmup_steps} and {total_steps}")
    if step < warmup_steps:
        return learning_rate * step / (warmup_steps - 1) if warmup_steps > 1 else learning_rate
    progress = min(1.0, (step - warmup_steps) / (total_steps - warmup_steps))
    return final + (learning_rate - final) * (1 + math.cos(math.pi * progress)) / 2


def scaled_learning_rate(base: float = 1e-4, batch: int = 1024, accumulate: int = 1) -> float:
    """base · √(batch · accumulate): 3.2e-3 for the published numbers, whatever the batch really was."""
    return base * math.sqrt(batch * accumulate)


UNDECAYED = re.compile(r"bias|bn|\.layer\.\d+\.normalization\.")


def published_groups(named_parameters: Any, weight_decay: float = 1e-6) -> list[dict[str, Any]]:
    """Groups for an optimiser as published: no decay where the name contains "bias" or "bn"; the other norms are decayed.

    The published names are meant: transformers calls the "bn1" of a residual block `layer.0.normalization`. Norms of the stem, of
    shortcuts and of the projection head had names without "bn".
    """
    decayed, free = [], []
    for name, parameter in named_parameters:
        if parameter.requires_grad:
            (free if UNDECAYED.search(name) else decayed).append(parameter)
    return [{"params": decayed, "weight_decay": weight_decay}, {"params": free, "weight_decay": 0.0}]
