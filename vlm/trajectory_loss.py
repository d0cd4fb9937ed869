"""The loss of the paths in a batch, whatever rows, packs and turns their tokens stand in."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from vlm.trajectory import hand_states
from vlm.trajectory_code import handsonvlm_points
from vlm.trajectory_observed import context_width, hand_inputs


def path_loss(
    model: Any,
    hidden: Tensor,
    input_ids: Tensor | None,
    labels: Tensor,
    trajectories: Tensor | None,
    valid: Tensor | None,
    noise: Tensor | None = None,
    count: Tensor | int | None = None,
    observed: Tensor | None = None,
    micro_batches: int = 1,
) -> dict[str, Tensor]:
    """Terms of the head's loss on every supervised path of a batch, weighted as the config says.

    hidden (B, L, D); input_ids and labels (B, L); trajectories (M, 2, T, 2) of all paths in input_ids, in order; valid (M, 2, T).
    `observed` (B, 2, frames, 2): where each row's hands were (see `vlm.trajectory_observed`). `count`: valid hand-steps of the global
    batch. A batch without paths costs zero, but reaches every parameter of the head. As published (`compat`), a row without a path counts
    as one of zeros that is not valid, `noise` has a block for it too, and sums are averaged over the `micro_batches` of the global batch.
    Raises ValueError when tokens and paths do not agree.
    """
    settings, head = model.config.trajectory_settings, model.trajectory_head
    if trajectories is None or input_ids is None:
        return _without_paths(model, hidden, labels, observed)
    paths, _, steps, _ = trajectories.shape
    rows, places = _path_tokens(input_ids == model.config.trajectory_token_id, paths, steps)
    if settings.compat and valid is not None:
        trajectories = handsonvlm_points(trajectories, valid)
    states = hidden[rows, places - 1].reshape(paths, steps, -1)  # the state that predicts a token
    supervised = (labels[rows, places] != -100).reshape(paths, steps).all(1)
    known = torch.ones(trajectories.shape[:3], dtype=torch.bool, device=hidden.device) if valid is None else valid.bool()
    known = known & supervised[:, None, None]
    blocks = torch.arange(paths, device=hidden.device)
    if settings.compat:
        blocks, (states, trajectories, known) = _with_empty_rows(rows[::steps], len(hidden), (states, trajectories, known))
    seen = None if observed is None else observed[rows[::steps]]
    inputs, origin = hand_inputs(states, settings.hand_layout, seen, settings.observed_code)
    terms = head.loss(inputs, trajectories - origin, known, noise=noise, compat=settings.compat, num_items_in_batch=count)
    if "points" in terms:
        terms["points"] = (terms["points"] + origin)[blocks]
    weight = settings.weight / (micro_batches if settings.compat else 1)
    return {name: value if name == "points" else weight * value for name, value in terms.items() if name == "points" or value.dim() == 0}


def _path_tokens(there: Tensor, paths: int, steps: int) -> tuple[Tensor, Tensor]:
    """Rows and places (paths · steps,) of the path tokens, which are where `there` (B, L) is true. Raises ValueError for another number."""
    rows, places = there.nonzero(as_tuple=True)
    if len(rows) != paths * steps:
        raise ValueError(
            f"the conversations have {len(rows)} path tokens but {paths} paths of {steps} steps came with them; build the batch with this "
            "model's own processor, and do not cut conversations to a length"
        )
    return rows, places


def _without_paths(model: Any, hidden: Tensor, labels: Tensor, observed: Tensor | None) -> dict[str, Tensor]:
    """Zeros, made by every parameter of the head; ValueError where the answers do have path tokens."""
    settings = model.config.trajectory_settings
    without = int((labels == model.config.trajectory_token_id).sum())
    if without:
        raise ValueError(
            f"the answers have {without} path tokens but no paths came with them; build the batch with this model's own processor"
        )
    states = hand_states(hidden[:1, :1] * 0, settings.hand_layout)
    if observed is not None:
        context = context_width(observed.shape[2], settings.observed_code)
        states = torch.cat([states, states.new_zeros(1, 2, 1, context)], -1)
    empty = model.trajectory_head.loss(states.float(), states.new_zeros(1, 2, 1, 2).float(), states.new_zeros(1, 2, 1).bool())
    return {name: value * 0 for name, value in empty.items() if value.dim() == 0}


def _with_empty_rows(rows: Tensor, batch: int, values: tuple[Tensor, ...]) -> tuple[Tensor, tuple[Tensor, ...]]:
    """Blocks of zeros in the places of rows without a path: `rows` (M,) of the paths, ascending → places (M,) of the paths among all
    blocks, and the values with the blocks put in."""
    count = torch.bincount(rows, minlength=batch)
    empty = (count == 0).cumsum(0)  # of the rows up to each
    places = torch.arange(len(rows), device=rows.device) + empty[rows]
    total = len(rows) + int(empty[-1])
    return places, tuple(value.new_zeros(total, *value.shape[1:]).index_copy(0, places, value) for value in values)
