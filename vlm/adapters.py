"""LoRA runs through peft: what is adapted, what is saved beside it, and how such a folder becomes a HandVLM again.

An adapter folder is peft's own format: the LoRA matrices, full copies of the parts that train whole (projector, pose projectors,
heads) and the trained vocabulary rows, with the base model's folder named in `adapter_config.json`; the processor lies beside it.
"""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from pose_tools.files import write_text
from pose_tools.user_error import UserError
from vlm.parts import LANGUAGE_MODEL, PartsSettings, check_tied, embedding_prefix, is_tied, token_rows
from vlm.settings import SettingsError

ADAPTER_FILE = "adapter_config.json"
WEIGHTS_FILE = "adapter_model.safetensors"


class AdapterError(UserError):
    """An adapter does not fit its base; the message lists the tensors."""


@dataclass
class LoraSettings:
    """Low-rank updates of the parts in mode "lora". `targets`: last names of linear layers (q_proj, v_proj, …); empty takes all."""

    rank: int = 16
    alpha: float = 32.0
    dropout: float = 0.0
    targets: list[str] = field(default_factory=list)


def add_lora(model: nn.Module, parts: PartsSettings, lora: LoraSettings, processor: Any, *, base: str | Path, zero3: bool = False) -> Any:
    """Wraps a HandVLM as a peft model in which `parts` train as they say; `base` is the folder of the untouched model."""
    from peft import LoraConfig, get_peft_model

    if parts.language_model.mode == "train":
        raise SettingsError("parts: with LoRA on another part the language_model is 'lora' or 'freeze', not 'train'")
    check_tied(model, parts)
    tied = is_tied(model)
    config = LoraConfig(
        base_model_name_or_path=str(base),
        r=lora.rank,
        lora_alpha=lora.alpha,
        lora_dropout=lora.dropout,
        target_modules=_targets(model, parts, lora),
        modules_to_save=_whole_modules(model, parts, tied) or None,
        trainable_token_indices=_token_indices(model, parts, processor, tied) or None,
        ensure_weight_tying=tied and parts.embeddings.mode == "train",
    )
    # ZeRO-3 refuses fp32 adapters beside bf16 modules in one buffer
    return get_peft_model(model, config, autocast_adapter_dtype=not zero3)


def _targets(model: nn.Module, parts: PartsSettings, lora: LoraSettings) -> str:
    """A pattern that the full names of the layers to adapt match, and nothing else."""
    prefixes = {"language_model": LANGUAGE_MODEL, "vision_tower": "model.vision_tower."}
    chosen = tuple(prefix for part, prefix in prefixes.items() if getattr(parts, part).mode == "lora")
    leaves = {name.rsplit(".", 1)[1] for name, m in model.named_modules() if name.startswith(chosen) and isinstance(m, nn.Linear)}
    unknown = sorted(set(lora.targets) - leaves)
    if unknown:
        raise SettingsError(f"lora.targets names {', '.join(unknown)}; the linear layers there are {', '.join(sorted(leaves))}")
    patterns = [prefix.replace(".", r"\.") for prefix in chosen]
    return rf"({'|'.join(patterns)})(.*\.)?({'|'.join(sorted(set(lora.targets) or leaves))})"


def _whole_modules(model: nn.Module, parts: PartsSettings, tied: bool) -> list[str]:
    """Full names of the modules that train whole and are saved whole."""
    named = ["vision_tower", "multi_modal_projector", "pose_projectors", "language_model"]
    names = []
    if parts.vision_tower.mode == "train":
        names.append("model.vision_tower")
    if parts.projector.mode == "train":
        names.append("model.multi_modal_projector")
    if parts.pose_projectors.mode == "train":  # one by one: peft does not wrap a ModuleDict
        names += [f"model.pose_projectors.{name}" for name in model.model.pose_projectors]
    if parts.embeddings.mode == "train":
        names.append(embedding_prefix(model).rstrip("."))
    if parts.lm_head.mode == "train" and not tied:
        names.append("lm_head")
    if parts.heads.mode == "train":
        names += [f"model.{name}" for name, _ in model.model.named_children() if name not in named]
        names += [name for name, _ in model.named_children() if name not in ("model", "lm_head")]
    return names


def _token_indices(model: nn.Module, parts: PartsSettings, processor: Any, tied: bool) -> dict[str, list[int]]:
    indices = {}
    if parts.embeddings.mode == "new_rows":
        indices[embedding_prefix(model).rstrip(".").rsplit(".", 1)[1]] = token_rows(model, processor, parts.embeddings.tokens)
    if parts.lm_head.mode == "new_rows" and not tied:
        indices["lm_head"] = token_rows(model, processor, parts.lm_head.tokens)
    return indices


def is_adapter(folder: str | Path) -> bool:
    """Whether `folder` holds an adapter rather than a whole model."""
    return (Path(folder) / ADAPTER_FILE).is_file()


def base_of(folder: str | Path) -> Path:
    """The base model's folder of an adapter folder; a relative one is looked for beside the adapter. Raises SettingsError."""
    text = json.loads((Path(folder) / ADAPTER_FILE).read_text(encoding="utf-8"))["base_model_name_or_path"]
    base = Path(folder) / text
    if not (base / "config.json").is_file():
        raise SettingsError(f"{folder}: the adapter's base model {text} is not there; put that folder back, or correct {ADAPTER_FILE}")
    return base


def move_base(folder: Path, origin: Path, target: Path) -> None:
    """Rewrites the base named in `folder`, whose files come from `origin` and go to `target`.

    A base inside the run's folder is named relative to the adapter, so that the whole run can move; another one keeps its full path.
    """
    file = folder / ADAPTER_FILE
    description = json.loads(file.read_text(encoding="utf-8"))
    base = Path(os.path.normpath(origin / description["base_model_name_or_path"]))
    run = target.parent if target.name.startswith("checkpoint-") else target
    description["base_model_name_or_path"] = os.path.relpath(base, target) if base.is_relative_to(run) else str(base)
    write_text(file, json.dumps(description, indent=2))


def load_adapter(cls: Any, folder: str | Path, *, merge: bool | None = None, **kwargs: Any) -> Any:
    """The HandVLM of an adapter folder.

    `merge` adds the updates into the weights, which gives a plain model that can be saved, exported and is as fast as its base;
    without it the low-rank layers stay in place (the default on a quantised base, whose weights cannot hold the sum). `kwargs` go to
    the base's `from_pretrained`. Raises SettingsError for a missing base, AdapterError for tensors that are missing or left over.
    """
    from peft import PeftModel, get_peft_model_state_dict
    from safetensors import safe_open

    base = cls.from_pretrained(base_of(folder), **kwargs)
    wrapped = PeftModel.from_pretrained(base, str(folder))
    with safe_open(Path(folder) / WEIGHTS_FILE, "pt") as file:
        given = set(file.keys())
    wanted = set(get_peft_model_state_dict(wrapped))
    if wanted != given:  # peft itself only warns, and leaves random numbers in their place
        raise AdapterError(
            f"{folder}: the adapter does not fit its base; missing {sorted(wanted - given)[:5]}, unexpected {sorted(given - wanted)[:5]}. "
            "Copy the folder again"
        )
    if merge is None:
        merge = getattr(base, "hf_quantizer", None) is None
    return (wrapped.merge_and_unload() if merge else wrapped.get_base_model()).eval()
