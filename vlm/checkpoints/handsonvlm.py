"""HandsOnVLM's published checkpoint → HandVLM, for any size.

    tokenizer = load_tokenizer(folder)
    model = convert(read_model_folder(folder), folder, vision_config, tokenizer)
    processor = make_processor(tokenizer, model.config)

The model sees 10 frames of a clip, repeated to 100, through CLIP's last layer but one and one linear layer, in 356 tokens; a picture is a
clip of one frame. `<hand_traj>` stands for one step of both hands, whose points are fractions of the whole frame although the tower sees
its middle alone. Training loss and sampling are the published ones (`compat`). `<image>` gets the id behind the vocabulary's last row.
LITA's published checkpoint, from which HandsOnVLM comes, is the same without paths.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from transformers import CLIPVisionConfig, LlamaConfig
from transformers.initialization import no_init_weights

from vlm.answers import TRAJECTORY_TOKEN
from vlm.checkpoints.handsonvlm_keys import TOWER, UNUSED, expected_keys, hand_vlm_tensors, path_token, sizes_of, vision_of
from vlm.checkpoints.llama_tokenizer import load_tokenizer
from vlm.checkpoints.reading import CheckpointError, model_tensors, not_finite, refuse, refused, shown
from vlm.config import HandVLMConfig
from vlm.model import HandVLM
from vlm.processor import HandVLMProcessor, processor_options
from vlm.trajectory_terms import published

__all__ = [
    "TOWER", "UNUSED", "add_tokens", "check_tokenizer", "convert", "expected_keys", "hand_vlm_tensors", "llava_projector", "load_tokenizer",
    "load_tower", "make_processor", "model_config", "tower_tensors",
]  # fmt: skip

logger = logging.getLogger(__name__)

IMAGE_TOKEN = "<image>"
STEPS, RATE = 4, 4.0
"""Points of a path, and how many a second."""
_TEXT = (
    "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads", "head_dim", "vocab_size",
    "hidden_act", "rms_norm_eps", "max_position_embeddings", "initializer_range", "rope_theta", "rope_scaling", "rope_parameters",
    "attention_bias", "bos_token_id", "eos_token_id", "pad_token_id",
)  # fmt: skip
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
_ONLY = {
    "video_compress_mode": "temporal_spatial_pool", "video_arch": "temporal_spatial_pool", "fuse_input_mode": "origin",
    "mm_use_im_start_end": False, "tie_word_embeddings": False,
}  # fmt: skip
"""What the published program can run; its other settings fail there too, or are remains of experiments."""


def convert(
    state_dict: Mapping[str, Any],
    config: Any,
    vision_config: Any = None,
    tokenizer: Any = None,
    *,
    compat: bool | str | None = "handsonvlm",
) -> HandVLM:
    """A published checkpoint → HandVLM in eval mode, in the checkpoint's own data type.

    Args:
        state_dict: all its tensors, names as published, the CLIP tower among them (else add `tower_tensors`).
        config: its config.json: path, folder, mapping or object; or "7b", "13b".
        vision_config: the tower's, likewise, by default CLIP ViT-L/14 at 224 pixels.
        tokenizer: its tokenizer (object, folder or sentencepiece file), whose ids are checked against the config; None trusts the config.
        compat: "handsonvlm" trains and samples as published, "handsonvlm_fp32" without rounding states to bfloat16 in the loss, None as
            new models do, with the same weights.

    Raises CheckpointError, a ValueError, listing every tensor or token id that does not fit, and for a config of another kind.
    """
    sizes = sizes_of(config)
    tensors = hand_vlm_tensors(state_dict, sizes, vision_of(config, vision_config), tower_inside=True)
    whole = model_config(config, vision_config, compat)
    if tokenizer is not None:
        whole.image_token_id = _prepared(tokenizer, sizes)[1]
    with no_init_weights():  # every tensor is replaced below
        model = HandVLM(whole).eval()
    dtype = tensors["lm_head.weight"].dtype
    model.load_state_dict({name: value.to(dtype).clone() for name, value in tensors.items()}, assign=True)
    model.config.dtype = dtype
    return model


def model_config(config: Any, vision_config: Any = None, compat: bool | str | None = "handsonvlm") -> HandVLMConfig:
    """The HandVLMConfig of a published config (arguments as for `convert`). CheckpointError for settings that were never published."""
    sizes, tower = sizes_of(config), vision_of(config, vision_config)
    strange = [f"{name} is {sizes[name]!r}, expected {value!r}" for name, value in _ONLY.items() if sizes.get(name, value) != value]
    if sizes.get("mm_vision_select_feature", "patch") != "patch":
        strange.append(f"mm_vision_select_feature is {sizes['mm_vision_select_feature']!r}, expected 'patch'")
    if strange:
        raise CheckpointError(f"HandsOnVLM config: {'; '.join(strange)}; no published model has this, give a published config.json")
    frames, cvae = sizes.get("num_frames", 100), sizes.get("traj_decoder", "CVAE") == "CVAE"
    options = {"traj_weight": float(sizes.get("lambda_traj", 1.0))} | (
        {"kl_weight": float(sizes.get("lambda_traj_kl", 1e-3))} if cvae else {}
    )
    text = _DEFAULTS | {name: sizes[name] for name in _TEXT if sizes.get(name) is not None}
    path = {
        "head": "cvae" if cvae else "mlp", "steps": STEPS, "rate": RATE, "hand_layout": "right_left_interleaved",
        "position_code": "handsonvlm", "space": "frame", "compat": published(compat), "weight": float(sizes.get("hoi_lambda", 1.0)),
        "options": options,
    }  # fmt: skip
    return HandVLMConfig(
        text_config=LlamaConfig(**text), vision_config=CLIPVisionConfig(**tower), image_token_id=sizes["vocab_size"],
        image_size=tower["image_size"], image_seq_length=(tower["image_size"] // tower["patch_size"]) ** 2,
        vision_feature_layer=sizes.get("mm_vision_select_layer", -2), vision_feature_select_strategy="default", projector_type="linear",
        clip={"slow_frames": 4, "slow": "spread", "pool": 2, "total": frames, "frames": frames, "pictures": True},
        trajectory=None if path_token(sizes) is None else path, trajectory_token_id=path_token(sizes), tie_word_embeddings=False,
        pad_token_id=text["pad_token_id"], bos_token_id=text["bos_token_id"], eos_token_id=text["eos_token_id"],
    )  # fmt: skip


def make_processor(tokenizer: Any, config: HandVLMConfig, template: str = "vicuna_v1", view: str = "center_crop") -> HandVLMProcessor:
    """The processor of a converted model.

    Args:
        tokenizer: the checkpoint's, as an object, a folder or its sentencepiece file; a plain Vicuna's is given the added tokens.
        config: of the converted model.
        template: "vicuna_v1" asks as in training, "llava_v0" as the published evaluation did with these checkpoints' names, "llava_v1" as
            with a name that has v1 in it, and as LITA's evaluation did.
        view: "center_crop" as published; "letterbox" shows the tower the sides of the frame too, which it was not trained on.

    Raises CheckpointError where the ids are not the checkpoint's.
    """
    prepared, image_token_id = _prepared(tokenizer, {**sizes_of(config), "hand_token_id": config.trajectory_token_id})
    if image_token_id != config.image_token_id:
        raise CheckpointError(f"{IMAGE_TOKEN} is {image_token_id} in the tokenizer, {config.image_token_id} in the model; convert again")
    return HandVLMProcessor(
        tokenizer=prepared, view=view, interpolation="bicubic", image_token=IMAGE_TOKEN, template=template, **processor_options(config)
    )


def load_tower(source: str | Path) -> nn.Module:
    """A CLIP vision model, from a folder or by name, with all its weights. Raises CheckpointError for anything else: what a file lacks
    would be random numbers."""
    from transformers import CLIPVisionModel

    with refused(f"{source}: no CLIP vision model", "Give its folder with --vision."):
        tower, info = CLIPVisionModel.from_pretrained(str(source), output_loading_info=True)
    problems = {"missing": [*map(str, info["missing_keys"])], "mis-shaped": [*map(str, info["mismatched_keys"])]}
    refuse(problems, f"{source}: not a whole CLIP vision model", "Give the tower that the checkpoint was trained with.")
    return tower


def tower_tensors(source: Any) -> dict[str, Tensor]:
    """A CLIP vision model (object, folder or name) as the tensors that a checkpoint with the tower inside has."""
    tower = source if isinstance(source, nn.Module) else load_tower(source)
    return {TOWER + name.removeprefix("vision_model."): value for name, value in tower.state_dict().items()}


def _prepared(tokenizer: Any, sizes: Mapping[str, Any]) -> tuple[Any, int]:
    """A copy of the tokenizer with the checkpoint's tokens, checked, and `<image>` behind them with its id."""
    tokenizer = load_tokenizer(tokenizer) if isinstance(tokenizer, (str, Path)) else copy.deepcopy(tokenizer)
    paths = path_token(sizes) is not None
    if (TRAJECTORY_TOKEN if paths else "<t0>") not in tokenizer.get_vocab():
        added = f"<t0> … and {TRAJECTORY_TOKEN}" if paths else "<t0> …"
        logger.info("the tokenizer is a plain one; adding %s behind its %d tokens", added, len(tokenizer))
        add_tokens(tokenizer, sizes.get("num_time_tokens", 100), paths)
    check_tokenizer(tokenizer, sizes)
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.unk_token
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"additional_special_tokens": [IMAGE_TOKEN]})
    return tokenizer, tokenizer.convert_tokens_to_ids(IMAGE_TOKEN)


def check_tokenizer(tokenizer: Any, config: Any) -> None:
    """Raises CheckpointError unless the tokenizer gives `<t0>` … and `<hand_traj>` the rows that they have in the checkpoint."""
    sizes = sizes_of(config)
    count = sizes.get("num_time_tokens", 100)
    last = path_token(sizes)
    first = (sizes.get("time_token_ids") or [(sizes["vocab_size"] if last is None else last) - count])[0]
    wanted = {f"<t{k}>": first + k for k in range(count)} | ({} if last is None else {TRAJECTORY_TOKEN: last})
    given = dict(zip(wanted, tokenizer.convert_tokens_to_ids(list(wanted)), strict=True))
    wrong = [f"{token} is {given[token]}, expected {number}" for token, number in wanted.items() if given[token] != number]
    remedy = "Give the tokenizer.model and added_tokens.json that came with it."
    refuse({"wrong ids": wrong}, "The tokenizer is not the checkpoint's", remedy)


def add_tokens(tokenizer: Any, num_time_tokens: int = 100, paths: bool = True) -> Any:
    """Gives the tokenizer of a plain Vicuna the added tokens, in their published order, `<hand_traj>` with `paths`; returns it."""
    tokenizer.add_tokens([*(f"<t{k}>" for k in range(num_time_tokens)), *([TRAJECTORY_TOKEN] if paths else [])])
    return tokenizer


def llava_projector(state_dict: Mapping[str, Any], hidden_size: int | None = None) -> dict[str, Tensor]:
    """LLaVA's pre-trained linear projector (`mm_projector.bin`) → HandVLM's tensors.

    What follows `mm_projector.` in a key is the name. Raises CheckpointError unless it is one linear layer, of `hidden_size` if given.
    """
    marker, tensors = "mm_projector.", model_tensors(state_dict)
    found = {name.split(marker, 1)[1]: value for name, value in tensors.items() if marker in name}
    others = [name for name in tensors if marker not in name]
    if others:
        logger.info("left out, because it is no part of the projector: %s", shown(others))
    if set(found) != {"weight", "bias"} or found["weight"].dim() != 2 or found["bias"].shape != found["weight"].shape[:1]:
        shapes = {name: tuple(value.shape) for name, value in found.items()}
        raise CheckpointError(
            f"expected one linear projector, mm_projector.weight and .bias, got {shapes or 'no such tensor'}; give mm_projector.bin of "
            "liuhaotian/llava-pretrain-vicuna-7b-v1.3 or -13b-v1.3 (LLaVA-1.5's has two layers)"
        )
    if hidden_size is not None and found["weight"].shape[0] != hidden_size:
        raise CheckpointError(
            f"the projector leads to width {found['weight'].shape[0]}, expected {hidden_size}; give that of this language model"
        )
    refuse({"not finite": not_finite(found)}, "The projector is damaged", "Fetch it again.")
    return {f"model.multi_modal_projector.linear_1.{name}": value for name, value in found.items()}
