"""Our path head: where a hand is at a step, how sure that is, and whether there is such a hand; the default of new models.

Its parts are settings, so that each can be left out: an anchor (where the path ends, said first, the steps filled in between), one latent
for the whole path of both hands, terms for velocity and direction, and deviations by step or by path. `docs/trajectory_head.md` has what
each is worth.
"""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.trajectory_terms import check_states, checked, count_of, mean_of_valid

MOVES = 0.01
"""Steps shorter than this share of the picture's side have no direction."""


class PathHead(nn.Module):
    """One state gives the mean point, its standard deviation along x and y, and the odds of the hand being there.

    Sampled futures move every step of a hand's path by the same multiple of its deviations, so that a path stays smooth; with a latent
    they are what its draws decode to, both hands together. What is decided once for a path is decided by the state of its first step.
    """

    latent_per_step = False
    """One draw of noise holds for all points of a hand's path."""

    def __init__(
        self,
        width: int,
        hidden: int = 256,
        traj_weight: float = 1.0,
        spread_weight: float = 0.05,
        presence_weight: float = 0.1,
        *,
        spread_by: Literal["step", "path"] = "step",
        anchor: bool = False,
        shared_latent: int = 0,
        kl_weight: float = 0.01,
        velocity_weight: float = 0.0,
        direction_weight: float = 0.0,
    ) -> None:
        """`width`: channels of a hand's state. The weights are of the terms in the loss. `shared_latent`: channels of the latent, 0 for
        none."""
        super().__init__()
        if spread_by not in ("step", "path"):
            raise ValueError(f"spread_by is {spread_by!r}, expected 'step' or 'path'")
        self.width, self.spread_by, self.shared_latent = width, spread_by, shared_latent
        self.traj_weight, self.spread_weight, self.presence_weight, self.kl_weight = traj_weight, spread_weight, presence_weight, kl_weight
        self.velocity_weight, self.direction_weight = velocity_weight, direction_weight
        self.latent = shared_latent or 2  # channels of the noise, per hand
        self.from_first = anchor or spread_by == "path"
        self.layers = _mlp(width + (2 if anchor else 0), hidden, 6 if anchor else 5)
        self.anchor = _mlp(width, hidden, 2) if anchor else None
        if shared_latent:
            self.encoder = _mlp(2 * width + 6, hidden, 2 * shared_latent)
            self.from_latent = nn.Linear(shared_latent, 2 * hidden, bias=False)

    def loss(
        self,
        states: Tensor,
        target: Tensor,
        valid: Tensor,
        noise: Tensor | None = None,
        compat: bool | str | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Distance to the point per valid hand-step, the deviations' negative log-likelihood (the points held fixed), and the
        cross-entropy of presence; with those parts also the anchor's distance to the last valid point, the velocity's to the true one,
        one minus the cosine between the two, the distance of points decoded from the path's own latent, and that latent's
        Kullback-Leibler distance from N(0, 1). Arguments as for `CVAEHead.loss`; `noise`, by default drawn, is the latent's as in
        `predict`.

        Returns scalars `total`, `traj`, `spread`, `presence`, those of the other parts, and `points` (B, 2, T, 2).
        """
        target, valid = checked(states, self.width, target, valid, compat)
        points, log_spread, odds, anchor = self._outputs(states)
        distance = _distance(points, target)
        likelihood = (0.5 * (points - target).detach().square() * (-2 * log_spread).exp() + log_spread).sum(-1)
        there = nn.functional.binary_cross_entropy_with_logits(odds, valid.to(odds), reduction="none")
        count = num_items_in_batch
        # Presence is learnt from every hand-step; it is divided by the valid ones so that one count serves all terms.
        terms = {
            "traj": self.traj_weight * mean_of_valid(distance, valid, count),
            "spread": self.spread_weight * mean_of_valid(likelihood, valid, count),
            "presence": self.presence_weight * mean_of_valid(there, torch.ones_like(valid), count_of(valid, count)),
        }
        if anchor is not None:
            terms["anchor"] = self.traj_weight * mean_of_valid(*_at_the_end(_distance(anchor.unsqueeze(2), target), valid), count)
        if self.velocity_weight or self.direction_weight:
            terms |= self._motion(points, target, valid, count)
        if self.shared_latent:
            terms |= self._future(states, target, valid, noise, count)
        return {"total": sum(terms.values(), torch.zeros((), device=states.device)), **terms, "points": points}

    def predict(self, states: Tensor, noise: Tensor | None = None, compat: bool | str | None = None) -> Tensor:
        """Points (B, 2, T, 2) for states (B, 2, T, width), hands left, right, the first of them that of the path's first step: the mean, or
        with `noise` (B, 2, 1 or T, latent), standard normal, the mean moved by so many deviations. A latent that both hands share is
        the sum of their first steps' noise, over √2.
        """
        check_states(states, self.width, compat)
        if noise is None or not self.shared_latent:
            points, log_spread, *_ = self._outputs(states)
            return points if noise is None else points + noise.to(points) * log_spread.exp()
        return self._outputs(states, _of_both(noise))[0]

    def spread(self, states: Tensor) -> Tensor:
        """Standard deviations (B, 2, T, 2) along x and y."""
        return self._outputs(states)[1].exp()

    def presence(self, states: Tensor) -> Tensor:
        """Probability (B, 2, T) that the hand is in the picture at that step."""
        return self._outputs(states)[2].sigmoid()

    def _outputs(self, states: Tensor, latent: Tensor | None = None) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
        """Points (B, 2, T, 2), log deviations likewise, odds of presence (B, 2, T), and the anchor (B, 2, 2) where there is one."""
        states = states.to(self.layers[0].weight.dtype)
        anchor = None
        if self.anchor is not None:
            anchor = self.anchor(states[:, :, 0]).float()
            states = torch.cat([states, anchor.detach().unsqueeze(2).expand(-1, -1, states.shape[2], -1).to(states)], -1)
        hidden = self.layers[0](states)
        if latent is not None:
            hidden = hidden + self.from_latent(latent.to(hidden)).unflatten(-1, (2, -1)).unsqueeze(2)
        out = self.layers[1:](hidden).float()
        points, log_spread = out[..., :2] + 0.5, out[..., 2:4].clamp(-6, 2) - 2
        if anchor is not None:
            points = points + out[..., 5:].sigmoid() * anchor.unsqueeze(2)
            anchor = anchor + 0.5
        if self.spread_by == "path":
            log_spread = log_spread[:, :, :1].expand_as(log_spread)
        return points, log_spread, out[..., 4], anchor

    def _motion(self, points: Tensor, target: Tensor, valid: Tensor, count: Tensor | int | None) -> dict[str, Tensor]:
        """The terms of the moves between steps that are both valid."""
        moves, true = points.diff(dim=2), target.diff(dim=2)
        both = valid[:, :, 1:] & valid[:, :, :-1]
        turned = 1 - nn.functional.cosine_similarity(moves, true, dim=-1, eps=1e-3)
        far = both & (true.norm(dim=-1) > MOVES)
        return {
            "velocity": self.velocity_weight * mean_of_valid(_distance(moves, true), both, count_of(valid, count)),
            "direction": self.direction_weight * mean_of_valid(turned, far, count_of(valid, count)),
        }

    def _future(self, states: Tensor, target: Tensor, valid: Tensor, noise: Tensor | None, count: Any) -> dict[str, Tensor]:
        """The terms of the latent: the true path of both hands is encoded, and decoded again."""
        seen = torch.cat([states, (target - 0.5).to(states), valid.unsqueeze(-1).to(states)], -1)
        steps = self.encoder(seen.transpose(1, 2).flatten(2).to(self.layers[0].weight.dtype)).float()  # (B, T, 2 · latent)
        known = valid.any(1).unsqueeze(-1)
        mean, log_var = ((steps * known).sum(1) / known.sum(1).clamp(min=1)).chunk(2, -1)
        drawn = torch.randn_like(mean) if noise is None else _of_both(noise).to(mean)
        points = self._outputs(states, mean + drawn * (0.5 * log_var).exp())[0]
        apart = -0.5 * (1 + log_var - mean.square() - log_var.exp()).sum(-1)
        weights = valid.sum((1, 2))  # a path counts as often as it has hand-steps, so that one count serves all terms
        return {
            "future": self.traj_weight * mean_of_valid(_distance(points, target), valid, count),
            "kl": self.kl_weight * mean_of_valid(apart, weights, count_of(valid, count)),
        }


def _mlp(width: int, hidden: int, out: int) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, hidden), nn.GELU(), nn.Linear(hidden, hidden), nn.GELU(), nn.Linear(hidden, out))


def _of_both(noise: Tensor) -> Tensor:
    """Noise (B, 2, T, latent) → (B, latent), standard normal as it is, whichever hand is called left."""
    return noise[:, :, 0].sum(1) / 2**0.5


def _distance(points: Tensor, target: Tensor) -> Tensor:
    return ((points - target).square().sum(-1) + 1e-8).sqrt()


def _at_the_end(values: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
    """`values` (B, 2, T) and where they count: at the last valid step of each hand, as often as it has valid steps."""
    last = valid & (valid.flip(-1).cumsum(-1).flip(-1) == 1)
    return values, last * valid.sum(-1, keepdim=True)
