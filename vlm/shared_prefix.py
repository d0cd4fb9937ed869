"""Many questions about one picture: the picture is encoded, and the tokens that its prompts open with are run through the language
model, once; every question goes on from their keys and values (see `vlm.shared_attention`), and all are answered in one batch.

Answers are those of asking each question alone: the language model sees the same tokens at the same positions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import BatchFeature, DynamicCache

from data.sample import SampleError
from pose_tools.views import View
from vlm.packing import IGNORED, shared_prefix
from vlm.pixels import Pixels
from vlm.processor import Encoded, HandVLMProcessor, Messages
from vlm.shared_attention import SharedCache, attending, attention_modules


@dataclass(frozen=True)
class SharedPrompts:
    """B prompts of G pictures. `prefixes`: input_ids and attention_mask (G, P), padded on the left, with the pictures and poses; `group`
    (B,) the row of each prompt's prefix; `batch`: input_ids and attention_mask (B, P + R), the prefix, padding, the rest; `views` of each
    prompt's pictures."""

    prefixes: BatchFeature
    group: Tensor
    batch: BatchFeature
    views: list[list[View]]


def share(processor: HandVLMProcessor, conversations: Sequence[Messages], tools: Any = None) -> SharedPrompts:
    """Prompts grouped by the pictures, poses and words that they open with; a prompt that shares nothing is a group of its own.

    Raises SampleError for a prompt that ends with a picture.
    """
    pixels = Pixels()
    encoded = [processor.encode_conversation(messages, tools, pixels=pixels) for messages in conversations]
    slots = {processor.image_token_id, *processor.pose_token_ids.values()}
    groups: dict[Any, list[int]] = {}
    for number, one in enumerate(encoded):
        opening = max((place + 1 for place, token in enumerate(one.input_ids) if token in slots), default=0)
        if opening == len(one.input_ids):
            raise SampleError("a prompt that ends with a picture leaves nothing to ask; put words behind it")
        groups.setdefault(_key(one, opening), []).append(number)
    group, lengths = [0] * len(encoded), []
    for row, members in enumerate(groups.values()):
        lengths.append(_prefix_length([encoded[number].input_ids for number in members]))
        for number in members:
            group[number] = row
    firsts = [encoded[members[0]] for members in groups.values()]
    prefixes = processor.pad_left([one.input_ids[:length] for one, length in zip(firsts, lengths, strict=True)])
    rests = processor.pad_left([one.input_ids[lengths[row] :] for one, row in zip(encoded, group, strict=True)])
    rows = torch.tensor(group)
    whole = {name: torch.cat([prefixes[name][rows], rests[name]], 1) for name in prefixes}
    return SharedPrompts(BatchFeature(prefixes | processor.media(firsts)), rows, BatchFeature(whole), [one.views for one in encoded])


def _key(one: Encoded, opening: int) -> Any:
    """Equal for prompts that may share all up to their last slot."""
    poses = tuple((name, features.tobytes()) for name, found in one.poses.items() for features in found)
    return tuple(one.media), poses, tuple(one.input_ids[: max(opening, 1)])


def _prefix_length(sequences: list[list[int]]) -> int:
    if len(sequences) == 1:
        return len(sequences[0]) - 1
    return shared_prefix([(ids, [IGNORED] * len(ids)) for ids in sequences])


def check_can_share(model: Any) -> None:
    """Raises ValueError for a model whose state behind a prompt is more than keys and values of every token."""
    if model.trajectory_head is not None:
        raise ValueError("a model with a path head keeps a cache of its own, which prompts cannot share; ask without sharing prefixes")
    config = model.config.text_config
    every = "sliding_attention" if getattr(config, "sliding_window", None) else "full_attention"
    kinds = set(getattr(config, "layer_types", None) or [every]) - {"full_attention"}
    if kinds:
        raise ValueError(f"a prefix is shared where every layer sees all tokens; this language model has {', '.join(sorted(kinds))}")
    attention_modules(model.model.language_model)


@torch.no_grad()
def generate_shared(model: Any, prompts: SharedPrompts, **generation: Any) -> Any:
    """The output of `model.generate` for `prompts`, `sequences` (B, P + R + new). Greedy: raises ValueError for samples and beams, and
    what `check_can_share` refuses."""
    check_can_share(model)
    if generation.get("do_sample", False) or generation.get("num_beams", 1) != 1 or generation.get("num_return_sequences", 1) != 1:
        raise ValueError("prompts share a prefix in greedy decoding only: leave out sampling, beams and num_return_sequences")
    prefixes = prompts.prefixes.to(model.device)
    mask = prefixes["attention_mask"]
    media = {name: value for name, value in prefixes.items() if name not in ("attention_mask", "views")}
    cache = DynamicCache(config=model.config.text_config)
    positions = (mask.cumsum(1) - 1).clamp_min(0)
    embeds = model.model.embed(**media)
    model.model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, past_key_values=cache, use_cache=True)
    shared = SharedCache(cache, prompts.group.to(model.device))
    options = {"do_sample": False, "use_cache": True, **generation}
    with attending(model, shared):
        return model.generate(**prompts.batch.to(model.device), past_key_values=shared, **options)
