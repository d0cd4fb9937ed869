"""Tiny fine-tuning runs on a few synthetic scenes; a second or so each."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

from data.synthetic.factors import COLOURS, NAMES
from data.synthetic.scenes import Settings, make_scenes
from pose_tools.small_detector import SmallDetector, SmallDetectorConfig
from tests.tiny import tiny
from vlm.settings import from_mapping
from vlm.training_settings import FinetuneSettings


def make_world(folder: Path, count: int = 12) -> Path:
    """A folder of synthetic scenes."""
    list(make_scenes(folder, Settings("train", seed=7), count))
    return folder


def make_detector(folder: Path) -> Path:
    """A small detector with random weights that finds something in most pictures."""
    torch.manual_seed(0)
    config = SmallDetectorConfig(
        NAMES, COLOURS, image_size=64, embedding_size=8, hidden_sizes=(8, 8, 8), depths=(1, 1, 1), calibration=((1.0, 1.0),) * 4
    )
    SmallDetector(config).save(folder)
    return folder


def make_base(folder: Path, kind: str = "small", **changes: Any) -> Path:
    """A HandVLM folder to start from."""
    model, processor = tiny(kind, **changes)
    model.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


def settings(output: Path, base: Path, world: Path, data: dict[str, Any] | None = None, **changes: Any) -> FinetuneSettings:
    """Four steps of two pictures with the optimiser's epsilon large enough that rounding stays rounding."""
    values: dict[str, Any] = {
        "output": str(output),
        "model": str(base),
        "data": {"datasets": [{"kind": "synthetic_referral", "path": str(world), "questions": 3}], **(data or {})},
        "steps": 4,
        "batch_size": 2,
        "log_every": 1,
        "save_every": 2,
        "tensorboard": False,
        "tokenizer_rows": 10,
        "optimizer": {"lr": 1e-2, "epsilon": 1e-3, "warmup_steps": 1, **changes.pop("optimizer", {})},
        **changes,
    }
    return from_mapping(FinetuneSettings, values)


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """The saved tensors of a model folder."""
    return load_file(folder / "model.safetensors")


def losses(folder: Path) -> list[float]:
    """The loss of every step in a run's log."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [entry["loss"] for entry in entries if "loss" in entry]


def assert_close(one: Path, two: Path, atol: float) -> None:
    """Equal names, and tensors equal up to `atol`."""
    first, second = weights(one), weights(two)
    assert first.keys() == second.keys()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=atol, rtol=0, msg=lambda text, name=name: f"{name}: {text}")
