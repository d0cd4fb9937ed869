"""What a fine-tuning run is told: the fields of its YAML file."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from vlm.adapters import LoraSettings, is_adapter
from vlm.build import BuildSettings
from vlm.config import HandVLMConfig
from vlm.extend import ExtendSettings
from vlm.parts import PartsSettings
from vlm.training_data import DataSettings


@dataclass
class OptimizerSettings:
    """AdamW. `lr` holds for every part that names none of its own; weight decay is for matrices only. After `warmup_steps` the rate
    falls along `schedule` to `final_factor` of its height at the last step."""

    lr: float = 1e-4
    schedule: Literal["linear", "cosine", "constant"] = "cosine"
    warmup_steps: int = 50
    final_factor: float = 0.0
    betas: tuple[float, float] = (0.9, 0.98)
    epsilon: float = 1e-8
    weight_decay: float = 0.05
    clip: float = 1.0
    """Largest norm of the gradient; 0 does not clip."""


@dataclass
class FinetuneSettings:
    """One run. `model` is a HandVLM folder to start from, `extend` what it is given beside what it has, or `build` says what to make a
    new one of."""

    output: str
    data: DataSettings
    model: str | None = None
    build: BuildSettings | None = None
    extend: ExtendSettings | None = None
    parts: PartsSettings = field(default_factory=PartsSettings)
    lora: LoraSettings = field(default_factory=LoraSettings)
    optimizer: OptimizerSettings = field(default_factory=OptimizerSettings)
    steps: int | None = None
    epochs: float | None = None
    """Passes over the pictures of all data sets together; either this or `steps`."""
    batch_size: int = 8
    """Rows (pictures) of one process in one forward pass; the optimiser's batch is batch_size × accumulate × processes."""
    accumulate: int = 1
    seed: int = 0
    tokenizer_rows: int = 2000
    """Rows whose texts a built model's tokenizer is trained on."""
    dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Of the weights when loaded."""
    autocast: Literal["none", "bfloat16", "float16"] = "none"
    attention: str | None = None
    """Of the language model, such as flash_attention_2; None is transformers' choice (sdpa)."""
    gradient_checkpointing: bool = False
    workers: int = 0
    log_every: int = 10
    save_every: int = 500
    keep: int = 2
    """So many newest checkpoints stay."""
    max_minutes: float | None = None
    """Stop with a checkpoint after this time; --resume goes on."""
    validation: DataSettings | None = None
    validation_rows: int = 64
    validate_every: int = 500
    tensorboard: bool = True
    deepspeed: str | dict[str, Any] | None = None
    """A DeepSpeed json file (see scripts/configs/zero2.json) or its contents."""
    device: Literal["auto", "cpu"] = "auto"

    def __post_init__(self) -> None:
        if (self.model is None) == (self.build is None):
            raise ValueError("give either 'model' (a HandVLM folder to start from) or 'build' (what to make a new one of)")
        if self.extend is not None and self.model is None:
            raise ValueError("'extend' adds to a 'model'; a new one gets clip, trajectory and pose_encoders in 'build'")
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give either 'steps' or 'epochs'")
        for name in ("steps", "epochs", "batch_size", "accumulate", "log_every", "save_every", "keep", "validate_every"):
            value = getattr(self, name)
            if value is not None and value <= 0:
                raise ValueError(f"{name} is {value}, expected a positive number")
        if isinstance(self.deepspeed, str) and not Path(self.deepspeed).is_file():
            raise ValueError(f"deepspeed: {self.deepspeed}: no such file")
        if self.workers < 0:
            raise ValueError(f"workers is {self.workers}, expected 0 or more")
        if self.model is not None:
            _check_model(Path(self.model))


def _check_model(folder: Path) -> None:
    """Raises ValueError for what is not a HandVLM's folder. Another program's would be read as a HandVLM of default size, 7 billion random
    parameters."""
    if not folder.is_dir():
        raise ValueError(f"model: {folder}: no such folder; expected one that save_pretrained, finetune.py or convert.py wrote")
    file = folder / "config.json"
    if is_adapter(folder) or not file.is_file():
        return
    try:
        kind = json.loads(file.read_text(encoding="utf-8"))["model_type"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"model: {file}: no whole config ({error}); expected what finetune.py or convert.py wrote") from None
    if kind != HandVLMConfig.model_type:
        remedy = "scripts/convert.py makes one of a published checkpoint"
        raise ValueError(f"model: {folder}: holds a {kind!r}, expected {HandVLMConfig.model_type!r}; {remedy}")


# What may change when a run is resumed: how long, how often it speaks and saves, and how its batch is cut up.
RESUMABLE = {"output", "steps", "epochs", "batch_size", "accumulate", "workers", "log_every", "save_every", "keep", "max_minutes"}
RESUMABLE |= {"validation", "validation_rows", "validate_every", "tensorboard", "device", "gradient_checkpointing", "attention"}
