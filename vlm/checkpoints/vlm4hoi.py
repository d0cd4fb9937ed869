"""VLM4HOI's (and MiniGPT-v2's) published checkpoint → HandVLM, for any size: sizes come from the tensors.

    model = convert(read_checkpoint("checkpoint_55.pth"), llm="Llama-2-7b-chat-hf", vision="eva_vit_g.pth", config={"image_size": 448})
    processor = make_processor("Llama-2-7b-chat-hf", model.config)

The checkpoint holds what was trained: LoRA on the queries and values of the language model, and the projector. The language model and
the tower come from where they were frozen. The layer norm behind the tower was never trained and never loaded there: it has weight
1, bias 0 and eps 1e-5, whatever the tower's own file says, unless the checkpoint itself has it.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModel, AutoModelForCausalLM, PreTrainedConfig
from transformers.initialization import no_init_weights

from vlm.checkpoints import eva
from vlm.checkpoints.llama_tokenizer import load_tokenizer
from vlm.checkpoints.reading import CheckpointError, model_tensors, not_finite, read_checkpoint, refuse, refused, shown
from vlm.config import HandVLMConfig
from vlm.model import HandVLM
from vlm.processor import HandVLMProcessor, processor_options

logger = logging.getLogger(__name__)

PAD_TOKEN = "$$"
"""An ordinary piece of Llama's vocabulary that the published model pads with."""
IMAGE_TOKEN = "<unk>"
"""Marks the places of picture tokens here. Llama's byte fallback never yields it from text, so no row has to be added."""

_LORA = re.compile(r"(.+)\.lora_([AB])(?:\.default)?\.weight")
_LLM, _PEFT, _PROJECTOR, _NORM = "llama_model.", "base_model.model.", "llama_proj.", "ln_vision."
_OTHER_NAMES: dict[str, str] = {"img_size": "image_size", "num_heads": "num_attention_heads", "lora_target_modules": "lora_targets"}

Parts = dict[str, Tensor]


@dataclass(frozen=True)
class VLM4HOIConfig:
    """What a checkpoint's tensors do not say.

    `image_size`: side in pixels, None keeps the tower's own (published: 448, on a tower stored for 224). `lora_alpha`: the update is
    alpha / rank · B · A. `lora_r`: the rank that the tensors must have, None takes theirs. `lora_targets`: the layers that every block
    has updates of; empty where there is no LoRA at all. `num_attention_heads`: of a tower given as tensors alone; None means 88 channels
    each. `text_config`, `vision_config`: of parts given as tensors alone. `image_token_id`, `pad_token_id`: in the tokenizer's vocabulary.
    `dtype`: None takes the embeddings'.
    """

    image_size: int | None = None
    lora_alpha: float = 16.0
    lora_r: int | None = None
    lora_targets: tuple[str, ...] = ("q_proj", "v_proj")
    num_attention_heads: int | None = None
    text_config: Any = None
    vision_config: Any = None
    image_token_id: int = 0
    pad_token_id: int | None = None
    dtype: torch.dtype | None = None

    @classmethod
    def of(cls, config: Any) -> VLM4HOIConfig:
        """From a mapping of its fields, a HandVLMConfig, or None for the defaults. Raises ValueError for a field that is none."""
        if config is None or isinstance(config, cls):
            return config or cls()
        known = [field.name for field in fields(cls)]
        given: dict[str, Any]
        if isinstance(config, PreTrainedConfig):
            given = {name: getattr(config, name) for name in known if hasattr(config, name)}
        else:
            given = {str(_OTHER_NAMES.get(name, name)): value for name, value in dict(config).items()}
            if unknown := sorted(set(given) - set(known)):
                raise ValueError(f"vlm4hoi config: unknown {', '.join(unknown)}; known are {', '.join(known)}")
        if isinstance(given.get("dtype"), str):
            given["dtype"] = getattr(torch, given["dtype"].removeprefix("torch."))
        return cls(**given)


def convert(state_dict: Mapping[str, Any], llm: Any, vision: Any, config: Any = None, *, merge_lora: bool = True) -> HandVLM:
    """A checkpoint and the parts it was trained on → HandVLM in eval mode.

    Args:
        state_dict: the file's dictionary (with "model" in it) or the tensors alone. Keys as published: `llama_model.…lora_A.weight`,
            `llama_proj.*`; also with `module.` before them, `lora_A.default.weight`, `base_layer`, and with the tower
            (`visual_encoder.*`, `ln_vision.*`) or the whole language model in it, which then go before `llm` and `vision`.
        llm: a causal LM of transformers: the model, its folder or name, its config, or its tensors (with `config.text_config`).
        vision: EVA-ViT-g or a tower like it: a `Blip2VisionModel` or BLIP-2 model, its folder or name, its config, a file in LAVIS' names,
            or its tensors in either naming.
        config: see VLM4HOIConfig; a mapping of its fields will do, as will a HandVLMConfig.
        merge_lora: add the updates to the weights; False leaves them in place as peft layers, to train on or over a quantised base.

    Raises CheckpointError listing every tensor that is missing, unexpected, mis-shaped or not finite.
    """
    options = VLM4HOIConfig.of(config)
    given = _Given.sort(model_tensors(state_dict))
    skeleton, language = _language_model(llm, options)
    vision_config, tower, strangers = _tower(vision, given.tower, options)
    names = language.keys() - given.language.keys() if isinstance(llm, (str, Path)) else ()
    own = {_in_hand_vlm(name, skeleton) for name in names}  # read here: the model takes them; of what the caller has it gets copies
    language |= given.language

    model_config = _model_config(skeleton.config, vision_config, options)
    with no_init_weights():  # every tensor is replaced below
        model = HandVLM(model_config).eval()
    state = {f"model.vision_tower.{name}": value for name, value in _with_output_norm(tower, given.norm).items()}
    state |= {f"model.multi_modal_projector.linear_1.{name}": value for name, value in given.projector.items()}
    state |= {_in_hand_vlm(name, skeleton): value for name, value in language.items()}
    language.clear()  # only `state` may hold the tensors, so that each is freed when it has been converted
    _check(model, state, given, strangers, skeleton, options)

    dtype = options.dtype or state[_in_hand_vlm(_name_of(skeleton, skeleton.get_input_embeddings()), skeleton)].dtype
    if merge_lora:
        _merge(state, given.lora, skeleton, options.lora_alpha, dtype)
    if model_config.tie_word_embeddings:
        state.pop("lm_head.weight", None)
    tensors = {name: state.pop(name).to(dtype, copy=name not in own) for name in list(state)}
    model.load_state_dict(tensors, strict=False, assign=True)
    model.tie_weights()
    model.config.dtype = dtype
    if merge_lora or not given.lora:
        return model
    updates = {_in_hand_vlm(module, skeleton): pair for module, pair in given.lora.items()}
    return with_lora(model, updates, options.lora_alpha).get_base_model()


def _merge(state: Parts, lora: Mapping[str, Parts], skeleton: nn.Module, alpha: float, dtype: torch.dtype) -> None:
    """Adds the low-rank updates to the weights that they belong to, in float32, one weight at a time."""
    for module, pair in lora.items():
        name, scale = _in_hand_vlm(f"{module}.weight", skeleton), alpha / pair["A"].shape[0]
        state[name] = (state[name].float() + scale * pair["B"].float() @ pair["A"].float()).to(dtype)


def with_lora(model: HandVLM, updates: Mapping[str, Parts], alpha: float, dropout: float = 0.05) -> Any:
    """A peft model around `model` with the updates {module name: {"A": (r, in), "B": (out, r)}} as its adapter, in eval mode."""
    from peft import LoraConfig, get_peft_model

    rank = next(iter(updates.values()))["A"].shape[0]
    config = LoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, bias="none", target_modules=sorted(updates))
    wrapped = get_peft_model(model, config)
    tensors = {
        f"base_model.model.{name}.lora_{side}.default.weight": value for name, pair in updates.items() for side, value in pair.items()
    }
    result = wrapped.load_state_dict(tensors, strict=False)
    left = [name for name in result.missing_keys if "lora_" in name]
    if result.unexpected_keys or left:
        raise CheckpointError(
            f"the LoRA layers do not take these updates: unexpected {shown(result.unexpected_keys)}, missing {shown(left)}"
        )
    return wrapped.eval()


def make_processor(tokenizer: Any, config: HandVLMConfig, template: str = "vlm4hoi") -> HandVLMProcessor:
    """The processor of a converted model: pictures squashed with PIL's bicubic filter, boxes in hundredths.

    `tokenizer`: Llama's, as an object, a folder or name, or its sentencepiece file. `template`: "vlm4hoi" asks as in training,
    "vlm4hoi_inference" as the published evaluation did (two BOS, one blank less).
    """
    if isinstance(tokenizer, (str, Path)):
        tokenizer = load_tokenizer(tokenizer)
    if tokenizer.pad_token is None:
        pad = tokenizer.convert_tokens_to_ids(PAD_TOKEN)
        tokenizer.pad_token = PAD_TOKEN if pad not in (None, tokenizer.unk_token_id) else tokenizer.eos_token
    tokenizer.add_special_tokens({"pad_token": tokenizer.pad_token})  # as it will be after saving and loading
    return HandVLMProcessor(
        tokenizer=tokenizer, view="squash", interpolation="bicubic", image_token=IMAGE_TOKEN, template=template, dialect="minigpt",
        **processor_options(config),
    )  # fmt: skip


@dataclass
class _Given:
    """A checkpoint's tensors by what they belong to; names inside `language` and `lora` are those of the causal LM."""

    lora: dict[str, Parts]
    language: Parts
    projector: Parts
    tower: Parts
    norm: Parts
    unexpected: list[str]

    @classmethod
    def sort(cls, tensors: Parts) -> _Given:
        found = cls({}, {}, {}, {}, {}, [])
        for key, value in tensors.items():
            if key.endswith("rotary_emb.inv_freq"):
                continue
            name = key.removeprefix(_LLM).removeprefix(_PEFT).replace(".base_layer.", ".")
            if match := _LORA.fullmatch(name):
                found.lora.setdefault(match[1], {})[match[2]] = value
            elif key.startswith(_LLM):
                found.language[name.replace("lm_head.0.", "lm_head.")] = value
            else:
                groups = {_PROJECTOR: found.projector, eva.PREFIX: found.tower, _NORM: found.norm}
                prefix = next((prefix for prefix in groups if key.startswith(prefix)), None)
                if prefix is None:
                    found.unexpected.append(key)
                else:
                    groups[prefix][key.removeprefix(prefix)] = value
        return found


def _config_of(source: Any) -> PreTrainedConfig | None:
    """The config that `source` is, or describes as a mapping with `model_type`."""
    if isinstance(source, Mapping) and isinstance(source.get("model_type"), str):
        options = dict(source)
        return AutoConfig.for_model(options.pop("model_type"), **options)
    return source if isinstance(source, PreTrainedConfig) else None


def _language_model(source: Any, options: VLM4HOIConfig) -> tuple[nn.Module, Parts]:
    """A causal LM that knows its own names (its weights may be empty), and the tensors there are."""
    if isinstance(source, nn.Module):
        return source, dict(source.state_dict())
    if isinstance(source, (str, Path)):
        with refused(f"{source}: no causal language model could be read from there", "Give its whole folder, or its name, with --llm."):
            loaded, report = AutoModelForCausalLM.from_pretrained(str(source), dtype="auto", output_loading_info=True)
        source, tensors = loaded.config, _read(loaded, report)
    else:
        tensors = {} if source is None or _config_of(source) is not None else model_tensors(source)
    config = _config_of(source) or _config_of(options.text_config)
    if config is None:
        raise ValueError(
            f"llm is {type(source).__name__}: give a causal LM, its folder, its config, or its tensors and text_config in the config"
        )
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config), tensors


def _tower(source: Any, own: Parts, options: VLM4HOIConfig) -> tuple[PreTrainedConfig, Parts, list[str]]:
    """The tower's config and tensors, and names that it has no place for; the checkpoint's `own` go before those of `source`."""
    if isinstance(source, (str, Path)):
        source = read_checkpoint(source) if Path(source).is_file() else _pretrained_tower(str(source))
    strangers: list[str] = []
    config, tensors = source if isinstance(source, tuple) else (_config_of(source) or _config_of(options.vision_config), {})
    if isinstance(source, nn.Module):
        source = getattr(source, "vision_model", source)
        config, tensors = source.config, dict(source.state_dict())
    elif isinstance(source, Mapping) and _config_of(source) is None:
        tensors = {key.removeprefix("vision_model.").removeprefix(eva.PREFIX): value for key, value in model_tensors(source).items()}
        if eva.is_lavis(tensors):
            tensors, strangers = eva.to_transformers(tensors, getattr(config, "num_hidden_layers", None))
    if own:
        mapped, more = eva.to_transformers(own, getattr(config, "num_hidden_layers", None))
        tensors, strangers = tensors | mapped, strangers + [eva.PREFIX + name for name in more]
    if config is None:
        if "embeddings.patch_embedding.weight" not in tensors or "embeddings.position_embedding" not in tensors:
            raise CheckpointError("no vision tower: neither the checkpoint nor `vision` has one; give EVA-ViT-g's file or a BLIP-2 folder")
        config = eva.config_of(tensors, options.num_attention_heads)
        if options.num_attention_heads is None and config.hidden_size % eva.HEAD_WIDTH:
            logger.warning(
                "a tower of width %d is no multiple of EVA-ViT-g's heads of %d channels, and tensors do not tell how many it has: "
                "taken for %d; give num_attention_heads (--heads)",
                config.hidden_size, eva.HEAD_WIDTH, config.num_attention_heads,
            )  # fmt: skip
    config = type(config).from_dict(config.to_dict() | {"image_size": options.image_size or config.image_size})
    return config, eva.fit_positions(tensors, config), strangers


def _pretrained_tower(name: str) -> tuple[PreTrainedConfig, Parts]:
    """The config and the tensors of a tower, or of the tower in a BLIP-2 model."""
    from transformers import Blip2ForConditionalGeneration

    with refused(f"{name}: no vision tower could be read from there", "Give EVA-ViT-g's file, or a whole BLIP-2 folder, with --vision."):
        kind: Any = Blip2ForConditionalGeneration if hasattr(AutoConfig.from_pretrained(name), "vision_config") else AutoModel
        loaded, report = kind.from_pretrained(name, dtype="auto", output_loading_info=True)
    tower = getattr(loaded, "vision_model", loaded)
    return tower.config, _read(tower, report, "vision_model.")


def _read(model: nn.Module, report: Mapping[str, Any], prefix: str = "") -> Parts:
    """A loaded model's tensors without those that its files lack: transformers draws random numbers for them, and only warns."""
    drawn = {name.removeprefix(prefix) for name in report["missing_keys"]}
    return {name: value for name, value in model.state_dict().items() if name not in drawn}


def _with_output_norm(tower: Parts, own: Parts) -> Parts:
    like = tower.get("embeddings.class_embedding")
    if like is None:
        return tower
    width = like.shape[-1]
    fresh = {"weight": torch.ones(width, dtype=like.dtype), "bias": torch.zeros(width, dtype=like.dtype)}
    return tower | {f"post_layernorm.{name}": value for name, value in (fresh | own).items()}


def _model_config(text_config: Any, vision_config: Any, options: VLM4HOIConfig) -> HandVLMConfig:
    return HandVLMConfig(
        text_config=text_config, vision_config=vision_config, image_token_id=options.image_token_id,
        image_size=vision_config.image_size, image_seq_length=(vision_config.image_size // vision_config.patch_size) ** 2 // 4,
        vision_norm_eps=1e-5, vision_feature_layer=-1, vision_feature_select_strategy="default",
        token_reducer="merge-4", projector_type="linear", tie_word_embeddings=bool(getattr(text_config, "tie_word_embeddings", False)),
        pad_token_id=options.pad_token_id if options.pad_token_id is not None else getattr(text_config, "pad_token_id", None),
        bos_token_id=getattr(text_config, "bos_token_id", None), eos_token_id=getattr(text_config, "eos_token_id", None),
    )  # fmt: skip


def _in_hand_vlm(name: str, language_model: nn.Module) -> str:
    """The HandVLM name of something in a causal LM."""
    body = f"{language_model.base_model_prefix}."
    if name.startswith(body):
        return "model.language_model." + name.removeprefix(body)
    head = _name_of(language_model, language_model.get_output_embeddings())
    return "lm_head.weight" if name == head else name


def _name_of(model: nn.Module, module: nn.Module) -> str:
    return next(f"{name}.weight" for name, found in model.named_modules() if found is module)


def _check(model: HandVLM, state: Parts, given: _Given, strangers: list[str], skeleton: nn.Module, options: VLM4HOIConfig) -> None:
    """Refuses a checkpoint unless its tensors are exactly those of the model, LoRA in every block included."""
    wanted = {
        name: value for name, value in model.state_dict().items() if not (model.config.tie_word_embeddings and name == "lm_head.weight")
    }
    layers = {name: module for name, module in skeleton.named_modules() if name.rpartition(".")[2] in options.lora_targets}
    lora = {f"{name}.lora_{side}": value for name, pair in given.lora.items() for side, value in pair.items()}
    lora_wanted = {f"{name}.lora_{side}" for name in layers for side in "AB"}
    ranks = {value.shape[0] if name.endswith("A") else value.shape[1] for name, value in lora.items() if value.dim() == 2}
    shapes = {
        f"{name}.lora_{side}": (next(iter(ranks)), layer.weight.shape[1]) if side == "A" else (layer.weight.shape[0], next(iter(ranks)))
        for name, layer in layers.items() if ranks for side in "AB"
    }  # fmt: skip
    misshapen = [
        f"{n} is {tuple(v.shape)}, expected {tuple(wanted[n].shape)}"
        for n, v in state.items()
        if n in wanted and v.shape != wanted[n].shape
    ]
    misshapen += [f"{n} is {tuple(v.shape)}, expected {shapes[n]}" for n, v in lora.items() if n in shapes and tuple(v.shape) != shapes[n]]
    if options.lora_r is not None and ranks - {options.lora_r}:
        misshapen.append(f"LoRA ranks {sorted(ranks)}, expected lora_r = {options.lora_r}")
    refuse(
        {
            "missing": [*(wanted.keys() - state.keys()), *(lora_wanted - lora.keys())],
            "unexpected": [*(state.keys() - model.state_dict().keys()), *(lora.keys() - lora_wanted), *given.unexpected, *strangers],
            "mis-shaped": misshapen + ([f"LoRA ranks {sorted(ranks)} in one checkpoint"] if len(ranks) > 1 else []),
            "not finite": not_finite(state) + not_finite(lora),
        },
        "This is not a whole VLM4HOI / MiniGPT-v2 checkpoint for this language model and tower",
        "Give the checkpoint that was trained on them, or the parts that it was trained on.",
    )
