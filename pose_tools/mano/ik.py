"""Inverse kinematics: 21 landmarks, in space or in a picture, → MANO parameters.

    found = fit(joints, mano=load_mano())                             # (B, 21, 3) metres
    found = fit(pixels, mano=load_mano(), intrinsics=k)               # (B, 21, 2): depth from the hand's size, which is assumed
    mano(found.global_orient, found.hand_pose, found.betas, found.transl).joints * found.scale

Levenberg–Marquardt with analytic derivatives from a closed-form start; priors count as much as the landmarks are noisy. For clips see
`ik_clip.fit_clip`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from pose_tools.body_models import Mano
from pose_tools.geometry import axis_angle_to_matrix, matrix_to_axis_angle
from pose_tools.mano import ik_checks
from pose_tools.mano.ik_camera import View, residuals
from pose_tools.mano.ik_chain import SCALE, SHAPE, Hand, State, hand_constants
from pose_tools.mano.ik_prior import Prior, prior_of
from pose_tools.mano.ik_solver import Problem, solve
from pose_tools.mano.ik_start import pixels_per_metre, start_in_space, starts_in_picture

HEATS = 8
"""Steps after which only the best of several starts goes on."""


class IKResult(NamedTuple):
    """Parameters of B hands in the landmarks' frame: `scale` · mano(global_orient, hand_pose, betas, transl).joints ≈ the landmarks.

    `global_orient` (B, 3), `hand_pose` (B, 45) absolute axis-angle (`flat_hand_mean=True`), `betas` (B, 10), `transl` (B, 3) metres.
    `scale` (B,): 1 where it was not fitted; without intrinsics, pixels per metre of a weak-perspective camera (then `transl` has z = 0).
    `residual` (B,): weighted mean distance from the fitted joints to the given landmarks, in their unit. It says how well the model
    explains the landmarks, not how near they are to the truth. `iterations` (B,) int64 steps tried, of all starts.
    """

    global_orient: torch.Tensor
    hand_pose: torch.Tensor
    betas: torch.Tensor
    transl: torch.Tensor
    scale: torch.Tensor
    residual: torch.Tensor
    iterations: torch.Tensor


def fit(
    joints: Any,
    *,
    mano: Mano,
    intrinsics: Any = None,
    confidence: Any = None,
    fit_shape: bool = False,
    fit_scale: bool = False,
    betas: Any = None,
    init: IKResult | Mapping[str, Any] | None = None,
    tips: str = "freihand",
    noise: float | None = None,
    max_iterations: int = 40,
) -> IKResult:
    """The hands that explain landmarks. Every hand of the batch is fitted on its own; 64 at once take a few milliseconds each.

    Args:
        joints: (B, 21, 3) metres, any frame; or (B, 21, 2) pixels. FreiHAND order. NaN is allowed where `confidence` is 0.
        mano: the hand of the landmarks' side.
        intrinsics: (3, 3) or (B, 3, 3), for pixels only. Depth then follows from the hand's size, which is that of `betas` and an
            assumption. Without them the camera is weak-perspective.
        confidence: (B, 21) or (21,) ≥ 0, weights of the squared residuals; None: all 1. At least four landmarks must count.
        fit_shape: also find the ten betas, held near zero by their prior.
        fit_scale: landmarks in space of an unknown unit or hand size: also find `scale`.
        betas: the known shape, (B, 10), (1, 10) or (10,); None: zeros.
        init: an earlier result, or a mapping with some of its fields: a second place to start from, beside the closed form. Whichever
            end explains the landmarks better is kept. Its betas are used where `betas` is None.
        tips: which finger-tip vertices the landmarks mean, as in `mano(…, tips=…)`.
        noise: standard deviation of the landmarks per axis, metres (pixels in pictures); None: estimated for every hand.
        max_iterations: most steps tried after one another.

    Raises ValueError for landmarks that no hand can have: wrong shape, not finite, all equal, in millimetres.
    """
    given = ik_checks.check(joints, mano, intrinsics, confidence, fit_scale, betas, init, noise)
    hand, prior = hand_constants(mano, tips), prior_of(mano)
    starts = _starts(hand, prior, given, fit_scale)
    view, unit = given.view, given.view.unit
    if len(view.target) == 0:
        return result_of(hand, starts[0], view, torch.zeros(0, dtype=torch.int64), given)
    if given.picture or fit_scale:  # residuals in metres at the hand, the same for all starts
        unit = pixels_per_metre(hand, starts[0], view.intrinsics)
    view = view._replace(unit=unit)
    free = _free(fit_shape, fit_scale or (given.picture and view.intrinsics is None), view.target.device)
    problem = Problem(hand, prior, free, None if noise is None else noise / float(unit.median()))
    state, tried = _race(problem, starts, view, min(HEATS, max_iterations)) if len(starts) > 1 else (starts[0], 0)
    state, _, iterations = solve(problem, state, view, max_iterations - tried)
    iterations += tried * len(starts)
    return result_of(hand, state, view, iterations, given)


def better_of(first: IKResult, second: IKResult) -> IKResult:
    """Hand by hand the result with the smaller residual, the first where they are equal. Both must be of the same landmarks."""
    if first.residual.shape != second.residual.shape:
        raise ValueError(f"better_of: {len(first.residual)} hands against {len(second.residual)}: give two results of the same landmarks")
    take = (second.residual < first.residual) | first.residual.isnan()
    return IKResult(*(torch.where(take.view(-1, *[1] * (a.ndim - 1)), b, a) for a, b in zip(first, second, strict=True)))


def as_result(
    parameters: Mapping[str, Any], joints: Any, *, mano: Mano, intrinsics: Any = None, confidence: Any = None, tips: str = "freihand"
) -> IKResult:
    """Parameters found elsewhere (a network's `global_orient` (B, 3) | (B, 3, 3), `hand_pose` (B, 45), `betas`, `transl`, `scale`), with
    their residual on the landmarks `joints`, so that `better_of` can compare them with a fit."""
    missing = {"global_orient", "hand_pose", "transl"} - set(parameters)
    if missing:
        raise ValueError(f"as_result: {', '.join(sorted(missing))} missing: a residual needs rotation, pose and place")
    given = ik_checks.check(joints, mano, intrinsics, confidence, False, None, parameters, None)
    hand = hand_constants(mano, tips)
    state = _from_init(given, given.betas)
    assert state is not None  # checked above
    return result_of(hand, state, given.view, torch.zeros(len(given.betas), dtype=torch.int64, device=given.betas.device), given)


def _race(problem: Problem, starts: list[State], view: View, steps: int) -> tuple[State, int]:
    """Hand by hand the start that is best after a few steps, as far as it came, and the steps."""
    count, batch = len(starts), len(view.target)
    every = view.rows(torch.arange(batch, device=view.target.device).repeat(count))
    ends, costs, _ = solve(problem, State(*(torch.cat(x) for x in zip(*starts, strict=True))), every, steps)
    best = costs.view(count, batch).nan_to_num(torch.inf).argmin(0) * batch + torch.arange(batch, device=costs.device)
    return State(*(x[best] for x in ends)), steps


def _free(fit_shape: bool, fit_scale: bool, device: torch.device) -> torch.Tensor:
    numbers = list(range(SCALE.start)) + fit_scale * [SCALE.start] + fit_shape * list(range(SHAPE.start, SHAPE.stop))
    return torch.tensor(numbers, device=device)


def _starts(hand: Hand, prior: Prior, given: ik_checks.Given, fit_scale: bool) -> list[State]:
    view = given.view
    if not len(view.target):
        return starts_in_picture(hand, prior.mean, given.betas, view.target[..., :2], view.weight, None)[:1]
    if given.picture:
        starts = starts_in_picture(hand, prior.mean, given.betas, view.target, view.weight, view.intrinsics)
    else:
        starts = [start_in_space(hand, prior.mean, given.betas, view.target, view.weight, fit_scale)]
    init = _from_init(given, given.betas, starts[0])
    return [*starts, init] if init is not None else starts


def _from_init(given: ik_checks.Given, betas: torch.Tensor, closed: State | None = None) -> State | None:
    """The state of `init`, what it lacks taken from the closed-form start; None where it says nothing of rotation, pose or place."""
    fields = given.init
    if not {"global_orient", "hand_pose", "transl"} & set(fields):
        return None
    root = axis_angle_to_matrix(fields["global_orient"]) if "global_orient" in fields else closed.root
    scale = fields["scale"].clamp(min=1e-9).log()[:, None] if "scale" in fields else closed.log_scale if closed else betas[:, :1] * 0
    return State(root, fields.get("hand_pose", closed and closed.pose), fields.get("transl", closed and closed.transl), scale, betas)


def result_of(hand: Hand, state: State, view: View, iterations: torch.Tensor, given: ik_checks.Given) -> IKResult:
    """The answer in the landmarks' own type, with its residual (0 where no landmark counts)."""
    distance = residuals(hand, state, view).norm(dim=2) * view.unit[:, None]
    residual = (distance * view.weight).sum(1) / view.weight.sum(1).clamp(min=1e-12)
    floats = (matrix_to_axis_angle(state.root), state.pose, state.betas, state.transl, state.log_scale[:, 0].exp(), residual)
    return IKResult._make([*(x.to(given.dtype) for x in floats), iterations])
