"""EVA-ViT-g as LAVIS and MiniGPT name its tensors → transformers' `Blip2VisionModel`.

Names and shapes are those of LAVIS' eva_vit (github.com/salesforce/LAVIS, BSD-3-Clause). There the bias of queries and values are
tensors of their own and keys have none; the layer norm behind the tower is called `ln_vision` and lies outside.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor
from transformers import Blip2VisionConfig

from vlm.vision import resize_positions

PREFIX = "visual_encoder."
HEAD_WIDTH = 88
PUBLISHED_BLOCKS = 40
"""The published file has so many; BLIP-2, MiniGPT-v2 and VLM4HOI run all but the last."""

_FIXED = {
    "cls_token": "embeddings.class_embedding",
    "pos_embed": "embeddings.position_embedding",
    "patch_embed.proj.weight": "embeddings.patch_embedding.weight",
    "patch_embed.proj.bias": "embeddings.patch_embedding.bias",
}
_IN_BLOCK = {
    "norm1": "layer_norm1", "norm2": "layer_norm2", "attn.qkv": "self_attn.qkv", "attn.proj": "self_attn.projection",
    "mlp.fc1": "mlp.fc1", "mlp.fc2": "mlp.fc2",
}  # fmt: skip
_BLOCK = re.compile(r"blocks\.(\d+)\.(.+)")
_BEHIND = re.compile(r"(norm|fc_norm|head)\.(weight|bias)\Z")
"""EVA's own last norm and classifier, which nobody here uses."""


def is_lavis(tensors: Mapping[str, Tensor]) -> bool:
    """Whether the tensors are named as in LAVIS (without a prefix) rather than as in transformers."""
    return "patch_embed.proj.weight" in tensors or any(_BLOCK.match(name) for name in tensors)


def to_transformers(tensors: Mapping[str, Tensor], blocks: int | None = None) -> tuple[dict[str, Tensor], list[str]]:
    """Tensors named as in LAVIS (no prefix) → named as in `Blip2VisionModel`, and the names that could not be used.

    `blocks`: how many to keep; None keeps all, or 39 of the published 40.
    """
    numbers = [int(match[1]) for match in map(_BLOCK.match, tensors) if match]
    if blocks is None:
        blocks = max(numbers, default=-1) + 1
        blocks -= blocks == PUBLISHED_BLOCKS
    result: dict[str, Tensor] = {}
    unknown = []
    for name, value in tensors.items():
        match = _BLOCK.match(name)
        if name in _FIXED:
            result[_FIXED[name]] = value
        elif match is None:
            unknown += [] if _BEHIND.match(name) else [name]
        elif int(match[1]) < blocks:
            number, inner = match.groups()
            module, _, kind = inner.rpartition(".")
            layer = f"encoder.layers.{number}."
            if inner == "attn.q_bias":
                values = tensors.get(f"blocks.{number}.attn.v_bias")
                if values is not None:
                    result[layer + "self_attn.qkv.bias"] = torch.cat([value, torch.zeros_like(value), values])
            elif inner == "attn.v_bias":
                unknown += [] if f"blocks.{number}.attn.q_bias" in tensors else [name]
            elif module in _IN_BLOCK and kind in ("weight", "bias"):
                result[f"{layer}{_IN_BLOCK[module]}.{kind}"] = value
            else:
                unknown.append(name)
    return result, unknown


def config_of(tensors: Mapping[str, Tensor], num_heads: int | None = None) -> Blip2VisionConfig:
    """The config that tensors named as in `Blip2VisionModel` need; heads are 88 wide, as published, unless `num_heads` says otherwise."""
    patch, table = tensors["embeddings.patch_embedding.weight"], tensors["embeddings.position_embedding"]
    width, size = patch.shape[0], patch.shape[-1]
    numbers = [int(match[1]) for match in map(re.compile(r"encoder\.layers\.(\d+)\.").match, tensors) if match]
    return Blip2VisionConfig(
        hidden_size=width,
        intermediate_size=tensors["encoder.layers.0.mlp.fc1.weight"].shape[0],
        num_hidden_layers=max(numbers) + 1,
        num_attention_heads=num_heads or max(1, width // HEAD_WIDTH),
        image_size=round((table.shape[1] - 1) ** 0.5) * size,
        patch_size=size,
        qkv_bias="encoder.layers.0.self_attn.qkv.bias" in tensors,
    )


def fit_positions(tensors: dict[str, Tensor], config: Any) -> dict[str, Tensor]:
    """The tensors with their position table brought to the config's picture size."""
    name = "embeddings.position_embedding"
    if name in tensors:
        return tensors | {name: resize_positions(tensors[name], config.image_size // config.patch_size)}
    return tensors
