"""Weights that are a function of their names, and a ResNet written out by torchvision's names."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional

FOLDER = Path(__file__).parents[2] / "fixtures"
_spec = importlib.util.spec_from_file_location("fill", FOLDER / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


@functools.cache
def _lightning() -> dict[str, Tensor]:
    return fill.state_dict(json.loads((FOLDER / "simhand/manifest_lightning_rn50.json").read_text()))


def lightning() -> dict[str, Tensor]:
    """The published pre-training checkpoint's tensors (ResNet-50)."""
    return dict(_lightning())


def regression() -> dict[str, Tensor]:
    """PeCLR's fine-tuned 2.5-D net's tensors (ResNet-50)."""
    return fill.state_dict(json.loads((FOLDER / "simhand/manifest_rn25d_rn50.json").read_text()))


def torchvision(state: dict[str, Tensor] | None = None) -> dict[str, Tensor]:
    """The encoder of `lightning()` by torchvision's names, with its fc of 1000 classes."""
    names = {"0": "conv1", "1": "bn1"} | {str(i): f"layer{i - 3}" for i in range(4, 8)}
    found = {}
    for name, value in (state or lightning()).items():
        if name.startswith("encoder.features."):
            number, rest = name.removeprefix("encoder.features.").split(".", 1)
            found[f"{names[number]}.{rest}"] = value
    return found | {"fc.weight": fill.value("fc.weight", (1000, 2048)), "fc.bias": fill.value("fc.bias", (1000,))}


def detnet(own: bool) -> dict[str, Tensor]:
    """The detection net's tensors: on `encoder.features.*`, or on its own dilated ResNet-50."""
    shapes: dict[str, tuple[int, ...]] = {}

    def norm(name: str, width: int) -> None:
        shapes.update({f"{name}.{part}": (width,) for part in ("weight", "bias", "running_mean", "running_var")})
        shapes[f"{name}.num_batches_tracked"] = ()

    def bottleneck(name: str, inputs: int, width: int, shortcut: bool) -> None:
        for number, shape in enumerate(((width, inputs, 1, 1), (width, width, 3, 3), (4 * width, width, 1, 1)), 1):
            shapes[f"{name}.conv{number}.weight"] = shape
            norm(f"{name}.bn{number}", shape[0])
        if shortcut:
            shapes[f"{name}.shortcut.0.weight"] = (4 * width, inputs, 1, 1)
            norm(f"{name}.shortcut.1", 4 * width)

    if own:
        shapes["encoder.conv1.weight"] = (64, 3, 7, 7)
        norm("encoder.bn1", 64)
        bottleneck("encoder.pool.0", 256, 64, False)
        for stage, (inputs, width, depth) in enumerate(((64, 64, 2), (256, 128, 4), (512, 256, 6)), 1):
            for block in range(depth):
                bottleneck(f"encoder.block{stage}.{block}", inputs if block == 0 else 4 * width, width, block == 0)
        shapes["encoder.squeeze.0.weight"] = (256, 1024, 3, 3)
        norm("encoder.squeeze.1", 256)
    else:
        shapes.update({name: tuple(v.shape) for name, v in lightning().items() if name.startswith("encoder.features.")})
        for number, inputs in ((0, 2048), (3, 256), (6, 256)):
            shapes[f"deconv.{number}.weight"] = (inputs, 256, 4, 4)
            norm(f"deconv.{number + 1}", 256)
    for name, inputs, outputs in (("hmap_0", 258, 21), ("dmap_0", 279, 63), ("lmap_0", 342, 63)):
        shapes[f"{name}.project.0.weight"] = (256, inputs, 3, 3)
        norm(f"{name}.project.1", 256)
        shapes |= {f"{name}.prediction.weight": (outputs, 256, 1, 1), f"{name}.prediction.bias": (outputs,)}
    return {name: fill.value(name, shape, "int64" if name.endswith("tracked") else "float32") for name, shape in shapes.items()}


def plain_resnet(x: Tensor, w: dict[str, Tensor]) -> Tensor:
    """torchvision's ResNet-50 without its fc, by the names of its tensors: (B, 3, H, W) → (B, 2048, h, w)."""

    def norm(x: Tensor, name: str) -> Tensor:
        return functional.batch_norm(x, w[f"{name}.running_mean"], w[f"{name}.running_var"], w[f"{name}.weight"], w[f"{name}.bias"])

    x = functional.max_pool2d(norm(functional.conv2d(x, w["conv1.weight"], stride=2, padding=3), "bn1").relu(), 3, 2, 1)
    for stage, depth in enumerate((3, 4, 6, 3), 1):
        for block in range(depth):
            name, stride = f"layer{stage}.{block}", 2 if stage > 1 and block == 0 else 1
            y = norm(functional.conv2d(x, w[f"{name}.conv1.weight"]), f"{name}.bn1").relu()
            y = norm(functional.conv2d(y, w[f"{name}.conv2.weight"], stride=stride, padding=1), f"{name}.bn2").relu()
            y = norm(functional.conv2d(y, w[f"{name}.conv3.weight"]), f"{name}.bn3")
            if block == 0:
                x = norm(functional.conv2d(x, w[f"{name}.downsample.0.weight"], stride=stride), f"{name}.downsample.1")
            x = (x + y).relu()
    return x


def pixels(seed: int, *shape: int) -> Tensor:
    """Standard normal numbers."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
