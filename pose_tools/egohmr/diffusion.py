"""The diffusion's schedule: 50 cosine steps, the constants under their usual names, and its respacing to fewer steps.

Formulas: Ho et al. 2020 (DDPM), Nichol & Dhariwal 2021 (cosine schedule, respacing). Constants are float64.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor

Kind = Literal["cosine", "linear"]


class Schedule:
    """Constants of a forward process x_t = √ᾱ_t x_0 + √(1 − ᾱ_t) ε, each a float64 tensor (steps,).

    betas, alphas, alphas_cumprod, alphas_cumprod_prev, alphas_cumprod_next, sqrt_alphas_cumprod, sqrt_one_minus_alphas_cumprod,
    log_one_minus_alphas_cumprod, sqrt_recip_alphas_cumprod, sqrt_recipm1_alphas_cumprod, posterior_variance,
    posterior_log_variance_clipped, posterior_mean_coef1, posterior_mean_coef2;
    `timestep_map` (steps,) int64: the step of the full schedule that each one stands for, which is what a network is told.
    """

    def __init__(self, steps: int = 50, kind: Kind = "cosine", *, betas: Tensor | None = None, timestep_map: Tensor | None = None):
        self.kind = kind
        self.betas = _betas(steps, kind) if betas is None else betas.double()
        self.steps = len(self.betas)
        self.timestep_map = torch.arange(self.steps) if timestep_map is None else timestep_map
        self.alphas = 1 - self.betas
        self.alphas_cumprod = self.alphas.cumprod(0)
        self.alphas_cumprod_prev = torch.cat([torch.ones(1, dtype=torch.float64), self.alphas_cumprod[:-1]])
        self.alphas_cumprod_next = torch.cat([self.alphas_cumprod[1:], torch.zeros(1, dtype=torch.float64)])
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt()
        self.sqrt_one_minus_alphas_cumprod = (1 - self.alphas_cumprod).sqrt()
        self.log_one_minus_alphas_cumprod = (1 - self.alphas_cumprod).log()
        self.sqrt_recip_alphas_cumprod = (1 / self.alphas_cumprod).sqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / self.alphas_cumprod - 1).sqrt()
        rest = 1 - self.alphas_cumprod
        self.posterior_variance = self.betas * (1 - self.alphas_cumprod_prev) / rest
        # the first entry is 0: its logarithm is cut off at the second's
        self.posterior_log_variance_clipped = torch.cat([self.posterior_variance[1:2], self.posterior_variance[1:]]).log()
        self.posterior_mean_coef1 = self.betas * self.alphas_cumprod_prev.sqrt() / rest
        self.posterior_mean_coef2 = (1 - self.alphas_cumprod_prev) * self.alphas.sqrt() / rest

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t (B, …) from x_0 (B, …) at steps t (B,) int64 with standard normal `noise` of x_0's shape."""
        return _at(self.sqrt_alphas_cumprod, t, x0) * x0 + _at(self.sqrt_one_minus_alphas_cumprod, t, x0) * noise

    def respaced(self, sections: str | int | list[int]) -> Schedule:
        """The schedule of fewer steps with the same ᾱ at those that are kept: see `respace`."""
        kept = torch.tensor(respace(self.steps, sections))
        cumulative = self.alphas_cumprod[kept]
        previous = torch.cat([torch.ones(1, dtype=torch.float64), cumulative[:-1]])
        return Schedule(kind=self.kind, betas=1 - cumulative / previous, timestep_map=self.timestep_map[kept])


def respace(steps: int, sections: str | int | list[int]) -> list[int]:
    """Which of `steps` steps are kept, in order.

    "ddim5": five in equal whole strides from 0. "" : all. 15, "15", [10, 15, 20] or "10,15,20": that many from each of as many equal
    parts of the schedule, first and last of a part among them. Raises ValueError when that cannot be.
    """
    if isinstance(sections, str) and sections.startswith("ddim"):
        wanted = int(sections.removeprefix("ddim") or 0)
        fitting = [stride for stride in range(1, steps) if len(range(0, steps, stride)) == wanted]
        if not fitting:
            raise ValueError(
                f"{steps} steps cannot be walked in {wanted} equal strides: try {_strides(steps)}, or sampler='dpm++' with any number"
            )
        return list(range(0, steps, fitting[0]))
    if isinstance(sections, str):
        sections = [int(part) for part in sections.split(",")] if sections.strip() else [steps]
    counts = [sections] if isinstance(sections, int) else list(sections)
    size, extra = divmod(steps, len(counts))
    kept, start = [], 0
    for number, count in enumerate(counts):
        length = size + (number < extra)
        if not 1 <= count <= length:
            raise ValueError(f"{count} steps cannot be taken from a part of {length}")
        stride = (length - 1) / (count - 1) if count > 1 else 1.0
        place = 0.0
        for _ in range(count):  # the sum's rounding errors decide the halves, as in the published respacing
            kept.append(start + round(place))
            place += stride
        start += length
    return kept


def _betas(steps: int, kind: str) -> Tensor:
    if steps < 1:
        raise ValueError(f"a schedule has at least one step, got {steps}")
    if kind == "linear":
        scale = 1000 / steps
        return torch.linspace(scale * 1e-4, scale * 0.02, steps, dtype=torch.float64)
    if kind != "cosine":
        raise ValueError(f"kind={kind!r}: expected 'cosine' or 'linear'")

    def left(u: float) -> float:
        return math.cos((u + 0.008) / 1.008 * math.pi / 2) ** 2

    values = [min(1 - left((i + 1) / steps) / left(i / steps), 0.999) for i in range(steps)]
    return torch.tensor(values, dtype=torch.float64)


def _strides(steps: int) -> str:
    return ", ".join(f"ddim{n}" for n in sorted({len(range(0, steps, stride)) for stride in range(1, steps)})[:8])


def _at(constants: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Each sample's constant, (B, 1, …) to multiply with `like` (B, …)."""
    return constants.to(like.device)[t].to(like.dtype).view(-1, *([1] * (like.dim() - 1)))
