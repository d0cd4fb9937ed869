"""Inverse kinematics of a clip: one hand in many frames, with one shape and a motion without jumps.

All frames are solved together. The shape is shared, and the change from frame to frame of rotation, pose and place is penalised, so the
normal equations are block-tridiagonal with a border of ten columns: a banded Cholesky and a Schur complement, linear in the frames.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from scipy.linalg import solveh_banded

from pose_tools.body_models import Mano
from pose_tools.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from pose_tools.mano import ik, ik_checks
from pose_tools.mano.ik_camera import View, residuals
from pose_tools.mano.ik_chain import SCALE, SHAPE, State, hand_constants, moved
from pose_tools.mano.ik_prior import prior_of
from pose_tools.mano.ik_solver import STILL, STILL_IN_NOISE, Problem, cost, noise_level, normal_equations
from pose_tools.mano.ik_start import pixels_per_metre

TURN_SPEED, POSE_SPEED, MOVE_SPEED = 4.0, 5.0, 0.5
"""Standard deviations of a hand's motion: radians per second of the whole hand and of a joint, metres per second."""


def fit_clip(
    joints: Any,
    fps: float,
    *,
    mano: Mano,
    intrinsics: Any = None,
    confidence: Any = None,
    fit_shape: bool = True,
    betas: Any = None,
    tips: str = "freihand",
    noise: float | None = None,
    max_iterations: int = 15,
) -> ik.IKResult:
    """One hand of T frames from landmarks (T, 21, 3) metres or (T, 21, 2) pixels with `intrinsics`; arguments as in `ik.fit`.

    `fps` frames per second. `betas` of the answer (T, 10) are the same in every frame. Frames without landmarks (all `confidence` 0) are
    filled in from their neighbours. The noise is one level for the clip. Raises ValueError as `ik.fit` does.
    """
    if not fps > 0:
        raise ValueError(f"fps={fps}: expected frames per second above 0")
    joints, confidence, seen = _present(joints, confidence)
    settings: dict[str, Any] = {"mano": mano, "tips": tips, "noise": noise}
    first = ik.fit(joints[seen], intrinsics=_rows(intrinsics, seen), confidence=confidence[seen], betas=_rows(betas, seen), **settings)
    # Frames without landmarks stand in with others' and the weight 0.
    nearest = _nearest(seen)
    joints, confidence = joints[seen][nearest], confidence[seen][nearest]
    given = ik_checks.check(joints, mano, intrinsics, confidence, False, betas, None, noise)
    view = given.view._replace(weight=given.view.weight * seen.to(given.betas)[:, None])
    hand, start = hand_constants(mano, tips), _state(first, nearest, given.betas)
    if given.picture:
        if view.intrinsics is None:
            raise ValueError("fit_clip: pixels need intrinsics: without them depth and motion towards the camera mean nothing")
        view = view._replace(unit=pixels_per_metre(hand, start, view.intrinsics))
    free = torch.tensor([*range(SCALE.start), *(range(SHAPE.start, SHAPE.stop) if fit_shape else ())], device=view.target.device)
    problem = Problem(hand, prior_of(mano), free, None if noise is None else noise / float(view.unit.median()))
    state, tried = _solve(problem, start, view, 1.0 / fps, max_iterations)
    return ik.result_of(hand, state, view, torch.full_like(nearest, tried), given)


def _present(joints: Any, confidence: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Landmarks (T, 21, d), confidence (T, 21) and which frames have any (T,). Raises ValueError when none has."""
    joints = torch.as_tensor(joints)
    if joints.ndim != 3 or joints.shape[1] != 21:
        raise ValueError(f"joints have shape {tuple(joints.shape)}: expected one hand's (T, 21, 3) metres or (T, 21, 2) pixels")
    weight = torch.ones(joints.shape[:2]) if confidence is None else torch.as_tensor(confidence).expand(joints.shape[:2])
    seen = (weight > 0).any(1)
    if not seen.any():
        raise ValueError(f"fit_clip: none of {len(joints)} frames has landmarks with a confidence above 0")
    return joints, weight, seen


def _rows(value: Any, seen: torch.Tensor) -> Any:
    """The rows of `seen` frames where `value` has one per frame, else all of it."""
    per_frame = value is not None and len(value) == len(seen) and torch.as_tensor(value).shape not in ((3, 3), (10,))
    return torch.as_tensor(value)[seen] if per_frame else value


def _nearest(seen: torch.Tensor) -> torch.Tensor:
    """For each frame the nearest seen one, as its number among the seen ones (T,) int64."""
    frames, there = torch.arange(len(seen), device=seen.device), seen.nonzero()[:, 0]
    return (frames[:, None] - there).abs().argmin(1)


def _state(first: ik.IKResult, nearest: torch.Tensor, betas: torch.Tensor) -> State:
    root, pose, transl = (x.double()[nearest] for x in (axis_angle_to_matrix(first.global_orient.double()), first.hand_pose, first.transl))
    return State(root, pose, transl, torch.zeros_like(transl[:, :1]), betas.mean(0, keepdim=True).repeat(len(nearest), 1))


def _solve(problem: Problem, state: State, view: View, interval: float, max_iterations: int) -> tuple[State, int]:
    """Levenberg–Marquardt over all frames: the state and the steps tried."""
    damping, tried = 1e-3, 0
    while tried < max_iterations:
        tried += 1
        before = residuals(problem.hand, state, view)
        sigma = _level(problem, before, view)
        step = _step(problem, state, sigma, view, interval, damping)
        trial = moved(state, step)
        after = residuals(problem.hand, trial, view)
        gain = _cost(problem, state, before, sigma, view, interval) - _cost(problem, trial, after, sigma, view, interval)
        if gain >= 0:
            state, damping = trial, max(0.2 * damping, 1e-9)
            if (after - before).norm(dim=2).max() < max(STILL, STILL_IN_NOISE * float(sigma[0])):
                break
        else:
            damping *= 10
            if damping > 1e6:
                break
    return state, tried


def _level(problem: Problem, residual: torch.Tensor, view: View) -> torch.Tensor:
    """One noise level for the clip, (T,)."""
    each = noise_level(problem, residual, view)
    return each[(view.weight > 0).any(1)].median().expand(len(each))


def _cost(problem: Problem, state: State, residual: torch.Tensor, sigma: torch.Tensor, view: View, interval: float) -> float:
    change, weight = _changes(state, interval)
    repeated = (len(residual) - 1) * state.betas[0].square().sum()  # the shape's prior counts once
    return float(cost(problem, state, residual, view, sigma).sum() - repeated + (change.square() * weight).sum())


def _changes(state: State, interval: float) -> tuple[torch.Tensor, torch.Tensor]:
    """From frame to frame, what turned, bent and moved (T − 1, 51), and the weights (51,) of its squares."""
    turn = matrix_to_axis_angle(state.root[1:] @ state.root[:-1].transpose(1, 2))
    change = torch.cat([turn, state.pose.diff(dim=0), state.transl.diff(dim=0)], 1)
    speeds = change.new_tensor([TURN_SPEED] * 3 + [POSE_SPEED] * 45 + [MOVE_SPEED] * 3)
    return change, (speeds * interval) ** -2


def _step(problem: Problem, state: State, sigma: torch.Tensor, view: View, interval: float, damping: float) -> torch.Tensor:
    """The step (T, 62). A small turn of a frame changes the turn from its neighbour by as much, so all neighbours' blocks are diagonal."""
    frames, size = len(state.pose), SCALE.start
    _, matrix, gradient = normal_equations(problem, state, sigma, view)
    change, weight = _changes(state, interval)
    pull = (change * weight).cpu().numpy()
    own, slope = matrix[:, :size, :size].cpu().numpy().copy(), gradient[:, :size].cpu().numpy().copy()
    slope[1:] += pull
    slope[:-1] -= pull
    neighbours = np.full(frames, 2.0)
    neighbours[[0, -1]] = 1.0 if frames > 1 else 0.0
    diagonal = np.einsum("tii->ti", own)
    diagonal += neighbours[:, None] * weight.cpu().numpy()
    diagonal *= 1 + damping
    diagonal += 1e-9
    band = np.zeros((size + 1, frames, size))  # lower form: band[k, column] = matrix[column + k, column]
    for k in range(size):
        band[k, :, : size - k] = np.einsum("tii->ti", own[:, k:, : size - k])
    band[size, :-1] = -weight.cpu().numpy()
    border = matrix[:, :size, size:].cpu().numpy()
    sides = np.concatenate([slope[..., None], border], 2).reshape(frames * size, -1)
    solved = solveh_banded(band.reshape(size + 1, -1), sides, lower=True)
    along, step = -solved[:, 0], state.pose.new_zeros(frames, SHAPE.stop)
    if problem.with_shape:
        extra = (frames - 1) * np.eye(10)  # of the shape's prior, which counts once
        corner = matrix[:, size:, size:].sum(0).cpu().numpy() - extra + damping * np.eye(10)
        down = gradient[:, size:].sum(0).cpu().numpy() - extra @ state.betas[0].cpu().numpy()
        flat = border.reshape(-1, border.shape[2])
        shape = np.linalg.solve(corner - flat.T @ solved[:, 1:], -down - flat.T @ along)
        along = along - solved[:, 1:] @ shape
        step[:, SHAPE] = torch.as_tensor(shape).to(step)
    step[:, :size] = torch.as_tensor(along.reshape(frames, size)).to(step)
    return step
