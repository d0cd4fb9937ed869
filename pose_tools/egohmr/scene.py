"""Which part of a scanned room each stage sees. Points are metres (N, 3), row vectors; any number comes in, exactly `target` go out.

Fewer than `target` are repeated in turn: the point encoder takes maxima, so a repeated point changes nothing.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np

from pose_tools.user_error import UserError

logger = logging.getLogger(__name__)

TARGET = 20000
FLIP_YZ = np.diag([1.0, -1.0, -1.0, 1.0])
"""HoloLens camera axes (y up, z backwards) → ours (y down, z forward)."""


class SceneError(UserError):
    """A scene without a usable point where it is needed."""


def transform(points: Any, matrix: Any) -> np.ndarray:
    """Points (N, 3) by a rigid transform (4, 4): p' = R p + t."""
    points, matrix = np.asarray(points, dtype=np.float64), np.asarray(matrix, dtype=np.float64)
    if matrix.shape != (4, 4) or points.ndim != 2 or points.shape[1] != 3:
        raise SceneError(f"a transform (4, 4) and points (N, 3) are needed, got {matrix.shape} and {points.shape}")
    return points @ matrix[:3, :3].T + matrix[:3, 3]


def finite_points(points: Any) -> np.ndarray:
    """The points (N, 3) float64 that are numbers; the others are counted in the log. Raises SceneError when none is left."""
    points = np.asarray(points, dtype=np.float64)
    if points.ndim != 2 or points.shape[1] != 3:
        raise SceneError(f"a scene is an array of points (N, 3) in metres, got shape {points.shape}")
    good = np.isfinite(points).all(1)
    if not good.any():
        raise SceneError(f"the scene has {len(points)} points and none of them is finite")
    if not good.all():
        logger.warning("%d of %d scene points are not finite and are left out", (~good).sum(), len(points))
    return points[good]


def spread_indices(count: int, target: int = TARGET) -> np.ndarray:
    """`target` of `count` indices: every (count // target)-th from 0 on, or all of them in turn where there are fewer."""
    if count < 1:
        raise SceneError("no scene point is left to choose from")
    return np.arange(target) * (count // target) if count >= target else np.arange(target) % count


def crop_stage1(points: Any, scene_to_kinect: Any, kinect_to_camera: Any, *, target: int = TARGET) -> np.ndarray:
    """Stage 1's cloud of a frame: what is in front of the camera, no matter how far, thinned evenly.

    Args:
        points: the scan (N, 3), scene frame. scene_to_kinect, kinect_to_camera: (4, 4), the latter into our camera axes (z forward).

    Returns (target, 3) float64 in the master Kinect's frame. Raises SceneError when nothing is in front of the camera.
    """
    points = transform(finite_points(points), scene_to_kinect)
    front = np.flatnonzero(transform(points, kinect_to_camera)[:, 2] > 0)
    if not len(front):
        raise SceneError(f"none of the {len(points)} scene points is in front of the camera: is the transform the right way round?")
    return points[front[spread_indices(len(front), target)]]


def crop_stage2(
    points: Any,
    centre: Any,
    *,
    angle: float | None = None,
    shift: tuple[float, float] | None = None,
    body: Any = None,
    seed: int | tuple[int, ...] = 0,
    size: float = 2.0,
    target: int = TARGET,
    floor: float = 0.0,
) -> np.ndarray:
    """Stage 2's cloud: an upright cube of `size` metres around the person, turned about the vertical by `angle`, standing on the floor.

    Args:
        points: the scan (N, 3), a frame with y up. centre: (3,) the person, same frame: stage 1's translation, or for training the
            mean of the true vertices. angle: radians; None draws it from `seed`.
        shift: (x, z) metres by which the turned cube's centre moves; None: none, or with the true `body` (V, 3), for training, drawn so
            that it stays inside. floor: the share of points that may lie below the floor (0: the lowest is the floor, as published).

    Returns (target, 3) float64 in the frame of `points`. Raises SceneError when the cube is empty.
    """
    points, centre = finite_points(points), np.asarray(centre, dtype=np.float64).reshape(3)
    if not np.isfinite(centre).all():
        raise SceneError(f"the cube's centre is {centre.tolist()}: expected three finite numbers")
    rng = np.random.default_rng(seed)
    angle = float(rng.uniform(0, 2 * np.pi)) if angle is None else angle
    half = size / 2
    if shift is None:
        shift = (0.0, 0.0) if body is None else tuple(rng.uniform(*limits) for limits in shift_limits(body, centre, angle, half))
    turned = turn_about_vertical(points, centre, angle)
    inside = (np.abs(turned[:, [0, 2]] - centre[[0, 2]] - np.asarray(shift)) <= half).all(1)
    chosen = np.flatnonzero(inside)
    if len(chosen):
        height = points[chosen, 1]
        lowest = np.quantile(height, floor) if floor else height.min()
        chosen = chosen[(height <= lowest + size) & (height >= lowest)] if floor else chosen[height <= lowest + size]
    if not len(chosen):
        raise SceneError(f"no scene point within {half} m of {centre.round(2).tolist()}: is the person's position in the scene's frame?")
    return points[chosen[spread_indices(len(chosen), target)]]


def turn_about_vertical(points: Any, centre: Any, angle: float) -> np.ndarray:
    """Points (N, 3) turned about the vertical (y) axis through `centre`: x towards −z for positive angles."""
    points, centre = np.array(points, dtype=np.float64), np.asarray(centre, dtype=np.float64)
    x, z = points[:, 0] - centre[0], points[:, 2] - centre[2]
    points[:, 0] = x * np.cos(angle) - z * np.sin(angle) + centre[0]
    points[:, 2] = x * np.sin(angle) + z * np.cos(angle) + centre[2]
    return points


def shift_limits(
    body: Any, centre: Any, angle: float, half: float = 1.0, most: float = 0.5
) -> tuple[tuple[float, float], tuple[float, float]]:
    """How far the turned cube may move in x and z, (low, high) each, with the whole `body` (V, 3) still inside; at most `most` metres."""
    turned = turn_about_vertical(body, centre, angle)
    found = []
    for axis in (0, 2):
        low = max(-most, turned[:, axis].max() - centre[axis] - half)
        high = min(most, half - (centre[axis] - turned[:, axis].min()))
        found.append((low, high) if low <= high else ((low + high) / 2, (low + high) / 2))  # wider than the cube: in the middle
    return found[0], found[1]
