"""Paths are decoded with the text: the state that predicts a path token gives that token's point, and the point is fed back with it.

`TrajectoryCache` does this for greedy and sampled decoding, row by row. `branch` draws several futures behind one prefix: the text stays
as it was written, only the points (and what is fed back for them) differ. The futures are tokens side by side behind that prefix, whose
keys and values are kept once and read by all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache

from vlm.config import TrajectorySettings
from vlm.packing import as_attention_bias
from vlm.trajectory import Head
from vlm.trajectory_observed import hand_inputs

Code = Callable[[Tensor], Tensor]
"""Points (B, 2, T, 2) → what is added to the embeddings of their tokens, (B, T, D)."""


class PathDecoder:
    """Turns states into points: the path head, where in a state each hand is, and the published quirks that are on."""

    def __init__(self, head: Head, settings: TrajectorySettings) -> None:
        self.head, self.compat, self.steps = head, settings.compat, settings.steps
        self.layout, self.code = settings.hand_layout, settings.observed_code
        self.from_first = getattr(head, "from_first", False)

    def noise(self, noise: Tensor | None, batch: int, samples: int, futures: int, like: Tensor) -> Tensor | None:
        """Noise (batch, futures, 2, steps or 1, latent) as given, or drawn for `samples` of each row, (batch · samples, …); the first drawn
        future is the most likely one, without noise.

        None where nothing has to be drawn. Raises ValueError for noise of another shape.
        """
        latent = getattr(self.head, "latent", None)
        if latent is None:
            return None
        if noise is not None:
            noise = noise.unsqueeze(1) if noise.dim() == 4 else noise
            if noise.dim() != 5 or noise.shape[:3] != (batch, futures, 2) or noise.shape[-1] != latent:
                raise ValueError(f"expected noise ({batch}, {futures}, 2, {self.steps}, {latent}), got {tuple(noise.shape)}")
            return noise.to(like.device)
        if futures == 1 and not self.compat:
            return None
        drawn = torch.randn(batch * samples, futures, 2, self.steps if self.head.latent_per_step else 1, latent, device=like.device)
        if not self.compat:
            drawn[:, 0] = 0
        return drawn

    def points(
        self, states: Tensor, noise: Tensor | None, observed: Tensor | None, first: Tensor | None = None
    ) -> dict[str, Tensor]:
        """For states (B, D) of one step, noise (B, 2, latent), where the hands were, (B, 2, frames, 2), and the states (B, D) of their
        paths' first steps (None: these are): `points` (B, 2, 2), `spread` (B, 2, 2), `presence` (B, 2)."""
        path = torch.stack([states if first is None else first, states], 1) if self.from_first else states.unsqueeze(1)
        hands, origin = hand_inputs(path, self.layout, observed, self.code)
        points = self.head.predict(hands, None if noise is None else noise.unsqueeze(2), self.compat).float() + origin
        found = {"points": points[:, :, -1]}
        knows = hasattr(self.head, "spread")
        found["spread"] = self.head.spread(hands)[:, :, -1] if knows else torch.full_like(found["points"], float("nan"))
        found["presence"] = self.head.presence(hands)[:, :, -1] if knows else torch.ones_like(found["points"][..., 0])
        return found


class TrajectoryCache(DynamicCache):
    """A key-value cache that also keeps, per row, the states that predict the next token and its path's first one, and what its path
    tokens came to.

    `steps`: per name of `PathDecoder.points`, (B, n, …) with NaN where a row has fewer path tokens; `counts` (B,) how many each has.
    """

    def __init__(
        self, config: Any, decoder: PathDecoder, token_id: int, noise: Tensor | None = None, observed: Tensor | None = None
    ) -> None:
        """`noise` (rows, 2, steps or 1, latent) of the first future, `observed` (rows, 2, frames, 2); their rows are repeated when rows
        are."""
        super().__init__(config=config)
        self.decoder, self.token_id, self.noise, self.observed = decoder, token_id, noise, observed
        self.state: Tensor | None = None
        self.first: Tensor | None = None
        self.counts: Tensor | None = None
        self.steps: dict[str, Tensor] = {}

    def follow(self, states: Tensor) -> None:
        """Takes the states (B, D) that predict the next tokens."""
        self.state = states.detach()
        if self.counts is None:
            self.counts = torch.zeros(len(states), dtype=torch.long, device=states.device)
            self.noise, self.observed = (
                value if value is None else value.repeat_interleave(len(states) // len(value), 0) for value in (self.noise, self.observed)
            )

    def read(self, token_ids: Tensor) -> Tensor | None:
        """Makes the points of the rows whose chosen token (B,) is a path token; (B, 2, 1, 2) of all rows, None where no row has one."""
        rows = token_ids == self.token_id
        if self.state is None or self.counts is None or not bool(rows.any()):
            return None
        place = self.counts.clone()
        opens = (rows & (place % self.decoder.steps == 0)).unsqueeze(-1)
        self.first = self.state if self.first is None else torch.where(opens, self.state, self.first)
        found = self.decoder.points(self.state, self._noise_at(place), self.observed, self.first)
        for name, value in found.items():
            kept = self.steps.get(name, value.new_full((len(rows), 0, *value.shape[1:]), float("nan")))
            if int(place[rows].max()) >= kept.shape[1]:
                kept = torch.cat([kept, value.new_full((len(rows), 1, *value.shape[1:]), float("nan"))], 1)
            kept[rows, place[rows]] = value[rows]
            self.steps[name] = kept
        self.counts = self.counts + rows
        return found["points"].unsqueeze(2)

    def _noise_at(self, place: Tensor) -> Tensor | None:
        if self.noise is None:
            return None
        return self.noise[torch.arange(len(place), device=place.device), :, place.clamp(max=self.noise.shape[2] - 1)]

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """The rows that beam search keeps, in its order, with all that belongs to their paths."""
        super().reorder_cache(beam_idx)
        if self.state is None or self.counts is None:
            return
        self.state, self.counts = self.state[beam_idx], self.counts[beam_idx]
        self.noise, self.observed, self.first = (v if v is None else v[beam_idx] for v in (self.noise, self.observed, self.first))
        self.steps = {name: value[beam_idx] for name, value in self.steps.items()}


def branch(
    model: Any,
    embeds: Tensor,
    attention_mask: Tensor,
    new_ids: Tensor,
    decoder: PathDecoder,
    noise: Tensor | None,
    futures: int,
    code: Code | None,
    cache: DynamicCache | None = None,
    observed: Tensor | None = None,
) -> dict[str, Tensor]:
    """Futures of one row: what it wrote is fed again from its first path token on, with other noise in each future.

    Args:
        model: the HandVLM.
        embeds: (1, L, D) embeddings of the prompt; attention_mask: (1, L).
        new_ids: (n,) what was written behind it, with at least one path token.
        noise: (S, 2, steps or 1, latent) or None; `code`: what points are fed back as, None for nothing.
        cache: of the row, with at least all before the first path token; None computes it.
        observed: (1, 2, frames, 2) where its hands were.

    Returns `points` (S, m, 2, 2), `spread` likewise, `presence` (S, m, 2) for its m path tokens.
    """
    places = (new_ids == model.config.trajectory_token_id).nonzero().flatten().tolist()
    written = _Written(model, embeds, attention_mask, new_ids, places[0], cache)
    rows = futures if code is not None else 1  # nothing is fed back: one row stands for all
    if rows > 1 and not _side_by_side(model):
        each = [(None if noise is None else noise[number : number + 1]) for number in range(futures)]
        found = [branch(model, embeds, attention_mask, new_ids, decoder, one, 1, code, written.copy(), observed) for one in each]
        return {name: torch.cat([one[name] for one in found]) for name in found[0]}
    return _together(written, places, decoder, noise, futures, rows, code, observed)


def _together(
    written: _Written,
    places: list[int],
    decoder: PathDecoder,
    noise: Tensor | None,
    futures: int,
    rows: int,
    code: Code | None,
    observed: Tensor | None,
) -> dict[str, Tensor]:
    """`branch` for futures that go on side by side, token by token, from the first path token to the last of `places`: as `rows` states,
    one for each future or one for all."""
    observed = None if observed is None else observed.expand(futures, -1, -1, -1)
    state, first = written.before_path().expand(rows, -1), None
    steps: list[dict[str, Tensor]] = []
    for place in range(places[0], places[-1] + 1):
        inputs = written.words[:, place : place + 1].expand(rows, -1, -1)
        if place in places:
            first = state if len(steps) % decoder.steps == 0 else first
            step = None if noise is None else noise[:, :, min(len(steps), noise.shape[2] - 1)]
            steps.append(decoder.points(state.expand(futures, -1), step, observed, None if first is None else first.expand(futures, -1)))
            if code is not None:
                inputs = inputs + code(steps[-1]["points"].unsqueeze(2)).to(inputs)
        if place < places[-1]:
            state = written.follow(inputs, place)
    return {name: torch.stack([step[name] for step in steps], 1) for name in steps[0]}


def _side_by_side(model: Any) -> bool:
    """Whether futures can be tokens of one row under a mask: every layer sees all tokens, by an attention that takes masks."""
    config = model.config.text_config
    full = set(getattr(config, "layer_types", None) or ["full_attention"]) == {"full_attention"}
    return full and config._attn_implementation in ("sdpa", "eager")


class _Written:
    """A prompt and what was written behind it, run through the language model again from its first path token on."""

    def __init__(self, model: Any, embeds: Tensor, mask: Tensor, new_ids: Tensor, first: int, cache: DynamicCache | None) -> None:
        """`cache` holds at least all before the first path token, which is token `first` of `new_ids`; None computes it."""
        self.model, self.prompt = model, embeds.shape[1]
        self.words = model.get_input_embeddings()(new_ids).unsqueeze(0)
        self.mask = torch.cat([mask, mask.new_ones(1, len(new_ids))], 1)
        self.positions = (self.mask.cumsum(1) - 1).clamp(min=0)
        self.before = self.prompt + first
        # The last of what precedes the path is computed again, for its state.
        self.start = 0 if cache is None else self.before - 1
        self.known = torch.cat([embeds, self.words], 1)[:, self.start : self.before]
        config = model.config.text_config
        self.cache = DynamicCache(config=config) if cache is None else prefix_of(cache, self.start, config)

    def copy(self) -> DynamicCache:
        """The cache of what precedes the path, less its last token, for another to go on from; None where it was to be computed."""
        return prefix_of(self.cache, self.start, self.model.config.text_config) if self.start else None

    def before_path(self) -> Tensor:
        """The state (1, D) that predicts the first path token."""
        mask, positions = self.mask[:, : self.before], self.positions[:, self.start : self.before]
        return self._run(self.known, mask, positions)[:, -1]

    def follow(self, inputs: Tensor, place: int) -> Tensor:
        """The states (S, D) behind the tokens `inputs` (S, 1, D) of S futures at a place of what was written.

        The futures are S tokens of one row at the same position; each sees the prefix and its own earlier tokens.
        """
        rows = len(inputs)
        positions = self.positions[:, self.prompt + place].unsqueeze(1).expand(1, rows)
        own = torch.eye(rows, dtype=torch.bool, device=inputs.device).repeat(1, self.prompt + place + 1 - self.before)
        mask = torch.cat([self.mask[:, : self.before].bool().expand(rows, -1), own], 1)[None, None]
        mask = as_attention_bias(mask, self.model.config.text_config._attn_implementation, inputs.dtype) if rows > 1 else mask[0, 0].long()
        return self._run(inputs.transpose(0, 1), mask, positions)[0]

    def _run(self, inputs: Tensor, mask: Tensor, positions: Tensor) -> Tensor:
        out = self.model.model.language_model(
            inputs_embeds=inputs, attention_mask=mask, position_ids=positions, past_key_values=self.cache, use_cache=True
        )
        return out.last_hidden_state


def prefix_of(cache: DynamicCache, length: int, config: Any, row: int = 0) -> DynamicCache:
    """A cache of its own with the first `length` places of one row."""
    copy = DynamicCache(config=config)
    for number, layer in enumerate(cache.layers):
        copy.update(layer.keys[row : row + 1, :, :length].clone(), layer.values[row : row + 1, :, :length].clone(), number)
    return copy


def padded(rows: list[Tensor | None], steps: int, futures: int, like: Tensor, tail: tuple[int, ...]) -> Tensor:
    """Rows (S, m, 2, …) of different length → (B, S, 2, T, …), T the longest but at least `steps`, NaN where a row has no step."""
    longest = max([steps, *(row.shape[1] for row in rows if row is not None)])
    out = torch.full((len(rows), futures, longest, *tail), float("nan"), device=like.device)
    for number, row in enumerate(rows):
        if row is not None:
            out[number, :, : row.shape[1]] = row
    return out.transpose(2, 3)
