"""From noise to poses: DDPM, DDIM and DPM-Solver++ around a network that predicts x_0.

`predict(x_t, t)` takes the noisy (B, …) and the step of the full schedule (B,) int64 and returns x_0. All three return the network's last
prediction, not the sample after it. Formulas: Ho et al. 2020; Song et al. 2021 (η = 0); Lu et al. 2022 (DPM-Solver++, 2M).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Protocol

import torch
from torch import Tensor

from pose_tools.egohmr.diffusion import Schedule

Predict = Callable[[Tensor, Tensor], Tensor]


class Nudge(Protocol):
    """Published guidance: what it adds inside a step, see `compat.PublishedGuidance`."""

    def mean_shift(self, x_t: Tensor, t: int, variance: float) -> Tensor | None: ...

    def noise_shift(self, x_t: Tensor, index: int, alpha_bar: float) -> Tensor | None: ...


class Draws:
    """The random numbers of one sampling: the start, then one draw per step. Given (n + 1, B, …), or drawn as they are asked for."""

    def __init__(self, shape: tuple[int, ...], like: Tensor, noise: Tensor | None, steps: int, generator: torch.Generator | None = None):
        self.shape, self.like, self.generator = shape, like, generator
        self.given: Iterator[Tensor] | None = None
        if noise is not None:
            size = int(torch.Size(shape).numel())
            count = noise.numel() // max(1, size)
            if count * size != noise.numel() or count not in (1, steps + 1):
                raise ValueError(
                    f"noise has shape {tuple(noise.shape)}: expected the start {shape}, or the start and {steps} draws, one per step"
                )
            self.given = iter(noise.to(like).reshape(count, *shape))

    def __call__(self) -> Tensor:
        if self.given is None:
            return torch.randn(self.shape, dtype=self.like.dtype, device=self.like.device, generator=self.generator)
        value = next(self.given, None)
        if value is None:
            raise ValueError("this sampler draws noise at every step, and only its start was given: give (steps + 1, …)")
        return value


def ddpm(predict: Predict, schedule: Schedule, draws: Draws, nudge: Nudge | None = None, seen: list[Tensor] | None = None) -> Tensor:
    """Ancestral sampling with the posterior's variance. `seen` collects the samples after every step."""
    x = draws()
    x0 = x
    for index in reversed(range(schedule.steps)):
        t = int(schedule.timestep_map[index])
        variance = float(schedule.posterior_variance[index])
        x0 = predict(x, torch.full((len(x),), t, device=x.device))
        mean = float(schedule.posterior_mean_coef1[index]) * x0 + float(schedule.posterior_mean_coef2[index]) * x
        shift = nudge.mean_shift(x, index, variance) if nudge else None
        if shift is not None:
            mean = mean + shift
        noise = draws()  # also at the last step, where it is not used: recorded noise counts that way
        x = mean + variance**0.5 * noise if index else mean
        if seen is not None:
            seen.append(x)
    return x0


def ddim(predict: Predict, schedule: Schedule, draws: Draws, nudge: Nudge | None = None, seen: list[Tensor] | None = None) -> Tensor:
    """Deterministic sampling (η = 0) over a respaced schedule."""
    x = draws()
    x0 = x
    for index in reversed(range(schedule.steps)):
        left, before = float(schedule.alphas_cumprod[index]), float(schedule.alphas_cumprod_prev[index])
        x0 = predict(x, torch.full((len(x),), int(schedule.timestep_map[index]), device=x.device))
        clean = x0
        epsilon = (x / left**0.5 - clean) / (1 / left - 1) ** 0.5
        shift = nudge.noise_shift(x, index, left) if nudge else None
        if shift is not None:
            clean = (x - (1 - left) ** 0.5 * (epsilon + shift)) / left**0.5
            epsilon = (x / left**0.5 - clean) / (1 / left - 1) ** 0.5
        x = before**0.5 * clean + (1 - before) ** 0.5 * epsilon
        if seen is not None:
            seen.append(x)
    return x0


def solver_steps(schedule: Schedule, steps: int) -> list[int]:
    """The steps of the full schedule at which DPM-Solver++ asks the network: evenly spread, the noisiest first, 0 left out."""
    if not 1 <= steps < schedule.steps:
        if steps == schedule.steps:
            return list(reversed(range(schedule.steps)))
        raise ValueError(f"DPM-Solver++ takes 1 to {schedule.steps} steps of this schedule, got {steps}")
    return [round(place * (schedule.steps - 1) / steps) for place in range(steps, 0, -1)]


def dpm_solver(predict: Predict, schedule: Schedule, steps: int, draws: Draws) -> Tensor:
    """DPM-Solver++(2M) in data prediction: second order from the second step on, first order into the end, where no noise is left."""
    x = draws()
    times = solver_steps(schedule, steps)
    cumulative = schedule.alphas_cumprod
    half_log_snr = 0.5 * (cumulative / (1 - cumulative)).log()
    previous: Tensor | None = None
    x0 = x
    for number, t in enumerate(times):
        x0 = predict(x, torch.full((len(x),), t, device=x.device))
        if number + 1 == len(times):
            break  # all noise removed at once: what is left is the prediction
        after = times[number + 1]
        step = float(half_log_snr[after] - half_log_snr[t])
        data = x0
        if previous is not None:
            ratio = float(half_log_snr[t] - half_log_snr[times[number - 1]]) / step
            data = (1 + 0.5 / ratio) * x0 - 0.5 / ratio * previous
        sigma, sigma_after = float((1 - cumulative[t]).sqrt()), float((1 - cumulative[after]).sqrt())
        x = sigma_after / sigma * x - float(cumulative[after].sqrt()) * float(torch.expm1(torch.tensor(-step, dtype=torch.float64))) * data
        previous = x0
    return x0
