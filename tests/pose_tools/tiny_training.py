"""A tiny task for test_training.py; also run under torchrun: `tiny_training.py OUTPUT key=value ...`."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import torch
from torch import nn

from pose_tools.process_group import end_process_group
from pose_tools.training import TrainingSettings, train


class TinyTask:
    """Regression and a masked count: samples have 0 to 3 valid targets, so means over micro-batches would be wrong."""

    weights = {"fit": 1.0, "size": 0.1}

    def __init__(self, length: int = 22):
        generator = torch.Generator().manual_seed(1)
        self.inputs = torch.randn(length, 4, generator=generator)
        self.targets = self.inputs @ torch.randn(4, 3, generator=generator)
        self.valid = torch.randint(0, 2, (length, 3), generator=generator).float()

    def __len__(self) -> int:
        return len(self.inputs)

    def sample(self, index: int, epoch: int) -> dict[str, torch.Tensor]:
        noise = torch.randn(4, generator=torch.Generator().manual_seed(1000 * epoch + index))
        return {"inputs": self.inputs[index] + 0.01 * noise, "targets": self.targets[index], "valid": self.valid[index]}

    def collate(self, samples: list[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
        return {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]}

    def counts(self, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        return {"fit": batch["valid"].sum(), "size": torch.tensor(float(len(batch["inputs"])))}

    def losses(self, model: nn.Module, batch: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        output = model(batch["inputs"]).float()
        return {"fit": ((output - batch["targets"]).square() * batch["valid"]).sum(), "size": output.square().sum()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        return {"goodness": -float((model(self.inputs) - self.targets).square().mean())}


def network(dropout: float = 0.0) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 16), nn.GELU(), nn.Dropout(dropout), nn.Linear(16, 3))


def settings(output: Path | str, **changes) -> TrainingSettings:
    base = {"max_steps": 12, "batch_size": 8, "micro_batch_size": 8, "learning_rate": 1e-2, "warmup_steps": 2, "log_every": 3,
            "evaluate_every": 4, "save_every": 5, "best_metric": "goodness"}  # fmt: skip
    return TrainingSettings(output=str(output), **(base | changes))


if __name__ == "__main__":
    changes = {key: json.loads(value) for key, value in (word.split("=") for word in sys.argv[2:])}
    train(network(), TinyTask(), settings(sys.argv[1], **changes))
    end_process_group()
