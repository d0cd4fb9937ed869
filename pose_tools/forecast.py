"""Where a hand goes if it just carries on: the forecasts that a model has to beat.

Each takes `points` (…, T, 2) with `valid` (…, T) bool at `times` (T,) or (…, T) seconds and gives points (…, F, 2) at `future_times`
(F,) or (…, F) on the same clock; leading dimensions are a batch. Points are pixels of one picture: with a moving camera, move them
there first. A path without a valid point has NaN as its forecast.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from pose_tools.kalman import MotionModel, kalman_filter

VELOCITY = MotionModel(process_noise=1000.0, measurement_noise=2.0, prior=(60.0,))
"""A hand in a picture 256 pixels wide, moving evenly but for white noise (chosen on training clips of the synthetic world)."""
ACCELERATION = MotionModel(process_noise=40_000.0, measurement_noise=2.0, prior=(60.0, 120.0))
"""As VELOCITY, with an acceleration that lasts."""


def last_position(points: Any, valid: Any, times: Any, future_times: Any) -> np.ndarray:
    """The last valid point, for ever."""
    points, valid, _, future, shape = _checked(points, valid, times, future_times)
    steps = valid.shape[1]
    last = steps - 1 - np.argmax(valid[:, ::-1], axis=1)
    place = np.where(valid.any(1, keepdims=True), points[np.arange(len(points)), last], np.nan)
    return np.repeat(place[:, None], future.shape[1], axis=1).reshape(shape)


def constant_velocity(points: Any, valid: Any, times: Any, future_times: Any, *, count: int = 3) -> np.ndarray:
    """The straight line, evenly run through, that fits the last `count` valid points best (least squares).

    A single valid point stays where it is, as do points of one moment.
    """
    if count < 1:
        raise ValueError(f"constant_velocity: count is {count}, expected the number of points to fit, at least 1")
    points, valid, times, future, shape = _checked(points, valid, times, future_times)
    left = np.cumsum(valid[:, ::-1], axis=1)[:, ::-1]  # valid points from here on
    weight = (valid & (left <= count)).astype(np.float64)
    total = weight.sum(1)
    with np.errstate(invalid="ignore", divide="ignore"):
        middle_time = (weight * times).sum(1) / total
        middle = (weight[..., None] * points).sum(1) / total[:, None]
        late = weight * (times - middle_time[:, None])
        spread = (late * (times - middle_time[:, None])).sum(1)
        velocity = (late[..., None] * points).sum(1) / np.where(spread > 0, spread, np.inf)[:, None]
    return (middle[:, None] + velocity[:, None] * (future - middle_time[:, None])[..., None]).reshape(shape)


def kalman(
    points: Any, valid: Any, times: Any, future_times: Any, *, model: MotionModel = VELOCITY, width: float = 256.0
) -> np.ndarray:
    """The mean of `kalman_with_variance`."""
    return kalman_with_variance(points, valid, times, future_times, model=model, width=width)[0]


def kalman_with_variance(
    points: Any, valid: Any, times: Any, future_times: Any, *, model: MotionModel = VELOCITY, width: float = 256.0
) -> tuple[np.ndarray, np.ndarray]:
    """What a Kalman filter expects after the last of `times`: points (…, F, 2) and the variance (…, F) of either coordinate, px².

    `model` is meant for a picture 256 pixels wide, `width` is the width of this one. Raises ValueError for times that fall, and for
    future times before the last of `times`.
    """
    points, valid, times, future, shape = _checked(points, valid, times, future_times)
    if points.shape[1] and ((np.diff(times, axis=1) < 0).any() or (future < times[:, -1:]).any()):
        raise ValueError("kalman: times must not fall, and the future must not lie before the last of them")
    model = model.scaled(width / 256.0)
    state = kalman_filter(points, valid, times, model)
    move, noise = model.transition(future - times[:, -1:])
    mean = (move @ state.mean[:, -1:])[:, :, 0]
    variance = (move @ state.covariance[:, -1:] @ move.swapaxes(-1, -2) + noise)[..., 0, 0]
    hidden = ~state.started[:, -1]
    mean[hidden], variance[hidden] = np.nan, np.nan
    return mean.reshape(shape), variance.reshape(shape[:-1])


def _checked(
    points: Any, valid: Any, times: Any, future_times: Any
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray, tuple[int, ...]]:
    """Points (B, T, 2) with zeros where they are not valid, valid (B, T), times (B, T), future times (B, F), and the result's shape."""
    points, valid = np.asarray(points, np.float64), np.asarray(valid, bool)
    times, future = np.asarray(times, np.float64), np.asarray(future_times, np.float64)
    if points.ndim < 2 or points.shape[-1] != 2 or points.shape[-2] == 0 or valid.shape != points.shape[:-1]:
        raise ValueError(f"a forecast needs points (…, T, 2) and valid (…, T) with T at least 1, got {points.shape} and {valid.shape}")
    lead, steps = points.shape[:-2], points.shape[-2]
    if times.ndim < 1 or future.ndim < 1 or times.shape[-1] != steps:
        raise ValueError(f"a forecast needs times ({steps},) and future times (F,), got {times.shape} and {future.shape}")
    if not (np.isfinite(times).all() and np.isfinite(future).all()):
        raise ValueError("a forecast needs finite times")
    if not np.isfinite(points[valid]).all():
        raise ValueError(f"{int((~np.isfinite(points[valid])).any(-1).sum())} points are said to be valid but are not finite")
    times = np.broadcast_to(times, (*lead, steps)).reshape(-1, steps)
    count = future.shape[-1]
    future = np.broadcast_to(future, (*lead, count)).reshape(-1, count)
    points = np.where(valid[..., None], points, 0.0).reshape(-1, steps, 2)
    return points, valid.reshape(-1, steps), times, future, (*lead, count, 2)
