"""Forecasts: equal to their textbook forms, the batch equal to one at a time, mirrored paths to mirrored forecasts."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_tools.forecast import ACCELERATION, VELOCITY, constant_velocity, kalman, kalman_with_variance, last_position
from pose_tools.kalman import MotionModel, kalman_filter, kalman_smoother

PAST = np.arange(-9, 1) / 4
FUTURE = np.arange(1, 5) / 4
ALL = {
    "last": last_position,
    "velocity": constant_velocity,
    "kalman": kalman,
    "acceleration": partial(kalman, model=ACCELERATION),
}
every = pytest.mark.parametrize("forecast", ALL.values(), ids=ALL)


def paths(seed: int = 0, batch: int = 7) -> tuple[np.ndarray, np.ndarray]:
    """Random walks (batch, 2, 10, 2) with gaps; one hand is never seen, one is seen once."""
    rng = np.random.default_rng(seed)
    points = 100 + np.cumsum(rng.normal(0, 5, (batch, 2, 10, 2)), 2)
    valid = rng.random((batch, 2, 10)) < 0.7
    valid[0, 0] = False
    valid[1, 1] = np.arange(10) == 4
    points[~valid] = np.nan
    return points, valid


@every
def test_a_batch_is_its_members(forecast):
    points, valid = paths()
    together = forecast(points, valid, PAST, FUTURE)
    assert together.shape == (7, 2, 4, 2)
    for i, hand in np.ndindex(7, 2):
        np.testing.assert_allclose(forecast(points[i, hand], valid[i, hand], PAST, FUTURE), together[i, hand], rtol=1e-12)
    own_times = forecast(points, valid, np.broadcast_to(PAST, valid.shape), np.broadcast_to(FUTURE, (7, 2, 4)))
    np.testing.assert_array_equal(own_times, together)
    assert np.isnan(together[0, 0]).all() and np.isfinite(together.reshape(14, -1)[1:]).all()
    np.testing.assert_allclose(together[1, 1], np.broadcast_to(points[1, 1, 4], (4, 2)))  # one point says nothing about its motion


@every
def test_what_was_not_seen_does_not_count_and_the_mirrored_path_has_the_mirrored_forecast(forecast):
    points, valid = paths(1)
    plain = forecast(points, valid, PAST, FUTURE)
    np.testing.assert_array_equal(forecast(np.where(valid[..., None], points, 1e9), valid, PAST, FUTURE), plain)
    mirrored = forecast(points * [-1, 1] + [256, 0], valid, PAST, FUTURE)
    np.testing.assert_allclose(mirrored, plain * [-1, 1] + [256, 0], atol=1e-9)
    shifted = forecast(points, valid, PAST + 100, FUTURE + 100)
    np.testing.assert_allclose(shifted, plain, atol=1e-8)
    if forecast is not ALL["kalman"] and forecast is not ALL["acceleration"]:  # these have noise in pixels, and so a scale
        np.testing.assert_allclose(forecast(points * 3, valid, PAST, FUTURE), plain * 3)
    else:
        np.testing.assert_allclose(forecast(points * 3, valid, PAST, FUTURE, width=768), plain * 3)


def test_constant_velocity_is_numpys_line_through_the_last_seen_points():
    points, valid = paths(2, 30)
    for count in (2, 3, 5, 10):
        found = constant_velocity(points, valid, PAST, FUTURE, count=count)
        for i, hand in np.ndindex(30, 2):
            seen = np.flatnonzero(valid[i, hand])[-count:]
            if len(seen) > 1:
                line = np.polyfit(PAST[seen], points[i, hand, seen], 1)
                np.testing.assert_allclose(found[i, hand], FUTURE[:, None] * line[0] + line[1], atol=1e-8)
    np.testing.assert_array_equal(constant_velocity(points, valid, PAST, FUTURE, count=1), last_position(points, valid, PAST, FUTURE))


def test_on_an_exact_line_the_filter_without_measurement_noise_is_constant_velocity():
    _, valid = paths(3)
    valid[0, 0] = valid[1, 1] = np.arange(10) % 4 == 1
    start, velocity = np.random.default_rng(0).normal(0, 50, (2, 7, 2, 1, 2))
    points = start + velocity * PAST[:, None]
    exact = start + velocity * FUTURE[:, None]
    np.testing.assert_allclose(constant_velocity(points, valid, PAST, FUTURE, count=10), exact, atol=1e-9)
    for process_noise in (0.0, 100.0):
        certain = MotionModel(process_noise, 0.0, (1000.0,))
        np.testing.assert_allclose(kalman(points, valid, PAST, FUTURE, model=certain), exact, atol=1e-4)
    # without process noise and with a vague prior the filter is the least-squares line, whatever the measurement noise
    vague = MotionModel(0.0, 3.0, (1e6,))
    noisy = points + np.random.default_rng(1).normal(0, 3, points.shape)
    line = constant_velocity(noisy, valid, PAST, FUTURE, count=10)
    np.testing.assert_allclose(kalman(noisy, valid, PAST, FUTURE, model=vague), line, atol=1e-3)


def textbook(points, valid, times, future, model):
    """One coordinate, one step after the other, full matrices."""
    n, look = model.order, np.eye(1, model.order)
    state = covariance = None
    for t, time in enumerate(times):
        if state is not None:
            step = time - times[t - 1]
            F = np.array([[1, step, step**2 / 2], [0, 1, step], [0, 0, 1]])[:n, :n]
            state, covariance = F @ state, F @ covariance @ F.T + driving(step, model)
        if valid[t] and state is None:
            state, covariance = np.r_[points[t], np.zeros(n - 1)], np.diag(np.square([model.measurement_noise, *model.prior]))
        elif valid[t]:
            S = look @ covariance @ look.T + model.measurement_noise**2
            K = covariance @ look.T @ np.linalg.inv(S)
            state, covariance = state + K @ (points[t] - look @ state), (np.eye(n) - K @ look) @ covariance
    means, variances = [], []
    for time in future:
        step = time - times[-1]
        F = np.array([[1, step, step**2 / 2], [0, 1, step], [0, 0, 1]])[:n, :n]
        means.append((F @ state)[0])
        variances.append((F @ covariance @ F.T + driving(step, model))[0, 0])
    return means, variances


def driving(step, model):
    """∫ Φ(s) G Gᵀ Φ(s)ᵀ ds by Simpson's rule, exact for these polynomials with enough steps."""
    s = np.linspace(0, step, 2001)
    gains = np.stack([s**2 / 2, s, np.ones_like(s)])[3 - model.order :]
    outer = gains[:, None] * gains[None]
    weights = np.r_[1, np.tile([4, 2], 1000)[:-1], 1] * (step / 2000 / 3)
    return model.process_noise * (outer * weights).sum(-1)


@pytest.mark.parametrize("model", [VELOCITY, ACCELERATION, MotionModel(5.0, 0.5, (7.0,))])
def test_the_batched_filter_is_the_textbooks(model):
    points, valid = paths(4)
    found, variance = kalman_with_variance(points, valid, PAST, FUTURE, model=model)
    for i, hand in list(np.ndindex(7, 2))[1:]:
        for coordinate in range(2):
            means, variances = textbook(points[i, hand, :, coordinate], valid[i, hand], PAST, FUTURE, model)
            np.testing.assert_allclose(found[i, hand, :, coordinate], means, rtol=1e-7)
            np.testing.assert_allclose(variance[i, hand], variances, rtol=1e-7)
    assert (np.diff(variance.reshape(14, 4)[1:], axis=1) > 0).all()  # the further away, the less is known


def test_the_smoother_is_the_filter_at_the_end_and_the_best_estimate_given_all():
    points, valid = (part.reshape(14, *part.shape[2:]) for part in paths(5))
    times = np.broadcast_to(PAST, valid.shape)
    for model in (VELOCITY, ACCELERATION):
        positions, variance = kalman_smoother(points, valid, times, model)
        forward = kalman_filter(points, valid, times, model)
        np.testing.assert_array_equal(positions[1:, -1], forward.mean[1:, -1, 0])
        assert np.isnan(positions[~forward.started]).all() and np.isnan(variance[~forward.started]).all()
        # the posterior mean of a Gaussian process, all steps at once; states before the first seen point are no part of it
        for i in range(1, 14):
            first = int(np.argmax(valid[i]))
            expected, spread = posterior(points[i, first:], valid[i, first:], PAST[first:], model)
            np.testing.assert_allclose(positions[i, first:], expected, atol=1e-6)
            np.testing.assert_allclose(variance[i, first:], spread, rtol=1e-6)


def posterior(points, valid, times, model):
    """Mean and variance of the positions given the seen points, from the joint covariance of all of them."""
    n, steps = model.order, len(times)
    move, noise = model.transition(np.diff(times))
    joint = np.zeros((steps, n, steps, n))
    joint[0, :, 0] = np.diag(np.square([model.measurement_noise, *model.prior]))
    for t in range(1, steps):
        joint[t, :, :t] = np.einsum("ij,jsk->isk", move[t - 1], joint[t - 1, :, :t])
        joint[:t, :, t] = np.moveaxis(joint[t, :, :t], 0, -1)
        joint[t, :, t] = move[t - 1] @ joint[t - 1, :, t - 1] @ move[t - 1].T + noise[t - 1]
    place = joint[:, 0, :, 0]
    later = np.flatnonzero(valid)[1:]  # the first point is the prior's mean
    seen = place[np.ix_(later, later)] + np.eye(len(later)) * model.measurement_noise**2
    gain = np.linalg.solve(seen, place[later]).T if len(later) else np.zeros((steps, 0))
    mean = points[0] + gain @ (points[later] - points[0])
    return mean, np.diag(place - gain @ place[later])


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.floats(0, 2))
def test_any_path_has_a_finite_forecast_or_none(seed, steps, step):
    rng = np.random.default_rng(seed)
    points, valid = rng.normal(0, 1e3, (3, steps, 2)), rng.random((3, steps)) < 0.5
    times = np.sort(rng.choice([0, step, 2 * step], steps))  # moments may coincide
    for forecast in ALL.values():
        found = forecast(points, valid, times, times[-1] + FUTURE)
        np.testing.assert_array_equal(np.isfinite(found).all((1, 2)), valid.any(1))


def test_wrong_arguments_are_named():
    points, valid = paths()
    for forecast in ALL.values():
        with pytest.raises(ValueError, match=r"points \(…, T, 2\)"):
            forecast(points[..., 0], valid, PAST, FUTURE)
        with pytest.raises(ValueError, match=r"times \(10,\)"):
            forecast(points, valid, PAST[:5], FUTURE)
        with pytest.raises(ValueError, match="said to be valid but are not finite"):
            forecast(points, np.ones_like(valid), PAST, FUTURE)
        with pytest.raises(ValueError, match="finite times"):
            forecast(points, valid, PAST * np.nan, FUTURE)
    with pytest.raises(ValueError, match="count is 0"):
        constant_velocity(points, valid, PAST, FUTURE, count=0)
    with pytest.raises(ValueError, match="must not fall"):
        kalman(points, valid, PAST[::-1], FUTURE)
    assert replace(VELOCITY, prior=(1.0, 2.0)).order == 3
