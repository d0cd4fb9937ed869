"""A Kalman filter and smoother for points that move smoothly and are sometimes not seen; vectorised over a batch.

The state of a coordinate is its position and velocity (and acceleration), driven by white noise in the highest of them. All
coordinates of a point share one covariance: it depends on when the point was seen, not where. Formulas: Bar-Shalom, Li,
Kirubarajan, "Estimation with Applications to Tracking and Navigation", 6.2 (motion models), 5.2 (filter), 8.6 (smoother).
"""

from __future__ import annotations

from dataclasses import dataclass
from math import factorial

import numpy as np


@dataclass(frozen=True)
class MotionModel:
    """`process_noise`: spectral density of the driving noise, px²/s³ (velocity model) or px²/s⁵ (acceleration model).
    `measurement_noise`: standard deviation of a seen point, px. `prior`: standard deviation of the first velocity, px/s, and for the
    acceleration model of the first acceleration, px/s²; its length chooses the model."""

    process_noise: float
    measurement_noise: float
    prior: tuple[float, ...]

    @property
    def order(self) -> int:
        """Numbers in a coordinate's state."""
        return 1 + len(self.prior)

    def scaled(self, factor: float) -> MotionModel:
        """The same model for a picture that is `factor` times as large."""
        return MotionModel(self.process_noise * factor**2, self.measurement_noise * factor, tuple(s * factor for s in self.prior))

    def transition(self, seconds: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(…,) seconds → transition matrices and covariances of the driving noise, both (…, n, n)."""
        n = self.order
        step = np.asarray(seconds, np.float64)
        move = np.zeros((*step.shape, n, n))
        noise = np.zeros((*step.shape, n, n))
        for i in range(n):
            for j in range(n):
                if j >= i:
                    move[..., i, j] = step ** (j - i) / factorial(j - i)
                power = 2 * n - 1 - i - j
                noise[..., i, j] = self.process_noise * step**power / (power * factorial(n - 1 - i) * factorial(n - 1 - j))
        return move, noise


@dataclass(frozen=True)
class Filtered:
    """After each step: `mean` (B, T, n, D), `covariance` (B, T, n, n), and both as `predicted_…` before that step's point was used.
    `started` (B, T): whether a point had been seen by then; before that the numbers mean nothing."""

    mean: np.ndarray
    covariance: np.ndarray
    predicted_mean: np.ndarray
    predicted_covariance: np.ndarray
    started: np.ndarray


def kalman_filter(values: np.ndarray, valid: np.ndarray, times: np.ndarray, model: MotionModel) -> Filtered:
    """Filters `values` (B, T, D), of which `valid` (B, T) were seen, at `times` (B, T) seconds, never falling.

    The first seen point starts a state, with the model's prior. Values that are not valid may be anything.
    """
    batch, steps, width = values.shape
    n = model.order
    values = np.where(valid[..., None], values, 0.0)
    prior = np.diag(np.square([model.measurement_noise, *model.prior]))
    mean, covariance = np.zeros((batch, n, width)), np.zeros((batch, n, n))
    started = np.zeros(batch, bool)
    kept: list[tuple[np.ndarray, ...]] = []
    for t in range(steps):
        if t:
            move, noise = model.transition(times[:, t] - times[:, t - 1])
            mean, covariance = move @ mean, move @ covariance @ move.swapaxes(1, 2) + noise
        predicted = mean, covariance
        seen = valid[:, t] & started
        spread = covariance[:, 0, 0] + model.measurement_noise**2
        gain = np.where(seen[:, None], covariance[:, :, 0] / np.where(spread > 0, spread, 1.0)[:, None], 0.0)
        mean = mean + gain[:, :, None] * (values[:, t] - mean[:, 0])[:, None]
        covariance = covariance - gain[:, :, None] * covariance[:, None, 0]
        covariance = (covariance + covariance.swapaxes(1, 2)) / 2
        first = valid[:, t] & ~started
        if first.any():
            mean[first] = 0.0
            mean[first, 0] = values[first, t]
            covariance[first] = prior
        started = started | first
        kept.append((mean, covariance, *predicted, started))
    stacked = [np.stack(parts, 1) for parts in zip(*kept, strict=True)]
    return Filtered(*stacked)


def kalman_smoother(
    values: np.ndarray, valid: np.ndarray, times: np.ndarray, model: MotionModel
) -> tuple[np.ndarray, np.ndarray]:
    """Positions (B, T, D) from all points, earlier and later, and their variance (B, T), by Rauch, Tung and Striebel's backward pass.

    Arguments as for `kalman_filter`. NaN before the first seen point; gaps are filled, also the one after the last seen point.
    """
    forward = kalman_filter(values, valid, times, model)
    mean, covariance = forward.mean.copy(), forward.covariance.copy()
    for t in range(values.shape[1] - 2, -1, -1):
        move, _ = model.transition(times[:, t + 1] - times[:, t])
        ahead = forward.predicted_covariance[:, t + 1]
        # the inverse of a symmetric matrix that is singular where the motion is certain
        back = covariance[:, t] @ move.swapaxes(1, 2) @ np.linalg.pinv(ahead, hermitian=True)
        mean[:, t] += back @ (mean[:, t + 1] - forward.predicted_mean[:, t + 1])
        covariance[:, t] += back @ (covariance[:, t + 1] - ahead) @ back.swapaxes(1, 2)
    hidden = ~forward.started
    positions, variance = mean[:, :, 0], covariance[:, :, 0, 0]
    positions[hidden], variance[hidden] = np.nan, np.nan
    return positions, variance
