"""Vision towers and token reducers: pixels → patch features in the tower's own width."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, Blip2VisionConfig, Blip2VisionModel, PreTrainedConfig

from vlm.config import ClipTokenSettings

# EVA-ViT-g lives inside BLIP-2 in transformers and has no Auto entry of its own.
AutoConfig.register(Blip2VisionConfig.model_type, Blip2VisionConfig, exist_ok=True)
AutoModel.register(Blip2VisionConfig, Blip2VisionModel, exist_ok=True)

FREQUENCIES = 16
"""Of the Fourier code; trained projectors and heads depend on it."""
MERGED = {"all": 1, "merge-4": 4}
"""Patches that become one token, by token reducer."""


def patch_features(tower: nn.Module, pixel_values: Tensor, layer: int, select: str) -> Tensor:
    """Features of a tower's patches.

    pixel_values (B, 3, H, W) → (B, P, C), raster order. `layer` indexes the tower's hidden states, -1 is its output.
    `select` "default" drops the first (class) token, "full" keeps all; convolutional maps (B, C, h, w) are flattened.
    """
    if layer == -1:
        features = tower(pixel_values).last_hidden_state
    else:
        features = tower(pixel_values, output_hidden_states=True).hidden_states[layer]
    if features.dim() == 4:
        features = features.flatten(2).transpose(1, 2)  # (B, C, h, w) → (B, h·w, C)
    elif select == "default":
        features = features[:, 1:]
    return features


def set_output_norm_eps(tower: nn.Module, eps: float) -> None:
    """Gives the LayerNorm behind a tower's last block an eps of its own. Raises ValueError for a tower without one."""
    norm = getattr(tower, "post_layernorm", None)
    if not isinstance(norm, nn.LayerNorm):
        raise ValueError(f"vision_norm_eps is {eps}, but a {type(tower).__name__} has no post_layernorm; leave vision_norm_eps out")
    norm.eps = float(eps)


def resize_positions(table: Tensor, side: int) -> Tensor:
    """A position table (1, 1 + n², C) of a class token and n × n patches → (1, 1 + side², C).

    Bicubic in float32 with half-pixel centres, as EVA-CLIP's towers are brought to other picture sizes; the class token's row stays.
    """
    patches = table.shape[1] - 1
    old = math.isqrt(patches)
    if old * old != patches:
        raise ValueError(f"a position table of {patches} patches is no square grid, shape {tuple(table.shape)}")
    if old == side:
        return table
    grid = table[:, 1:].float().reshape(1, old, old, -1).permute(0, 3, 1, 2)
    grid = nn.functional.interpolate(grid, size=(side, side), mode="bicubic", align_corners=False)
    return torch.cat([table[:, :1], grid.permute(0, 2, 3, 1).reshape(1, side * side, -1).to(table.dtype)], 1)


def merge_patches(features: Tensor, count: int = 4) -> Tensor:
    """Joins `count` patches that follow each other in raster order: (B, P, C) → (B, P / count, count · C)."""
    batch, patches, channels = features.shape
    if patches % count:
        raise ValueError(
            f"cannot merge {patches} patches in groups of {count}: choose an image size whose patch count is a multiple of {count}"
        )
    return features.reshape(batch, patches // count, channels * count)


def slow_fast(
    features: Tensor,
    slow_frames: int = 4,
    duplicates: int = 1,
    *,
    pool: int = 2,
    slow: Literal["spread", "last"] = "spread",
    total: int | None = None,
) -> Tensor:
    """Tokens of a clip: (B, T, P, C), P a square grid in raster order → (B, n, C), n = T · duplicates + slow_frames · P / pool².

    First every frame's mean over its patches, in time; then `slow_frames` frames, each pooled `pool` × `pool`, by frame, row, column
    (LITA): "spread" takes them evenly over the clip (first and last among them; halves round to even), "last" the last ones.
    `duplicates` counts as if the clip were given that many times in a row: HandsOnVLM's 10 distinct frames with `duplicates=10` are
    its 356 tokens, with 1 they are 266. `total` in its place repeats the clip until it has so many frames. Exact before or after a
    linear projector.
    """
    fast, grids = slow_fast_parts(features, slow_frames, duplicates, pool=pool, slow=slow, total=total)
    return torch.cat([fast, grids.flatten(1, 2)], 1)


def slow_fast_parts(
    features: Tensor,
    slow_frames: int = 4,
    duplicates: int = 1,
    *,
    pool: int = 2,
    slow: Literal["spread", "last"] = "spread",
    total: int | None = None,
) -> tuple[Tensor, Tensor]:
    """The two parts of `slow_fast`: means (B, total or T · duplicates, C) and pooled grids (B, slow_frames, P / pool², C)."""
    batch, frames, patches, channels = features.shape
    side = math.isqrt(patches)
    if total is not None and (total < frames or duplicates != 1):
        raise ValueError(f"a clip of {frames} frames cannot be repeated to total {total} frames (duplicates {duplicates}, expected 1)")
    if side * side != patches or pool < 1 or side % pool or frames < 1 or slow_frames < 0 or duplicates < 1:
        raise ValueError(
            f"slow-fast pooling needs frames of a square grid whose side {pool} divides, got {frames} frames of {patches} patches, "
            f"slow_frames {slow_frames}, duplicates {duplicates}; choose another image size or pool"
        )
    count = total or frames * duplicates
    fast = features.mean(2)[:, [number % frames for number in range(count)]]
    chosen = _slow_rows(frames, count, slow_frames, slow)
    grids = features[:, chosen].flatten(0, 1).transpose(1, 2).reshape(batch * slow_frames, channels, side, side)
    pooled = nn.functional.avg_pool2d(grids, pool) if pool > 1 else grids
    return fast, pooled.flatten(2).transpose(1, 2).reshape(batch, slow_frames, patches // pool**2, channels)


def _slow_rows(frames: int, count: int, slow_frames: int, slow: str) -> list[int]:
    if slow == "last":
        return [max(frames - slow_frames + k, 0) for k in range(slow_frames)]
    if slow != "spread":
        raise ValueError(f"slow is {slow!r}, expected 'spread' or 'last'")
    return (np.round(np.linspace(0, count - 1, slow_frames)).astype(int) % frames).tolist()


def chosen_frames(frames: int, clip: Mapping[str, Any]) -> list[int]:
    """Numbers of the frames that are looked at: all, or `clip["frames"]` of them spread evenly, the first and the last among them."""
    count = ClipTokenSettings.of(clip).frames or frames
    return list(range(frames)) if frames <= count else np.round(np.linspace(frames - 1, 0, count)).astype(int)[::-1].tolist()


def clip_length(frames: int, patches: int, clip: Mapping[str, Any]) -> int:
    """Tokens that a clip of `frames` frames of `patches` patches takes; `clip` as in HandVLMConfig."""
    settings = ClipTokenSettings.of(clip)
    count = settings.total or len(chosen_frames(frames, clip)) * settings.duplicates
    return count + settings.slow_frames * patches // settings.pool**2


def reduce_tokens(features: Tensor, reducer: str) -> Tensor:
    """Applies the reducer named in the config to (B, P, C)."""
    return merge_patches(features, MERGED[reducer])


def tower_width(vision_config: PreTrainedConfig) -> int:
    """Channels of one patch feature."""
    sizes = getattr(vision_config, "hidden_sizes", None)
    return sizes[-1] if sizes else vision_config.hidden_size


def probe_grid(tower: nn.Module, image_size: int, layer: int, select: str) -> int:
    """Patches per picture, found by running one empty picture: holds for every tower, whatever its stride is called."""
    was_training = tower.training
    tower.eval()
    with torch.no_grad():
        weight = next(tower.parameters())
        picture = torch.zeros(1, 3, image_size, image_size, dtype=weight.dtype, device=weight.device)
        patches = patch_features(tower, picture, layer, select).shape[1]
    tower.train(was_training)
    return patches


def sine_grid(tokens: int, width: int, merged: int = 1) -> Tensor:
    """A fixed 2-D position code of a square grid of patches in raster order, `merged` neighbours of a row in each token: (tokens, width).

    For each token's centre (x, y) in the unit picture: sin and cos of 2π·f·x and 2π·f·y with f = 1 … 16 repeated to the width.
    """
    rows = math.isqrt(tokens * merged)
    columns = rows // merged
    if rows * columns != tokens:
        raise ValueError(
            f"a position code needs a square grid of patches in rows that {merged} divides, got {tokens} tokens; set grid_position to 0"
        )
    y, x = ((torch.arange(count, dtype=torch.float32) + 0.5) / count for count in (rows, columns))
    y, x = torch.meshgrid(y, x, indexing="ij")
    return fourier_code(torch.stack([x, y], -1).reshape(tokens, 2), width)


def fourier_code(values: Tensor, width: int | None = None) -> Tensor:
    """sin and cos of 2π·f·v, f = 1 … 16, of every value: (…, n) in units of the picture → (…, n · 32).

    With `width` the code is repeated or cut to that many channels, so that a number's token, a box's token and a place in the
    picture share one code (Tancik et al. 2020, Fourier features, with integer frequencies).
    """
    frequency = torch.arange(1, FREQUENCIES + 1, dtype=torch.float32, device=values.device)
    angle = 2 * math.pi * values.float().unsqueeze(-1) * frequency
    code = torch.cat([angle.sin(), angle.cos()], -1).flatten(-2)
    if width is not None:
        repeats = -(-width // code.shape[-1])
        code = code.repeat(*([1] * (code.dim() - 1)), repeats)[..., :width]
    return code
