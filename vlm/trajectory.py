"""Trajectory heads: the language model's states at the path tokens → points of both hands.

A state of width D holds both hands; `hand_states` parts it. Everything outside is ordered left, right; HandsOnVLM's weights
hold the right hand in the even channels and the left in the odd ones (`RIGHT_LEFT_INTERLEAVED`), and are flipped here alone.
Points are fractions of the picture's sides. `compat="handsonvlm"` computes what the published training and sampling did.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vlm.trajectory_path import PathHead
from vlm.trajectory_terms import check_states, checked, mean_of_valid, published

HandLayout = Literal["left_right", "right_left_interleaved"]
RIGHT_LEFT_INTERLEAVED: HandLayout = "right_left_interleaved"
PUBLISHED_Z_SCALE = 2.0


def hand_states(states: Tensor, layout: HandLayout = "left_right") -> Tensor:
    """States of path tokens (B, T, D) → (B, 2, T, D / 2), hands left, right.

    `layout`: "left_right" has the left hand in the first half of the channels; "right_left_interleaved" the right hand in the
    even channels, the left in the odd ones. Raises ValueError for an odd width or an unknown layout.
    """
    if states.dim() != 3 or states.shape[-1] % 2:
        raise ValueError(f"expected states (B, T, D) with an even D, got {tuple(states.shape)}")
    batch, steps, width = states.shape
    if _interleaved(layout):
        return states.reshape(batch, steps, width // 2, 2).flip(-1).permute(0, 3, 1, 2)
    return states.reshape(batch, steps, 2, width // 2).transpose(1, 2)


def joined_hands(hands: Tensor, layout: HandLayout = "left_right") -> Tensor:
    """The reverse of `hand_states`: (B, 2, T, D / 2), hands left, right → (B, T, D)."""
    if hands.dim() != 4 or hands.shape[1] != 2:
        raise ValueError(f"expected (B, 2, T, D / 2), hands left, right, got {tuple(hands.shape)}")
    if _interleaved(layout):
        return hands.permute(0, 2, 3, 1).flip(-1).flatten(-2)
    return hands.transpose(1, 2).flatten(-2)


def _interleaved(layout: str) -> bool:
    if layout not in ("left_right", RIGHT_LEFT_INTERLEAVED):
        raise ValueError(f"hand_layout is {layout!r}, expected 'left_right' or {RIGHT_LEFT_INTERLEAVED!r}")
    return layout == RIGHT_LEFT_INTERLEAVED


class CVAEHead(nn.Module):
    """A conditional variational auto-encoder of one point given one state; each hand and step by itself (HandsOnVLM).

    encoder [point, state] → hidden (ELU) → mean and log-variance of z (`latent`); decoder [z, state] → hidden (ELU) → point.
    Parameter names are the published ones behind `cvae.`.
    """

    latent_per_step = True
    """Each point of a path has a latent, and so noise, of its own."""

    def __init__(self, width: int, hidden: int = 512, latent: int = 256, traj_weight: float = 1.0, kl_weight: float = 1e-3) -> None:
        """`width`: channels of a hand's state. `traj_weight`, `kl_weight`: of the two terms in the loss."""
        super().__init__()
        self.width, self.latent = width, latent
        self.traj_weight, self.kl_weight = traj_weight, kl_weight
        self.enc_MLP = nn.Sequential(nn.Linear(2 + width, hidden), nn.ELU())
        self.linear_means = nn.Linear(hidden, latent)
        self.linear_log_var = nn.Linear(hidden, latent)
        self.dec_MLP = nn.Sequential(nn.Linear(latent + width, hidden), nn.ELU(), nn.Linear(hidden, 2))

    def loss(
        self,
        states: Tensor,
        target: Tensor,
        valid: Tensor,
        noise: Tensor | None = None,
        compat: bool | str | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Squared error of the decoded point plus the Kullback-Leibler distance of z from N(0, 1).

        Args:
            states: (B, 2, T, width), hands left, right, of the tokens' predicting states.
            target: (B, 2, T, 2) fractions of the picture.
            valid: (B, 2, T), or (B, 2) for all steps of a hand. What is not valid costs nothing, whatever its target holds.
            noise: (B, 2, T, latent) standard normal, by default drawn.
            compat: "handsonvlm", or True, is the published loss in its quirks: sums over the batch instead of means, a hand's steps valid
                together, the KL of all items times the number of valid hands, states rounded to bfloat16. "handsonvlm_fp32"
                leaves out the rounding.
            num_items_in_batch: valid hand-steps of the global batch that both terms are divided by; by default those here.

        Returns scalars `total`, `traj`, `kl` (both weighted), and `points` (B, 2, T, 2), `mu`, `logvar` (B, 2, T, latent).
        """
        target, valid = checked(states, self.width, target, valid, compat)
        if published(compat) == "handsonvlm":
            states = states.to(torch.bfloat16)
        mu, logvar = self.encode(states, target)
        noise = torch.randn_like(mu) if noise is None else self._noise(noise, mu)
        points = self.decode(states, mu + noise * torch.exp(0.5 * logvar))
        square = (points.float() - target).square().sum(-1)
        kl = -0.5 * (1 + logvar.float() - mu.float().square() - logvar.float().exp()).sum(-1)
        if compat:
            traj, kl = (square * valid).sum(), kl.sum() * valid.any(-1).sum()
        else:
            traj, kl = (mean_of_valid(values, valid, num_items_in_batch) for values in (square, kl))
        traj, kl = self.traj_weight * traj, self.kl_weight * kl
        return {"total": traj + kl, "traj": traj, "kl": kl, "points": points, "mu": mu, "logvar": logvar}

    def predict(self, states: Tensor, noise: Tensor | None = None, compat: bool | str | None = None) -> Tensor:
        """Points (B, 2, T, 2) for states (B, 2, T, width), hands left, right.

        `noise` (B, 2, T, latent), standard normal, is z; without it z is 0, the most likely path. `compat="handsonvlm"` doubles
        the noise, and draws it where none is given.
        """
        check_states(states, self.width, compat)
        shape = (*states.shape[:-1], self.latent)
        if noise is not None:
            z = self._noise(noise, states.new_empty(shape))
        else:
            z = torch.randn(shape, dtype=states.dtype, device=states.device) if compat else states.new_zeros(shape)
        return self.decode(states, PUBLISHED_Z_SCALE * z if compat else z)

    def encode(self, states: Tensor, points: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and log-variance (…, latent) of z for states (…, width) and points (…, 2)."""
        hidden = self.enc_MLP(torch.cat([points, states], -1).to(self._dtype))
        return self.linear_means(hidden), self.linear_log_var(hidden)

    def decode(self, states: Tensor, z: Tensor) -> Tensor:
        """Points (…, 2) for states (…, width) and z (…, latent)."""
        return self.dec_MLP(torch.cat([z, states], -1).to(self._dtype))

    @property
    def _dtype(self) -> torch.dtype:
        return self.linear_means.weight.dtype

    def _noise(self, noise: Tensor, like: Tensor) -> Tensor:
        if noise.numel() != like.numel() or noise.shape[-1] != self.latent:
            raise ValueError(f"expected noise {tuple(like.shape)}, got {tuple(noise.shape)}")
        return noise.reshape(like.shape).to(like)


class MLPHead(nn.Module):
    """One point from one state by three layers, each hand and step by itself (HandsOnVLM's alternative). Names as published, `mlp.*`."""

    def __init__(self, width: int, hidden: int = 512, traj_weight: float = 1.0) -> None:
        """`width`: channels of a hand's state. `traj_weight`: of the squared error in the loss."""
        super().__init__()
        self.width, self.traj_weight = width, traj_weight
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(), nn.Linear(hidden, 2))

    def loss(
        self,
        states: Tensor,
        target: Tensor,
        valid: Tensor,
        noise: Tensor | None = None,
        compat: bool | str | None = None,
        num_items_in_batch: Tensor | int | None = None,
    ) -> dict[str, Tensor]:
        """Squared distance per valid hand-step; arguments as for `CVAEHead.loss`, `noise` is not used.

        The published loss is of the same form (its own training call crashes), with all steps of a hand valid together.
        Returns scalars `total`, `traj`, and `points` (B, 2, T, 2).
        """
        target, valid = checked(states, self.width, target, valid, compat)
        points = self.predict(states)
        square = (points.float() - target).square().sum(-1)
        traj = self.traj_weight * mean_of_valid(square, valid, num_items_in_batch)
        return {"total": traj, "traj": traj, "points": points}

    def predict(self, states: Tensor, noise: Tensor | None = None, compat: bool | str | None = None) -> Tensor:
        """Points (B, 2, T, 2) for states (B, 2, T, width), hands left, right; `noise` is not used."""
        check_states(states, self.width, compat)
        return self.mlp(states.to(self.mlp[0].weight.dtype))


Head = CVAEHead | MLPHead | PathHead
HEADS: dict[str, type[Head]] = {"cvae": CVAEHead, "mlp": MLPHead, "path": PathHead}
