"""Where the hands were, given to a path head beside the model's state. The head then predicts where a hand goes relative to the place in
which it was last seen."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from vlm.compat import handsonvlm_position_code
from vlm.trajectory import RIGHT_LEFT_INTERLEAVED, HandLayout, hand_states
from vlm.vision import fourier_code

CODES = ("fourier", "handsonvlm", "none")
"""How the place where a hand was last seen is told beside its coordinates: by a 2-D Fourier code, the published code, or not at all."""


def context_width(frames: int, code: str = "fourier") -> int:
    """Channels of `describe` for so many observed frames and a code of CODES."""
    if code not in CODES:
        raise ValueError(f"observed_code is {code!r}, expected one of {', '.join(CODES)}")
    return 3 * frames + 3 + (0 if code == "none" else 64)


def observed_hands(input_ids: Tensor, pose_tokens: Mapping[str, Tensor] | None, config: Any) -> Tensor | None:
    """Centres of the hands' boxes in each row's last clip, (B, 2, frames, 2) in units of the grid, NaN where a hand was not seen.

    They are the tokens of the pose encoder that `config.trajectory["observed"]` names; None for models without one.
    """
    if config.trajectory_settings is None or (name := config.trajectory_settings.observed) is None:
        return None
    slots = config.pose_encoders[name]["n_tokens"]
    column = config.pose_encoders[name]["box_columns"][0]
    centres = torch.full((len(input_ids), 2, slots // 2, 2), float("nan"), device=input_ids.device)
    if pose_tokens is None or name not in pose_tokens:
        return centres
    counts = (input_ids == config.pose_token_ids[name]).sum(1) // slots
    last, rows = counts.cumsum(0) - 1, counts > 0
    boxes = pose_tokens[name][last[rows].to(pose_tokens[name].device), :, column : column + 4].to(centres)
    middles = (boxes[..., :2] + boxes[..., 2:]) / 2  # frame-major, in each frame left then right
    centres[rows] = middles.unflatten(1, (slots // 2, 2)).transpose(1, 2)
    return centres


def describe(centres: Tensor, code: str = "fourier") -> tuple[Tensor, Tensor]:
    """Centres (B, 2, frames, 2) → channels (B, 2, context_width(frames, code)) and the place where each hand was last seen, (B, 2, 2).

    A hand that was never seen is put into the middle, and said not to be seen. Earlier places are told relative to the last.
    """
    seen = ~centres.isnan().any(-1)  # (B, 2, frames)
    ever = seen.any(-1, keepdim=True)
    number = torch.arange(seen.shape[-1], device=centres.device)
    last = torch.where(seen, number, -1).amax(-1).clamp(min=0)
    origin = centres.nan_to_num(0.5).gather(2, last[..., None, None].expand(-1, -1, 1, 2))[:, :, 0]
    origin = torch.where(ever, origin, 0.5)
    earlier = torch.where(seen.unsqueeze(-1), 4 * (centres - origin.unsqueeze(2)), 0.0)
    coded = [] if code == "none" else [(fourier_code(origin) if code == "fourier" else _published(origin)) * ever]
    return torch.cat([earlier.flatten(2), seen.to(origin), *coded, origin - 0.5, ever.to(origin)], -1), origin


def _published(places: Tensor) -> Tensor:
    """(B, 2, 2), hands left, right → (B, 2, 64), each hand's half of the published code of two hands in 128 channels."""
    return hand_states(handsonvlm_position_code(places.unsqueeze(2), 128), RIGHT_LEFT_INTERLEAVED)[:, :, 0]


def hand_inputs(
    states: Tensor, layout: HandLayout, centres: Tensor | None, code: str = "fourier"
) -> tuple[Tensor, Tensor | float]:
    """What a head reads: states (B, T, D) → (B, 2, T, width), hands left, right, with the past of each hand where `centres`
    (B, 2, frames, 2) is given; and what is added to its points, (B, 2, 1, 2) or 0."""
    hands = hand_states(states, layout)
    if centres is None:
        return hands, 0.0
    context, origin = describe(centres, code)
    context = context.unsqueeze(2).expand(-1, -1, hands.shape[2], -1).to(hands)
    return torch.cat([hands, context], -1), (origin - 0.5).unsqueeze(2)
