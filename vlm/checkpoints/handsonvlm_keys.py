"""The tensors of HandsOnVLM's published checkpoints: what is in them, whether it is whole, and the names it has here.

The tensors are a LLaMA with 101 added token rows, a linear projector, a CLIP tower (inside, or only named), a trajectory head, and five
modules that nothing ever read (`UNUSED`), which are dropped with a note. Anything else that is missing or left over is refused.
LITA's (`model_type` "lita" in the config) have 100 added rows, and neither the head nor those modules.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPVisionConfig, PreTrainedConfig

from vlm.checkpoints.reading import CheckpointError, model_tensors, not_finite, refuse
from vlm.trajectory import CVAEHead, MLPHead

logger = logging.getLogger(__name__)

Shapes = dict[str, tuple[int, ...]]

PUBLISHED: dict[str, dict[str, int]] = {
    "7b": {"hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32, "num_attention_heads": 32, "vocab_size": 32101},
    "13b": {"hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 40, "num_attention_heads": 40, "vocab_size": 32101},
}
CLIP_VIT_L_14 = {
    "hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
    "image_size": 224, "patch_size": 14, "num_channels": 3, "hidden_act": "quick_gelu", "projection_dim": 768,
}  # fmt: skip
UNUSED = ("time_embedding", "hand_traj_positional_embedding.", "bbox_to_feature.", "feat_fusion.", "downproject.")
"""Modules of the published classes that no forward pass reads."""

TOWER, _PROJECTOR = "model.vision_tower.vision_tower.vision_model.", "model.mm_projector."
_HEAD = "hand_traj_decoder.hand_traj_decoder."
_HEADS: dict[str, tuple[str, type[CVAEHead] | type[MLPHead]]] = {"CVAE": (_HEAD + "cvae.", CVAEHead), "MLP": (_HEAD, MLPHead)}
_ROPE, _POSITION_IDS = ".self_attn.rotary_emb.inv_freq", "embeddings.position_ids"


def expected_keys(config: Any, vision_config: Any = None) -> Shapes:
    """Every tensor of a published checkpoint: its name there → shape.

    Args:
        config: "7b", "13b", a published config.json (path, mapping or object): hidden_size, intermediate_size,
            num_hidden_layers, num_attention_heads, vocab_size; mm_hidden_size, num_key_value_heads, traj_decoder ("CVAE", "MLP").
            A HandVLMConfig brings its own tower.
        vision_config: the CLIP tower's (folder, mapping or object), by default ViT-L/14 at 224 pixels.

    Raises CheckpointError naming what the config lacks.
    """
    sizes, tower = sizes_of(config), vision_of(config, vision_config)
    width, channels = sizes["hidden_size"], tower["hidden_size"]
    if sizes.get("mm_hidden_size", channels) != channels:
        raise CheckpointError(
            f"the checkpoint was made for a vision tower of width {sizes['mm_hidden_size']}, this one has {channels}; give the one that it "
            "was trained with (convert.py: --vision)"
        )
    return {
        **_language_shapes(sizes),
        _PROJECTOR + "weight": (width, channels),
        _PROJECTOR + "bias": (width,),
        **{TOWER + name: shape for name, shape in _tower_shapes(tower)},
        **(_head_shapes(sizes) | _unused_shapes(width) if path_token(sizes) is not None else {}),
    }


def path_token(sizes: Mapping[str, Any]) -> int | None:
    """The id of `<hand_traj>`, the last row where the config does not say; None for LITA, which has no paths."""
    return None if sizes.get("model_type") == "lita" else sizes.get("hand_token_id", sizes["vocab_size"] - 1)


def hand_vlm_tensors(
    state_dict: Mapping[str, Any], config: Any, vision_config: Any = None, *, tower_inside: bool | None = None
) -> dict[str, Tensor]:
    """A published checkpoint's tensors under HandVLM's names, checked to be all there; the head under `trajectory_head.`.

    `tower_inside`: whether the checkpoint must (True) or must not (False) bring the CLIP tower; None takes what there is. Raises
    CheckpointError listing every tensor that is missing, unexpected, mis-shaped or not finite.
    """
    tensors, wanted = model_tensors(state_dict), expected_keys(config, vision_config)
    inside = any(name.startswith(TOWER) for name in tensors) if tower_inside is None else tower_inside
    needed = {name for name in wanted if not _may_lack(name) and (inside or not name.startswith(TOWER))}
    known = {name: value for name, value in tensors.items() if name in wanted and (inside or not name.startswith(TOWER))}
    extra = [name for name in tensors if name not in known and not name.endswith((_ROPE, _POSITION_IDS)) and not name.startswith(UNUSED)]
    refuse(
        {
            "missing": [*(needed - tensors.keys())],
            "unexpected": extra,
            "mis-shaped": [
                f"{name} is {tuple(value.shape)}, expected {wanted[name]}"
                for name, value in known.items()
                if tuple(value.shape) != wanted[name] and not name.startswith(UNUSED)
            ],
            "not finite": not_finite({name: value for name, value in known.items() if not _may_lack(name)}),
        },
        "This is not a whole HandsOnVLM checkpoint of this config and tower",
        "Give all its shards, its own config.json, and the CLIP tower it was trained with.",
    )
    dropped = sorted({next(part for part in UNUSED if name.startswith(part)).rstrip(".") for name in tensors if name.startswith(UNUSED)})
    if dropped:
        logger.info("left out, because nothing in the published model reads them: %s", ", ".join(dropped))
    return {_in_hand_vlm(name): value for name, value in known.items() if not _may_lack(name)}


def sizes_of(config: Any) -> dict[str, Any]:
    """A published config in any of its forms (see `expected_keys`) as a dictionary. Raises CheckpointError naming what it lacks."""
    if isinstance(config, str) and config.lower() in PUBLISHED:
        return dict(PUBLISHED[config.lower()])
    if isinstance(config, (str, Path)):
        path = Path(config)
        config = json.loads((path / "config.json" if path.is_dir() else path).read_text(encoding="utf-8"))
    if isinstance(config, PreTrainedConfig):
        text = getattr(config, "text_config", None)
        sizes = (config if text is None else text).to_dict()
    else:
        sizes = _fields(config)
    lacking = sorted(set(PUBLISHED["7b"]) - set(sizes))
    if lacking:
        raise CheckpointError(f"HandsOnVLM config: {', '.join(lacking)} missing; give the checkpoint's own config.json, or '7b' or '13b'")
    wrong = [f"{name} is {sizes[name]!r}" for name in PUBLISHED["7b"] if type(sizes[name]) is not int or sizes[name] < 1]
    if wrong:
        raise CheckpointError(
            f"HandsOnVLM config: {', '.join(wrong)}, expected whole numbers of at least 1; give the checkpoint's own config.json"
        )
    if sizes.get("traj_decoder", "CVAE") not in _HEADS:
        raise CheckpointError(f"HandsOnVLM config: traj_decoder is {sizes['traj_decoder']!r}, expected one of {', '.join(_HEADS)}")
    return sizes


def vision_of(config: Any, vision_config: Any) -> dict[str, Any]:
    """The tower's config as a dictionary, ViT-L/14 at 224 pixels in what is not given."""
    if vision_config is None:
        vision_config = getattr(config, "vision_config", None)
    if isinstance(vision_config, (str, Path)):
        vision_config = CLIPVisionConfig.from_pretrained(str(vision_config))
    if isinstance(vision_config, PreTrainedConfig):
        vision_config = getattr(vision_config, "vision_config", vision_config).to_dict()
    given = _fields(vision_config or {})
    given = dict(given.get("vision_config") or given)  # the config of a whole CLIP holds its tower's
    given.pop("_name_or_path", None)  # where it lay on somebody's machine
    return CLIPVisionConfig(**(CLIP_VIT_L_14 | given)).to_dict()


def _fields(config: Any) -> dict[str, Any]:
    return dict(config if isinstance(config, Mapping) else vars(config))


def _language_shapes(sizes: Mapping[str, Any]) -> Shapes:
    width, inner, rows, heads = (sizes[name] for name in ("hidden_size", "intermediate_size", "vocab_size", "num_attention_heads"))
    head = sizes.get("head_dim") or width // heads
    keys = head * (sizes.get("num_key_value_heads") or heads)
    shapes: Shapes = {"model.embed_tokens.weight": (rows, width), "model.norm.weight": (width,), "lm_head.weight": (rows, width)}
    for layer in range(sizes["num_hidden_layers"]):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{side}_proj.weight": (rows, width) for side, rows in (("q", head * heads), ("k", keys), ("v", keys))}
        shapes[f"{name}self_attn.o_proj.weight"] = (width, head * heads)
        shapes[f"{name[:-1]}{_ROPE}"] = (head // 2,)
        shapes |= {f"{name}mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes[f"{name}mlp.down_proj.weight"] = (width, inner)
        shapes |= {f"{name}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return shapes


def _tower_shapes(tower: Mapping[str, Any]) -> Iterator[tuple[str, tuple[int, ...]]]:
    """CLIP's vision model, as transformers names it."""
    width, inner, patch = tower["hidden_size"], tower["intermediate_size"], tower["patch_size"]
    yield "embeddings.class_embedding", (width,)
    yield "embeddings.patch_embedding.weight", (width, tower["num_channels"], patch, patch)
    yield "embeddings.position_embedding.weight", ((tower["image_size"] // patch) ** 2 + 1, width)
    layers: Shapes = {f"self_attn.{side}_proj": (width, width) for side in ("k", "v", "q", "out")}
    layers |= {"mlp.fc1": (inner, width), "mlp.fc2": (width, inner), "layer_norm1": (width,), "layer_norm2": (width,)}
    modules: Shapes = {"pre_layrnorm": (width,), "post_layernorm": (width,)}
    modules |= {f"encoder.layers.{layer}.{name}": shape for layer in range(tower["num_hidden_layers"]) for name, shape in layers.items()}
    for name, shape in modules.items():
        yield f"{name}.weight", shape
        yield f"{name}.bias", shape[:1]


def _head_shapes(sizes: Mapping[str, Any]) -> Shapes:
    import torch

    prefix, head = _HEADS[sizes.get("traj_decoder", "CVAE")]
    with torch.device("meta"):
        return {prefix + name: tuple(value.shape) for name, value in head(sizes["hidden_size"] // 2).state_dict().items()}


def _unused_shapes(width: int) -> Shapes:
    features = 1024  # of the pre-extracted hand and object features that an early version took
    shapes: Shapes = {"time_embedding": (20, width)}
    linear = {
        "hand_traj_positional_embedding": (width // 2, 2), "bbox_to_feature.0": (32, 4), "bbox_to_feature.2": (64, 32),
        "feat_fusion.0": (features, features + 64), "downproject": (features, features),
    }  # fmt: skip
    for name, (out, into) in linear.items():
        shapes |= {f"{name}.weight": (out, into), f"{name}.bias": (out,)}
    return shapes


def _may_lack(name: str) -> bool:
    """Buffers that are made anew, and modules that are not used."""
    return name.endswith(_ROPE) or name.startswith(UNUSED)


def _in_hand_vlm(name: str) -> str:
    for prefix, ours in ((TOWER, "model.vision_tower."), (_PROJECTOR, "model.multi_modal_projector.linear_1.")):
        if name.startswith(prefix):
            return ours + name.removeprefix(prefix)
    if name.startswith(_HEAD):
        return "trajectory_head." + name.removeprefix(_HEAD).removeprefix("cvae.")
    return name if name == "lm_head.weight" else "model.language_model." + name.removeprefix("model.")
