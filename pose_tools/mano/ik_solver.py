"""Levenberg–Marquardt on the parameters of many hands at once, with robust weights and a noise level estimated hand by hand.

The cost of a hand is Σ_j w_j ρ(|r_j| / σ) + prior, twice the negative log posterior, with Huber's ρ. σ is not known: it is taken anew
from the median residual after every step. So exact landmarks are reached exactly, since σ falls to its floor and the prior with it, and
noisy ones are smoothed by as much as they are noisy.
"""

from __future__ import annotations

from typing import NamedTuple

import torch

from pose_tools.mano.ik_camera import View, residuals, residuals_and_jacobian
from pose_tools.mano.ik_chain import POSE, SHAPE, Hand, State, moved
from pose_tools.mano.ik_prior import Prior, energy, pose_terms

HUBER = 3.0
"""Residuals beyond this many σ pull with a constant force."""
NOISE_FLOOR, NOISE_CEILING = {2: 1.5e-3, 3: 1e-4}, 0.03
"""Metres between which σ is estimated. The 42 numbers of a picture can nearly always be met by 51 parameters, noise and all."""
STILL, STILL_IN_NOISE = 1e-5, 0.02
"""A step that moves every landmark by less than this many metres, or this share of σ, ends the search."""
_MEDIAN = {2: 1.1774, 3: 1.5382}
"""Median length of a d-dimensional standard normal vector."""
_FITTED = {2: 1.4, 3: 1.3}
"""√(numbers given / numbers left after fitting): a hand held by its prior follows noise in about 26 of 63 (20 of 42) directions."""


class Problem(NamedTuple):
    """What stays the same: `free` (n,) which of the 62 parameters move; `noise` σ in metres, or None to estimate it."""

    hand: Hand
    prior: Prior
    free: torch.Tensor
    noise: float | None

    @property
    def with_shape(self) -> bool:
        return bool(self.free[-1] >= SHAPE.start)


class _Search(NamedTuple):
    """One hand a row, of those that are still looking."""

    row: torch.Tensor
    state: State
    sigma: torch.Tensor
    damping: torch.Tensor

    def rows(self, index: torch.Tensor) -> _Search:
        return _Search(self.row[index], State(*(x[index] for x in self.state)), self.sigma[index], self.damping[index])


def solve(problem: Problem, start: State, view: View, max_iterations: int) -> tuple[State, torch.Tensor, torch.Tensor]:
    """The best state found from `start`, twice its negative log posterior (B,) and the steps tried (B,) int64. Every hand is on its own:
    a batch gives the same as its hands one by one."""
    batch = len(start.pose)
    iterations = torch.zeros(batch, dtype=torch.int64, device=start.pose.device)
    result = State(*(x.clone() for x in start))
    sigma = noise_level(problem, residuals(problem.hand, start, view), view)
    final_sigma = sigma.clone()
    search = _Search(torch.arange(batch, device=iterations.device), start, sigma, torch.full_like(sigma, 1e-3))
    seen = view
    for _ in range(max_iterations):
        if not len(search.row):
            break
        search, still = _step(problem, search, seen)
        iterations[search.row] += 1
        for whole, part in zip(result, search.state, strict=True):
            whole[search.row] = part
        final_sigma[search.row] = search.sigma
        if still.any():
            keep = (~still).nonzero()[:, 0]
            search, seen = search.rows(keep), seen.rows(keep)
    final = cost(problem, result, residuals(problem.hand, result, view), view, final_sigma)
    # Ends with different σ are compared with the noise's normalisation, 2 log σ for every number given.
    return result, final + 2 * view.target.shape[2] * view.weight.sum(1) * final_sigma.log(), iterations


def cost(problem: Problem, state: State, residual: torch.Tensor, view: View, sigma: torch.Tensor) -> torch.Tensor:
    """Twice the negative log posterior (B,), the noise's normalisation left out."""
    length = residual.norm(dim=2) / sigma[:, None]
    robust = torch.where(length <= HUBER, length.square(), 2 * HUBER * length - HUBER**2)
    return (view.weight * robust).sum(1) + energy(problem.prior, state.pose, state.betas)


def _step(problem: Problem, search: _Search, view: View) -> tuple[_Search, torch.Tensor]:
    """One trial step each, and which hands are done: no landmark moves any more, or no step helps."""
    residual, matrix, gradient = normal_equations(problem, search.state, search.sigma, view)
    diagonal = matrix.diagonal(dim1=1, dim2=2)
    diagonal += search.damping[:, None] * diagonal + 1e-9
    factor, _ = torch.linalg.cholesky_ex(matrix)
    step = residual.new_zeros(len(matrix), SHAPE.stop)
    step[:, problem.free] = torch.cholesky_solve(-gradient[..., None], factor)[..., 0]
    step[:, :3] = _at_most(step[:, :3], 1.0)
    trial = moved(search.state, step)
    after = residuals(problem.hand, trial, view)
    gain = cost(problem, search.state, residual, view, search.sigma) - cost(problem, trial, after, view, search.sigma)
    better = gain >= 0  # false for NaN: a step that failed is a step that did not help
    state = State(
        *(torch.where(better.view(-1, *[1] * (old.ndim - 1)), new, old) for new, old in zip(trial, search.state, strict=True))
    )
    shift = torch.where(better, (after - residual).norm(dim=2).amax(1), torch.inf)
    damping = torch.where(better, search.damping * 0.2, search.damping * 10).clamp(min=1e-9)
    sigma = noise_level(problem, torch.where(better[:, None, None], after, residual), view)
    settled = (sigma - search.sigma).abs() <= 0.02 * search.sigma
    return _Search(search.row, state, sigma, damping), (settled & (shift < (STILL_IN_NOISE * sigma).clamp(min=STILL))) | (damping > 1e6)


def normal_equations(
    problem: Problem, state: State, sigma: torch.Tensor, view: View
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Residuals (B, 21, d), half the Hessian (B, n, n) and half the gradient (B, n) of the cost by the free parameters."""
    residual, jacobian = residuals_and_jacobian(problem.hand, state, view, problem.with_shape)
    weight = robust_weights(residual, view, sigma)
    free = jacobian[..., problem.free].flatten(1, 2)
    weighted = (free.unflatten(1, residual.shape[1:]) * weight[:, :, None, None]).flatten(1, 2).transpose(1, 2)
    matrix, gradient = weighted @ free, (weighted @ residual.flatten(1)[..., None])[..., 0]
    of_pose, by_pose = pose_terms(problem.prior, state.pose)
    gradient[:, POSE] += of_pose  # root and pose are always free, so the first 48 stay where they are
    matrix[:, POSE, POSE] += by_pose
    if problem.with_shape:
        gradient[:, -10:] += state.betas
        matrix[:, -10:, -10:] += torch.eye(10, dtype=matrix.dtype, device=matrix.device)
    return residual, matrix, gradient


def robust_weights(residual: torch.Tensor, view: View, sigma: torch.Tensor) -> torch.Tensor:
    """Weights (B, 21) of the squared residuals: the landmark's own, Huber's, and 1 / σ²."""
    length = residual.norm(dim=2) / sigma[:, None]
    return view.weight * (HUBER / length.clamp(min=HUBER)) / sigma[:, None].square()


def noise_level(problem: Problem, residual: torch.Tensor, view: View) -> torch.Tensor:
    """σ (B,) in metres, per axis, from the median residual of the landmarks that count."""
    if problem.noise is not None:
        return residual.new_full((len(residual),), problem.noise)
    length = torch.where(view.weight > 0, residual.norm(dim=2), torch.nan)
    size = residual.shape[2]
    return (length.nanmedian(dim=1).values * _FITTED[size] / _MEDIAN[size]).nan_to_num(1.0).clamp(NOISE_FLOOR[size], NOISE_CEILING)


def _at_most(vector: torch.Tensor, length: float) -> torch.Tensor:
    return vector * (length / vector.norm(dim=1, keepdim=True).clamp(min=length))
