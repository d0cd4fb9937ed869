"""The parts of a HandVLM, what training does with each (train, freeze, LoRA, new rows only), and the optimiser's groups."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, nn

from vlm.settings import SettingsError

PARTS = ("vision_tower", "projector", "pose_projectors", "embeddings", "language_model", "lm_head", "heads")
LANGUAGE_MODEL = "model.language_model."


@dataclass
class PartSettings:
    """`mode`: "train" everything, "freeze" (also its batch statistics and dropout), "lora" (vision_tower and language_model), "new_rows"
    (embeddings and lm_head: only the rows of `tokens`, by default the slots HandVLM added). `lr`: None takes the run's."""

    mode: Literal["train", "freeze", "lora", "new_rows"] = "train"
    lr: float | None = None
    tokens: list[str] | None = None


@dataclass
class PartsSettings:
    """What to do with each part of the model; `heads` is everything that is not named here."""

    vision_tower: PartSettings = field(default_factory=PartSettings)
    projector: PartSettings = field(default_factory=PartSettings)
    pose_projectors: PartSettings = field(default_factory=PartSettings)
    embeddings: PartSettings = field(default_factory=PartSettings)
    language_model: PartSettings = field(default_factory=PartSettings)
    lm_head: PartSettings = field(default_factory=PartSettings)
    heads: PartSettings = field(default_factory=PartSettings)

    def __post_init__(self) -> None:
        for name in PARTS:
            part: PartSettings = getattr(self, name)
            if part.mode == "lora" and name not in ("vision_tower", "language_model"):
                raise ValueError(f"{name} cannot be 'lora'; LoRA is for vision_tower and language_model, train or freeze {name}")
            if part.mode == "new_rows" and name not in ("embeddings", "lm_head"):
                raise ValueError(f"{name} cannot be 'new_rows'; only embeddings and lm_head have a row per token")
            if part.tokens is not None and part.mode != "new_rows":
                raise ValueError(f"{name}: 'tokens' are for mode new_rows, the mode is {part.mode}")

    @property
    def uses_lora(self) -> bool:
        return any(getattr(self, name).mode == "lora" for name in PARTS)


@dataclass(frozen=True)
class PartRow:
    """One line of the freeze plan, printed and saved."""

    part: str
    mode: str
    parameters: int
    trainable: int
    dtype: str
    lr: float | None


def part_of(name: str, embedding_prefix: str) -> str:
    """The part that a parameter of HandVLM (or of a peft model around it) belongs to."""
    name = name.removeprefix("module.").removeprefix("base_model.model.")
    if name.startswith(embedding_prefix):
        return "embeddings"
    for prefix, part in (
        ("model.vision_tower.", "vision_tower"),
        ("model.multi_modal_projector.", "projector"),
        ("model.pose_projectors.", "pose_projectors"),
        (LANGUAGE_MODEL, "language_model"),
        ("lm_head.", "lm_head"),
    ):
        if name.startswith(prefix):
            return part
    return "heads"


def embedding_prefix(model: nn.Module) -> str:
    """The input embedding's name with a dot, such as "model.language_model.embed_tokens."."""
    embedding = model.get_input_embeddings()
    return next(name for name, module in model.named_modules() if module is embedding) + "."


def is_tied(model: nn.Module) -> bool:
    """Whether head and input embedding are one tensor."""
    return model.get_output_embeddings().weight is model.get_input_embeddings().weight


def token_rows(model: nn.Module, processor: Any, tokens: Sequence[str] | None) -> list[int]:
    """Ids of `tokens`; without them the picture's and the pose encoders' slots. Raises SettingsError for a token that is none."""
    if tokens is None:
        slots = {model.config.image_token_id, *model.config.pose_token_ids.values()}
        return sorted(slot for slot in slots if slot < model.config.text_config.vocab_size)
    ids = processor.tokenizer.convert_tokens_to_ids(list(tokens))
    unknown = [t for t, i in zip(tokens, ids, strict=True) if i is None or i == processor.tokenizer.unk_token_id]
    if unknown:
        raise SettingsError(f"parts: new_rows names {', '.join(map(repr, unknown))}, which the tokenizer does not have as one token")
    return sorted(set(ids))


def apply_parts(model: nn.Module, settings: PartsSettings, processor: Any) -> None:
    """Sets what trains, for runs without LoRA (see `vlm.adapters.add_lora` for those with)."""
    prefix = embedding_prefix(model)
    check_tied(model, settings)
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(getattr(settings, part_of(name, prefix)).mode != "freeze")
    weights = {"embeddings": model.get_input_embeddings().weight, "lm_head": model.get_output_embeddings().weight}
    for name, weight in weights.items():
        part: PartSettings = getattr(settings, name)
        if part.mode == "new_rows" and not (name == "lm_head" and is_tied(model)):
            weight.register_hook(_only_rows(token_rows(model, processor, part.tokens)))


def _only_rows(rows: list[int]) -> Callable[[Tensor], Tensor]:
    # A row whose gradient is always zero never moves under AdamW without weight decay.
    def hook(gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[rows] = gradient[rows]
        return kept

    return hook


def check_tied(model: nn.Module, settings: PartsSettings) -> None:
    """A tied head is the embedding: it cannot be treated in another way."""
    if is_tied(model) and dataclasses.replace(settings.lm_head, lr=None) != dataclasses.replace(settings.embeddings, lr=None):
        raise SettingsError(
            f"parts: this model's lm_head is tied to its embeddings, but embeddings are {settings.embeddings.mode} and lm_head is "
            f"{settings.lm_head.mode}; set both alike"
        )


def frozen_modules(model: nn.Module, settings: PartsSettings) -> list[nn.Module]:
    """The modules that must stay in eval mode: a frozen batch norm keeps its statistics, and a frozen part drops nothing out."""
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    modules = {
        "vision_tower": base.model.vision_tower,
        "projector": base.model.multi_modal_projector,
        "pose_projectors": base.model.pose_projectors,
        "language_model": base.model.language_model,
    }
    named = {id(module) for module in (*modules.values(), base.lm_head)}
    others = (module for parent in (base, base.model) for module in parent.children())
    heads = [module for module in others if id(module) not in named and module is not base.model]
    frozen = [module for name, module in modules.items() if getattr(settings, name).mode == "freeze"]
    return frozen + (heads if settings.heads.mode == "freeze" else [])


def optimizer_groups(model: nn.Module, settings: PartsSettings, prefix: str, lr: float, weight_decay: float) -> list[dict[str, Any]]:
    """One group per part and kind: weight decay for matrices, none for vectors and for new rows; `name` is the part."""
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            part = part_of(name, prefix)
            decays = len(_shape(parameter)) >= 2 and getattr(settings, part).mode != "new_rows"
            groups.setdefault((part, decays), []).append(parameter)
    if not groups:
        raise SettingsError("parts: everything is frozen, there is nothing to train")
    return [
        {
            "params": groups[part, decays],
            "name": part,
            "lr": lr if getattr(settings, part).lr is None else getattr(settings, part).lr,
            "weight_decay": weight_decay if decays else 0.0,
        }
        for part in PARTS
        for decays in (True, False)
        if (part, decays) in groups
    ]


def plan(model: nn.Module, settings: PartsSettings, prefix: str, lr: float, processor: Any) -> list[PartRow]:
    """The freeze plan as it really is in `model`, which `apply_parts` or `vlm.adapters.add_lora` has prepared."""
    total, trainable, dtypes = dict.fromkeys(PARTS, 0), dict.fromkeys(PARTS, 0), {part: set[str]() for part in PARTS}
    base = model.get_base_model() if hasattr(model, "get_base_model") else model
    for name, parameter in model.named_parameters():
        if ".original_module." in name:  # peft trains a copy and keeps the original beside it
            continue
        part = part_of(name, prefix)
        size = math.prod(_shape(parameter))
        total[part] += size
        dtypes[part].add(str(parameter.dtype).removeprefix("torch."))
        if parameter.requires_grad:
            chosen: PartSettings = getattr(settings, part)
            whole_table = chosen.mode == "new_rows" and "trainable_tokens" not in name  # then a hook keeps the other rows
            rows = len(token_rows(base, processor, chosen.tokens)) if whole_table else 0
            trainable[part] += rows * _shape(parameter)[-1] if whole_table else size
    rates = {part: lr if getattr(settings, part).lr is None else getattr(settings, part).lr for part in PARTS}
    return [
        PartRow(part, getattr(settings, part).mode, total[part], trainable[part], "+".join(sorted(dtypes[part])),
                rates[part] if trainable[part] else None)
        for part in PARTS if total[part]
    ]  # fmt: skip


def _shape(parameter: Tensor) -> tuple[int, ...]:
    """Of the whole parameter: what ZeRO-3 leaves in its place is an empty vector, which knows the shape."""
    return tuple(getattr(parameter, "ds_shape", parameter.shape))


def format_plan(rows: Sequence[PartRow]) -> str:
    """The freeze plan as a table."""
    lines = [f"{'part':<16}{'mode':<10}{'parameters':>14}{'trainable':>14}  {'dtype':<18}{'lr':>9}"]
    lines += [
        f"{r.part:<16}{r.mode:<10}{r.parameters:>14,}{r.trainable:>14,}  {r.dtype:<18}{'-' if r.lr is None else f'{r.lr:.3g}':>9}"
        for r in rows
    ]
    total, trainable = sum(r.parameters for r in rows), sum(r.trainable for r in rows)
    return "\n".join([*lines, f"{'all':<26}{total:>14,}{trainable:>14,}"])
