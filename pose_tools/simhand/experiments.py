"""The kinds of pre-training by name, and the loss of each."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pose_tools.simhand.losses import ApplyTo, nt_xent, undo_view, weighted_nt_xent
from pose_tools.simhand.pose_distance import Distance, Kind
from pose_tools.simhand.views import OUT, SIMCLR_STEPS, SIMHAND_STEPS


@dataclass(frozen=True)
class Experiment:
    """`mined`: the second view is of a similar hand, else of the same picture; `undo`: projections are turned and shifted back."""

    name: str
    mined: bool
    undo: bool
    weighted: bool

    @property
    def steps(self) -> tuple[str, ...]:
        """What a view is made of."""
        return SIMHAND_STEPS if self.undo else SIMCLR_STEPS


EXPERIMENTS = {
    kind.name: kind
    for kind in (
        Experiment("simclr", mined=False, undo=False, weighted=False),
        Experiment("simclr_w", mined=False, undo=False, weighted=True),
        Experiment("peclr", mined=False, undo=True, weighted=False),
        Experiment("peclr_w", mined=False, undo=True, weighted=True),
        Experiment("simhand", mined=True, undo=True, weighted=False),
        Experiment("simhand_w", mined=True, undo=True, weighted=True),
    )
}
ALIASES = {"handclr": "simhand", "handclr_w": "simhand_w", "simhand-base": "simhand"}
"""Names of the published read-me, and one that the published code trains like another."""


@dataclass(frozen=True)
class LossSettings:
    """The published command of the method by default. `lambdas` (positives, negatives) are of the non-linear weights."""

    temperature: float = 0.5
    kind: Kind = "linear"
    distance: Distance = "mpjpe"
    apply_to: ApplyTo = "pos_neg"
    lambdas: tuple[float, float] = (5.0, 0.05)
    block: int | None = 512
    gather: bool = True


def experiment(name: str) -> Experiment:
    """By its own or an older name; ValueError with the list for another."""
    found = EXPERIMENTS.get(ALIASES.get(name, name))
    if found is None:
        raise ValueError(f"unknown experiment {name!r}, expected one of {', '.join([*EXPERIMENTS, *ALIASES])}")
    return found


def contrastive_loss(kind: Experiment, projections: Tensor, batch: Mapping[str, Any], settings: LossSettings = LossSettings()) -> Tensor:
    """Raw projections (N, 2, D) of both views of N pairs → scalar.

    `batch`, as far as the kind needs it: jitter (N, 2, 2) pixels x, y and angle (N, 2) degrees of the views, joints (N, 2, 21, 2) in
    their pixels.
    """
    views = []
    for view in (0, 1):
        given = {"jitter": batch["jitter"][:, view], "angle": batch["angle"][:, view]} if kind.undo else {}
        views.append(undo_view(projections[:, view], image_size=OUT, steps=("crop", "rotate") if kind.undo else (), **given))
    if not kind.weighted:
        return nt_xent(views[0], views[1], settings.temperature, block=settings.block, gather=settings.gather)
    joints = torch.as_tensor(batch["joints"], device=projections.device)
    return weighted_nt_xent(views[0], views[1], joints[:, 0], joints[:, 1], kind=settings.kind, distance=settings.distance,
                            apply_to=settings.apply_to, lambdas=settings.lambdas, temperature=settings.temperature,
                            block=settings.block, gather=settings.gather)  # fmt: skip
