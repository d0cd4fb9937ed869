"""Attention to keys and values that several rows share: those of a prefix are kept once per group of rows, never copied.

A row's attention is one softmax over its group's prefix and its own tokens. Every decoding step reads a prefix once for all the rows
behind it, so that many questions about one picture cost little more than one.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, DynamicCache
from transformers.cache_utils import DynamicLayer
from transformers.masking_utils import AttentionMaskInterface, sdpa_mask

NAME = "shared_prefix"
CHANGES = {"softcap", "s_aux", "position_bias", "sliding_window"}
"""What blocks of some language models ask of their attention beside the softmax."""


class SharedRows:
    """Which rows (B) belong to which prefix (G): `places` (B,) where row b stands in a grid of G groups of `size` rows."""

    def __init__(self, group: Tensor, groups: int) -> None:
        """`group` (B,) int64, the prefix of each row."""
        counts = torch.bincount(group, minlength=groups)
        order = torch.argsort(group, stable=True)
        rank = torch.empty_like(group)
        rank[order] = torch.arange(len(group), device=group.device) - (counts.cumsum(0) - counts)[group[order]]
        self.groups, self.size = groups, int(counts.max())
        self.places = group * self.size + rank
        self.in_place = bool((self.places == torch.arange(groups * self.size, device=group.device)[: len(group)]).all())
        self.in_place &= len(group) == groups * self.size  # rows in the groups' order, groups of one size: nothing has to be moved

    def together(self, rows: Tensor) -> Tensor:
        """(B, H, L, D) → (G, H, size · L, D), zeros where a group has fewer rows."""
        grid = rows
        if not self.in_place:
            grid = rows.new_zeros(self.groups * self.size, *rows.shape[1:])
            grid[self.places] = rows
        return grid.unflatten(0, (self.groups, self.size)).transpose(1, 2).flatten(2, 3)

    def apart(self, grid: Tensor, length: int) -> Tensor:
        """(G, H, size · length, D) → (B, H, length, D)."""
        rows = grid.unflatten(2, (self.size, length)).transpose(1, 2).flatten(0, 1)
        return rows if self.in_place else rows[self.places]


class SharedLayer(DynamicLayer):
    """Of one layer: `prefix` keys and values (G, H, P, D) that stay as they are, and the rows' own, which grow."""

    def __init__(self, prefix: tuple[Tensor, Tensor], rows: SharedRows) -> None:
        super().__init__()
        self.prefix, self.rows = prefix, rows

    def get_seq_length(self) -> int:
        return self.prefix[0].shape[-2] + super().get_seq_length()


class SharedCache(DynamicCache):
    """A cache for the rows that go on from the prefixes in `prefixes`, whose tensors it takes over."""

    def __init__(self, prefixes: DynamicCache, group: Tensor) -> None:
        """`group` (B,): the prefix of each row."""
        super().__init__()
        keys = prefixes.layers[0].keys
        assert keys is not None
        rows = SharedRows(group, len(keys))
        self.layers = [SharedLayer((layer.keys, layer.values), rows) for layer in prefixes.layers]
        self.layer_class_to_replicate = None


def attention_modules(language_model: nn.Module) -> list[Any]:
    """The attention of each block, in order. Raises ValueError for a language model that does not let its attention be chosen."""
    modules = [m for m in language_model.modules() if hasattr(m, "layer_idx") and hasattr(m, "scaling")]
    blocks = language_model.config.num_hidden_layers
    if not getattr(language_model, "_supports_attention_backend", False) or [m.layer_idx for m in modules] != list(range(blocks)):
        raise ValueError(f"a {type(language_model).__name__} does not take its attention from transformers' interface")
    return modules


@contextmanager
def attending(model: Any, cache: SharedCache) -> Iterator[None]:
    """While this lasts, the language model of a HandVLM attends to what `cache` holds, and to nothing else."""
    config, modules = model.config.text_config, attention_modules(model.model.language_model)
    before = config._attn_implementation
    config._attn_implementation = NAME
    for module in modules:
        module.shared_layer = cache.layers[module.layer_idx]
    try:
        yield
    finally:
        config._attn_implementation = before
        for module in modules:
            del module.shared_layer


def attend(
    module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, scaling: float, **more: Any
) -> tuple[Tensor, None]:
    """Attention of rows' new tokens, in transformers' interface: query (B, H, L, D); key, value (B, K, T, D) the rows' own so far, K heads
    dividing H; attention_mask (B, 1, L, P + T) bool, prefix first, None where all is seen. Returns (B, L, H, D).

    Raises ValueError for attention that is more than a softmax of products."""
    if unknown := sorted(name for name in CHANGES & more.keys() if more[name] is not None):
        raise ValueError(f"attention with {', '.join(unknown)} cannot share a prefix; ask without sharing prefixes")
    layer: Any = module.shared_layer
    length, repeats = query.shape[2], query.shape[1] // key.shape[1]
    query = query.unflatten(1, (key.shape[1], repeats)).flatten(2, 3) * scaling  # (B, K, repeats · L, D)
    keys, values = layer.prefix
    before = layer.rows.apart(layer.rows.together(query) @ keys.mT, query.shape[2])
    scores = torch.cat([before, query @ key.mT], -1)
    if attention_mask is not None:
        mask = attention_mask.expand(-1, 1, length, -1).repeat(1, 1, repeats, 1)
        scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
    weights = scores.softmax(-1, dtype=torch.float32).to(query.dtype)
    split = keys.shape[2]
    out = layer.rows.apart(layer.rows.together(weights[..., :split]) @ values, query.shape[2]) + weights[..., split:] @ value
    return out.unflatten(2, (repeats, length)).flatten(1, 2).transpose(1, 2).contiguous(), None


AttentionInterface.register(NAME, attend)
AttentionMaskInterface.register(NAME, sdpa_mask)
