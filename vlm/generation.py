"""generate: pictures, clips and poses are encoded once, paths are decoded with the text, and more futures branch off behind one prefix."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.generation import GenerateBeamDecoderOnlyOutput

from vlm.trajectory_decoding import PathDecoder, TrajectoryCache, branch, padded, prefix_of
from vlm.trajectory_observed import observed_hands

MEDIA = ("pixel_values", "pose_tokens", "media_frames", "frame_rows", "trajectories", "trajectory_valid")
"""Inputs that belong to the prompt alone."""


class PathGeneration:
    """HandVLM's `generate`: a mixin that stands before transformers' GenerationMixin, whose `generate` it calls."""

    config: Any
    parameters: Any
    generation_config: Any
    get_input_embeddings: Any
    model: Any
    trajectory_head: Any

    @torch.no_grad()
    def generate(
        self,
        input_ids: Tensor,
        pixel_values: Tensor | None = None,
        pose_tokens: dict[str, Tensor] | None = None,
        views: Any = None,
        *,
        num_trajectories: int = 1,
        noise: Tensor | None = None,
        **kwargs: Any,
    ) -> Any:
        """transformers' `generate`; pictures and poses are encoded once, before beams or samples are expanded.

        Args:
            num_trajectories: S futures of each path. They share the text up to the first path token.
            noise: (B, S, 2, T, latent) standard normal of the path head, (B, 2, T, latent) for one; by default the first future is the most
                likely one and the others are drawn (HandsOnVLM's compat draws all), for each returned sequence of a prompt anew.

        Returns an output with `sequences` (prompt and answer, left-padded prompts). A model with a path head adds, with R rows in
        `sequences`: `trajectories` (R, S, 2, T, 2) in units of the grid, hands left, right, NaN where a row has no such step; `valid`
        (R, S, 2, T) bool, false there; `trajectory_spread`, shaped like the points, standard deviations, and `trajectory_presence`
        (R, S, 2, T), probabilities; NaN and one for heads that do not tell. T is the config's number of steps, or that of the
        longest path if it is more. `trajectory_space` is the config's. Where points are fed back, states are kept in a cache, whatever
        `use_cache` says.
        """
        if "return_dict_in_generate" not in kwargs and kwargs.get("generation_config") is not None:
            kwargs["generation_config"] = copy.deepcopy(kwargs["generation_config"])
            kwargs["generation_config"].return_dict_in_generate = True
        else:
            kwargs.setdefault("return_dict_in_generate", True)
        media = {"pixel_values": pixel_values, "pose_tokens": pose_tokens, **{name: kwargs.pop(name, None) for name in MEDIA[2:]}}
        if self.trajectory_head is not None and self.model.trajectory_code is not None:
            kwargs.pop("use_cache", None)
        cached = kwargs.get("use_cache", True)
        if cached:
            kwargs["inputs_embeds"] = self.model.embed(input_ids, **media)
        else:  # without a cache the whole prompt is computed again at every step
            kwargs.update({name: value for name, value in media.items() if value is not None})
        if self.trajectory_head is None:
            if num_trajectories != 1 or noise is not None:
                raise ValueError("this model has no path head: num_trajectories and noise mean nothing to it")
            return super().generate(input_ids=input_ids, **kwargs)  # type: ignore[misc]
        return self._generate_paths(input_ids, media, num_trajectories, noise, cached, kwargs)

    def _generate_paths(self, input_ids: Tensor, media: dict, futures: int, noise: Tensor | None, cached: bool, kwargs: dict) -> Any:
        if futures < 1:
            raise ValueError(f"num_trajectories is {futures}, expected at least 1")
        if not kwargs.get("return_dict_in_generate", True):
            raise ValueError("a model with a path head returns a dict: paths come beside the text; leave return_dict_in_generate out")
        settings = self.config.trajectory_settings
        decoder = PathDecoder(self.trajectory_head, settings)
        noise = decoder.noise(noise, len(input_ids), self._samples(kwargs), futures, next(self.parameters()))
        observed = observed_hands(input_ids, media["pose_tokens"], self.config)
        if cached:
            if kwargs.get("past_key_values") is not None or kwargs.get("cache_implementation") not in (None, "dynamic"):
                raise ValueError("a model with a path head keeps its own cache; leave past_key_values and cache_implementation out")
            first = None if noise is None else noise[:, 0]
            kwargs["past_key_values"] = TrajectoryCache(self.config.text_config, decoder, self.config.trajectory_token_id, first, observed)
        output = super().generate(input_ids=input_ids, **kwargs)  # type: ignore[misc]
        followed = cached and not isinstance(output, GenerateBeamDecoderOnlyOutput)
        embeds = kwargs["inputs_embeds"] if cached else self.model.embed(input_ids, **media)
        mask = kwargs.get("attention_mask", torch.ones_like(input_ids))
        noise = None if noise is None else noise.repeat_interleave(len(output.sequences) // len(noise), 0)
        prompts = _Prompts(embeds, mask, noise, observed, copies=len(output.sequences) // len(input_ids))
        cache = output.past_key_values if followed else None
        if followed and futures == 1:
            found = self._followed(output.sequences, cache)
        else:
            found = [self._branched(row, output.sequences, prompts, decoder, futures, cache) for row in range(len(output.sequences))]
        for name, tail in (("points", (2, 2)), ("spread", (2, 2)), ("presence", (2,))):
            rows = [None if one is None else one[name] for one in found]
            key = "trajectories" if name == "points" else f"trajectory_{name}"
            output[key] = padded(rows, settings.steps, futures, embeds.float(), tail)
        output["valid"] = output["trajectories"].isfinite().all(-1)
        output["trajectory_space"] = settings.space
        return output

    def _samples(self, kwargs: dict) -> int:
        """Samples of one prompt, each with noise of its own; beams are weighed against each other, and share theirs."""
        config = kwargs.get("generation_config") or self.generation_config
        beams, samples = (kwargs.get(name) or getattr(config, name, None) or 1 for name in ("num_beams", "num_return_sequences"))
        return samples if beams == 1 else 1

    def _followed(self, sequences: Tensor, cache: Any) -> list[dict[str, Tensor] | None]:
        """The points that the cache has followed; a path token that was the very last one has not been fed yet."""
        if cache.get_seq_length() < sequences.shape[1]:
            cache.read(sequences[:, -1])
        counts = cache.counts.tolist()
        return [
            {name: value[row, : counts[row]].unsqueeze(0) for name, value in cache.steps.items()} if counts[row] else None
            for row in range(len(sequences))
        ]

    def _branched(
        self, row: int, sequences: Tensor, prompts: _Prompts, decoder: PathDecoder, futures: int, cache: Any
    ) -> dict[str, Tensor] | None:
        """The points of all futures of one row, drawn behind its prompt and text; None where it wrote no path token."""
        embeds, mask, noise, observed = prompts.of(row)
        written = sequences[row, embeds.shape[1] :]
        places = (written == self.config.trajectory_token_id).nonzero().flatten().tolist()
        if not places:
            return None
        known = None
        if cache is not None:
            known = prefix_of(cache, embeds.shape[1] + places[0], self.config.text_config, row)
        code = None if self.model.trajectory_code is None else lambda points: self.model.trajectory_code(points, None)
        return branch(self, embeds, mask, written[: places[-1] + 1], decoder, noise, futures, code, known, observed)

    def prepare_inputs_for_generation(
        self, input_ids: Tensor, inputs_embeds: Tensor | None = None, is_first_iteration: bool | None = False, **kwargs: Any
    ) -> dict[str, Any]:
        inputs = super().prepare_inputs_for_generation(  # type: ignore[misc]
            input_ids, inputs_embeds=inputs_embeds, is_first_iteration=is_first_iteration, **kwargs
        )
        if not is_first_iteration and kwargs.get("use_cache", True):
            for name in MEDIA:
                inputs.pop(name, None)
        return inputs


@dataclass(frozen=True)
class _Prompts:
    """The prompts (B, L) behind an output that holds `copies` rows of each; `noise` is there for every row."""

    embeds: Tensor
    mask: Tensor
    noise: Tensor | None
    observed: Tensor | None
    copies: int

    def of(self, row: int) -> tuple[Any, ...]:
        """Of one row: its prompt's embeddings (1, L, D) and mask (1, L), its noise, and where its hands were (1, 2, frames, 2)."""
        source = row // self.copies
        return (
            self.embeds[source : source + 1],
            self.mask[source : source + 1],
            None if self.noise is None else self.noise[row],
            None if self.observed is None else self.observed[source : source + 1],
        )
