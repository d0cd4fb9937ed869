"""Token losses: cross-entropy, and a soft target for numbers of the 0-1000 dialect."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from vlm.config import HandVLMConfig


def token_losses(logits: Tensor, target: Tensor, config: HandVLMConfig) -> Tensor:
    """One loss per supervised token: logits (M, V), target (M,) → (M,) float32.

    Cross-entropy, except where the target is a number token and `config.number_sigma` > 0: there the divergence
    KL(Gaussian around the number ‖ prediction) over all number tokens, so that a near miss costs little.
    """
    logits = logits.float()
    losses = functional.cross_entropy(logits, target, reduction="none")
    if not config.number_sigma or not config.number_token_ids:
        return losses
    start, count = config.number_token_ids
    is_number = (target >= start) & (target < start + count)
    if not bool(is_number.any()):
        return losses
    soft = number_targets(target[is_number] - start, count, config.number_sigma)
    log_probability = logits[is_number].log_softmax(-1)[:, start : start + count]
    divergence = (soft * (soft.clamp_min(1e-30).log() - log_probability)).sum(-1)
    return losses.masked_scatter(is_number, divergence)


def number_targets(values: Tensor, count: int, sigma: float) -> Tensor:
    """Gaussians over 0 … count − 1 around `values` (M,), each summing to one: (M, count)."""
    axis = torch.arange(count, device=values.device, dtype=torch.float32)
    weight = (-0.5 * ((axis - values.float().unsqueeze(-1)) / sigma) ** 2).exp()
    return weight / weight.sum(-1, keepdim=True)
