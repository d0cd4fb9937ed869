"""Compose a HandVLM from parts: pretrained ones by name or path, fresh ones by config."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, AutoTokenizer

from pose_tools.grounding import DIALECTS, DialectName
from vlm.answers import TRAJECTORY_TOKEN
from vlm.checkpoints.reading import CheckpointError, refuse, refused
from vlm.config import HandVLMConfig, check_keys
from vlm.extend import add_slots
from vlm.model import HandVLM
from vlm.processor import HandVLMProcessor, pose_token, processor_options
from vlm.small_tokenizer import number_token_ids, train_tokenizer
from vlm.templates import TEMPLATES
from vlm.vision import MERGED, fourier_code, probe_grid

Part = dict[str, Any] | str
_NAMED = "Name a folder that holds it whole, or a model of huggingface.co, which must be reached from here."


@dataclass
class BuildSettings:
    """What a new model is made of.

    `language_model`, `vision_tower`: a name or path of pretrained weights, or a config (a mapping with `model_type`) for a fresh one.
    `vision_weights`: a safetensors file with the tower's tensors under `vision_prefix` (the small detector's backbone).
    `projector_weights`: one with the projector's (`scripts/convert.py llava-projector`). `time_tokens`: so many of `<t0>`, `<t1>` … for
    moments of a clip.
    `tokenizer`: a name or path; "train" makes one from the training texts. The rest is described in HandVLMConfig and HandVLMProcessor.
    """

    language_model: Part
    vision_tower: Part
    tokenizer: str = "train"
    vocab_size: int = 3000
    vision_weights: str | None = None
    vision_prefix: str = "backbone."
    projector_weights: str | None = None
    time_tokens: int = 0
    image_size: int = 336
    view: Literal["letterbox", "center_crop", "squash"] = "letterbox"
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    image_mean: list[float] = field(default_factory=lambda: [0.48145466, 0.4578275, 0.40821073])
    image_std: list[float] = field(default_factory=lambda: [0.26862954, 0.26130258, 0.27577711])
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    token_reducer: Literal["all", "merge-4"] = "all"
    projector_type: Literal["linear", "mlp"] = "mlp"
    projector_norm: bool = False
    grid_position: float = 0.0
    pose_encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    clip: dict[str, Any] | None = None
    trajectory: dict[str, Any] | None = None
    number_sigma: float = 0.0
    template: str = "chat"
    dialect: DialectName = "norm1000"

    def __post_init__(self) -> None:
        check_keys(self.pose_encoders, self.clip, self.trajectory)
        if self.template not in TEMPLATES:
            raise ValueError(f"template is {self.template!r}, expected one of {', '.join(TEMPLATES)}")


def build(settings: BuildSettings, texts: Iterable[str] = ()) -> tuple[HandVLM, HandVLMProcessor]:
    """Makes the model and its processor; `texts` are read only to train a tokenizer. Fresh parts use torch's global seed."""
    if settings.tokenizer == "train":
        tokenizer = train_tokenizer(texts, settings.vocab_size)
    else:
        with refused(f"tokenizer: {settings.tokenizer}: cannot be read", _NAMED):
            tokenizer = AutoTokenizer.from_pretrained(settings.tokenizer)
    tokenizer.add_tokens([f"<t{number}>" for number in range(settings.time_tokens)])
    add_slots(tokenizer, ["<image>", *map(pose_token, settings.pose_encoders)], settings.trajectory is not None)
    language_model = _pretrained(AutoModelForCausalLM, settings.language_model, "language_model")
    vision_tower = _pretrained(AutoModel, settings.vision_tower, "vision_tower")
    text_config = (
        language_model.config.get_text_config()
        if language_model is not None
        else _config(settings.language_model, vocab_size=len(tokenizer))
    )
    text_config.vocab_size = max(text_config.vocab_size, len(tokenizer))
    vision_config = vision_tower.config if vision_tower is not None else _config(settings.vision_tower)
    model = HandVLM(_model_config(settings, tokenizer, text_config, vision_config))
    _fill(model, settings, vision_tower, language_model)
    chosen = settings.vision_feature_layer, settings.vision_feature_select_strategy
    patches = probe_grid(model.model.vision_tower, settings.image_size, *chosen)
    model.config.image_seq_length = patches // MERGED[settings.token_reducer]
    processor = HandVLMProcessor(
        tokenizer=tokenizer,
        chat_template=tokenizer.chat_template,
        view=settings.view,
        interpolation=settings.interpolation,
        image_mean=settings.image_mean,
        image_std=settings.image_std,
        template=settings.template,
        dialect=settings.dialect,
        **processor_options(model.config),
    )
    return model, processor


def _model_config(settings: BuildSettings, tokenizer: Any, text_config: Any, vision_config: Any) -> HandVLMConfig:
    return HandVLMConfig(
        text_config=text_config,
        vision_config=vision_config,
        image_token_id=tokenizer.convert_tokens_to_ids("<image>"),
        image_size=settings.image_size,
        vision_feature_layer=settings.vision_feature_layer,
        vision_feature_select_strategy=settings.vision_feature_select_strategy,
        token_reducer=settings.token_reducer,
        projector_type=settings.projector_type,
        projector_norm=settings.projector_norm,
        grid_position=settings.grid_position,
        pose_encoders=settings.pose_encoders,
        pose_token_ids={name: tokenizer.convert_tokens_to_ids(pose_token(name)) for name in settings.pose_encoders},
        clip=settings.clip,
        trajectory=settings.trajectory,
        trajectory_token_id=tokenizer.convert_tokens_to_ids(TRAJECTORY_TOKEN) if settings.trajectory else None,
        number_token_ids=number_token_ids(tokenizer),
        number_sigma=settings.number_sigma,
        tie_word_embeddings=bool(getattr(text_config, "tie_word_embeddings", False)),
        pad_token_id=tokenizer.pad_token_id,
        eos_token_id=tokenizer.eos_token_id,
        bos_token_id=tokenizer.bos_token_id,
    )


def _fill(model: HandVLM, settings: BuildSettings, vision_tower: Any, language_model: Any) -> None:
    """Puts the pretrained weights that there are into a fresh model."""
    if vision_tower is not None:
        model.model.vision_tower.load_state_dict(vision_tower.state_dict())
    if settings.vision_weights:
        load_tower(model, settings.vision_weights, settings.vision_prefix)
    if settings.projector_weights:
        load_projector(model, settings.projector_weights)
    if language_model is not None:
        _copy_language_model(model, language_model)
    elif model.config.number_token_ids:
        smooth_number_rows(model, DIALECTS[settings.dialect].steps)


def load_tower(model: HandVLM, path: str | Path, prefix: str) -> None:
    """Fills the vision tower from the tensors under `prefix` of a safetensors file; anything missing or left over is an error."""
    tensors = {key.removeprefix(prefix): value.float() for key, value in load_file(path).items() if key.startswith(prefix)}
    tower = model.model.vision_tower
    wanted = {key for key in tower.state_dict() if not key.endswith("num_batches_tracked")}
    given = {key for key in tensors if not key.endswith("num_batches_tracked")}
    if wanted != given:
        raise CheckpointError(
            f"{path}: tensors under {prefix!r} do not make this vision tower; "
            f"missing {sorted(wanted - given)[:5]}, left over {sorted(given - wanted)[:5]}"
        )
    tower.load_state_dict(tensors, strict=False)


def load_projector(model: HandVLM, path: str | Path) -> None:
    """Fills the projector from a safetensors file in HandVLM's names; anything missing, left over or mis-shaped is an error."""
    prefix = "model.multi_modal_projector."
    with refused(f"projector_weights: {path}: no .safetensors file", "scripts/convert.py llava-projector makes one of mm_projector.bin."):
        tensors = {name: value.float() for name, value in load_file(path).items()}
    wanted = {prefix + name: value for name, value in model.model.multi_modal_projector.state_dict().items()}
    wrong = sorted(wanted.keys() ^ tensors.keys())
    wrong += [f"{name} is {tuple(v.shape)}" for name, v in tensors.items() if name in wanted and v.shape != wanted[name].shape]
    if wrong:
        raise CheckpointError(
            f"{path}: not this model's projector ({', '.join(wrong)}); choose projector_type and the language model it was trained for"
        )
    model.model.multi_modal_projector.load_state_dict({name.removeprefix(prefix): value for name, value in tensors.items()})


@torch.no_grad()
def smooth_number_rows(model: HandVLM, steps: int = 1000, input_scale: float = 0.1, output_scale: float = 0.05) -> None:
    """Starts the rows of the number tokens as a smooth code of their value, the code that places in the picture have too.

    `steps`: the number that stands for a whole side of the picture; larger ones are no places and keep their rows. Neighbouring numbers
    then begin as neighbours. They stay ordinary trainable rows.
    """
    start, count = model.config.number_token_ids
    count = min(count, steps + 1)
    values = torch.arange(count, dtype=torch.float32).unsqueeze(-1) / steps
    for embedding, scale in ((model.get_input_embeddings(), input_scale), (model.get_output_embeddings(), output_scale)):
        weight = embedding.weight
        weight[start : start + count] = scale * fourier_code(values, weight.shape[1]).to(weight)


@torch.no_grad()
def _copy_language_model(model: HandVLM, source: Any) -> None:
    """Copies a causal LM; rows of tokens that it does not have start as the mean of its rows."""
    body = source.get_decoder() if hasattr(source, "get_decoder") else source.base_model
    state = body.state_dict()
    name = next(key for key, value in body.named_parameters() if value is source.get_input_embeddings().weight)
    state[name] = _with_new_rows(state[name], model.config.text_config.vocab_size)
    model.model.language_model.load_state_dict(state)
    if not model.config.tie_word_embeddings:
        model.lm_head.weight.copy_(_with_new_rows(source.get_output_embeddings().weight, model.config.text_config.vocab_size))
    model.tie_weights()


def _with_new_rows(weight: torch.Tensor, rows: int) -> torch.Tensor:
    extra = rows - weight.shape[0]
    return torch.cat([weight, weight.mean(0, keepdim=True).expand(max(extra, 0), -1)]) if extra > 0 else weight


def _pretrained(auto: Any, part: Part, key: str) -> Any:
    """The model in a folder, whole: transformers draws random numbers for what a file lacks, and only warns. `key` names the setting.
    CheckpointError."""
    if not isinstance(part, str):
        return None
    with refused(f"{key}: {part}: cannot be loaded", _NAMED):
        config = AutoConfig.from_pretrained(part)
        if auto is AutoModel:  # a two-tower model such as CLIP: its vision half alone
            config = getattr(config, "vision_config", config)
        model, report = auto.from_pretrained(part, config=config, output_loading_info=True)
    # a pooler sums up a whole picture, behind the patches that are read here
    lacking = [name for name in map(str, report["missing_keys"]) if "pooler." not in name]
    problems = {"missing": lacking, "mis-shaped": [*map(str, report["mismatched_keys"])]}
    refuse(problems, f"{part}: not a whole model", "Copy the folder again.")
    return model


def _config(part: Part, **changes: Any) -> Any:
    options: dict[str, Any] = {**part, **changes} if isinstance(part, dict) else {}
    kind = options.pop("model_type", None)
    if kind is None:
        raise ValueError(f"a fresh part needs 'model_type' (such as llama, resnet, clip_vision_model), got {part!r}")
    return AutoConfig.for_model(kind, **options)
