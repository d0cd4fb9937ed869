"""The networks of SiMHand and PeCLR, and loading them from any published layout by key names."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import ResNetConfig, ResNetModel

from pose_tools.simhand.checkpoint import CheckpointError, Source, check_fit, read_state_dict, split_encoder, transformers_name
from pose_tools.simhand.detnet import DetNet, dilated_depths
from pose_tools.simhand.regression_25d import Regression25D

__all__ = [
    "CheckpointError",
    "ContrastiveModel",
    "Encoder",
    "EncoderSettings",
    "load_25d",
    "load_contrastive",
    "load_detnet",
    "load_encoder",
    "published_state_dict",
]

DEPTHS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}


class Encoder(nn.Module):
    """transformers' ResNet: normalised pictures (B, 3, H, W) → average-pooled features (B, width)."""

    def __init__(self, depths: Sequence[int] = DEPTHS["resnet50"], hidden_sizes: Sequence[int] = (256, 512, 1024, 2048),
                 embedding_size: int = 64, layer_type: str = "bottleneck"):  # fmt: skip
        super().__init__()
        config = ResNetConfig(embedding_size=embedding_size, hidden_sizes=list(hidden_sizes), depths=list(depths), layer_type=layer_type,
                              downsample_in_bottleneck=False)  # fmt: skip
        self.backbone = ResNetModel(config)
        self.width = int(hidden_sizes[-1])

    def maps(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) → the last stage's maps (B, width, H / 32, W / 32) for four stages."""
        return self.backbone(pixels).last_hidden_state

    def forward(self, pixels: Tensor) -> Tensor:
        return self.maps(pixels).mean((2, 3))


@dataclass(frozen=True)
class EncoderSettings:
    """A ResNet by its sizes; `start`: a checkpoint of any published layout to begin from (its sizes hold then)."""

    depths: tuple[int, ...] = DEPTHS["resnet50"]
    hidden_sizes: tuple[int, ...] = (256, 512, 1024, 2048)
    embedding_size: int = 64
    layer_type: str = "bottleneck"
    start: str | None = None

    def build(self) -> Encoder:
        """A fresh encoder, or that of `start`; CheckpointError where that is none."""
        if self.start is not None:
            return load_encoder(self.start)
        return Encoder(self.depths, self.hidden_sizes, self.embedding_size, self.layer_type)


class ContrastiveModel(nn.Module):
    """Encoder and projection head: (B, 3, H, W) → (embedding (B, width), projection (B, output))."""

    def __init__(self, encoder: Encoder, hidden: int = 512, output: int = 128):
        super().__init__()
        self.encoder = encoder
        self.projection_head = nn.Sequential(
            nn.Linear(encoder.width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, output, bias=False)
        )

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        embedding = self.encoder(pixels)
        return embedding, self.projection_head(embedding)


def load_encoder(source: Source) -> Encoder:
    """The encoder of a checkpoint (path or state dict) of any layout, in eval mode: pictures (B, 3, H, W) → (B, 2048) for a ResNet-50/152.

    Pictures are RGB, normalised with ImageNet's mean and deviation. Depths and widths are read off the tensors; projection heads
    and final layers are left aside. Raises CheckpointError with the lists of what is missing, unexpected or misshapen.
    """
    return _encoder(split_encoder(read_state_dict(source))[0])


def load_contrastive(source: Source) -> ContrastiveModel:
    """Encoder and projection head of a pre-training checkpoint, in eval mode: (B, 3, H, W) → (embedding (B, 2048), projection (B, 128))."""
    found, others = split_encoder(read_state_dict(source))
    head = {name: value for name, value in others.items() if name.startswith("projection_head.")}
    wrong = [name for name in others if name not in head and not name.startswith(("encoder.final_layer.", "fc."))]
    if not head or wrong:
        what = f"it has {', '.join(wrong[:8])}" if wrong else "it has no projection_head.*"
        raise CheckpointError(f"not a pre-training checkpoint of encoder and projection head: {what}")
    shapes = [head[name].shape if name in head else (512, 2048) for name in ("projection_head.0.weight", "projection_head.3.weight")]
    model = ContrastiveModel(_encoder(found), hidden=shapes[0][0], output=shapes[1][0])
    expected = {name: value for name, value in model.state_dict().items() if name.startswith("projection_head.")}
    model.load_state_dict(check_fit(head, expected, "a projection head"), strict=False)
    return model.eval()


def load_25d(source: Source) -> Regression25D:
    """PeCLR's fine-tuned 2.5-D net (see `regression_25d`), in eval mode."""
    found, others = split_encoder(read_state_dict(source))
    names = {"backend_model.fc.": "fc.", "fc.": "fc.", "zroot_ref.zroot_ref.": "root_refinement.", "root_refinement.": "root_refinement."}
    rest = {}
    for name, value in others.items():
        prefix = next((p for p in names if name.startswith(p)), "")
        rest[names.get(prefix, "") + name[len(prefix) :]] = value
    model = Regression25D(_encoder(found))
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    model.load_state_dict(check_fit(rest, expected, "the 2.5-D regression net"), strict=False)
    return model.eval()


def load_detnet(source: Source) -> DetNet:
    """The published fine-tuning's detection net (see `detnet`) on a ResNet or on its own dilated one, in eval mode."""
    tensors = read_state_dict(source)
    if depths := dilated_depths(tensors):
        model = DetNet(depths=depths)
        model.load_state_dict(check_fit(tensors, model.state_dict(), "the detection net with its own ResNet"))
        return model.eval()
    found, others = split_encoder(tensors)
    model = DetNet(encoder=_encoder(found))
    others = {name: value for name, value in others.items() if "final_layer." not in name}
    expected = {name: value for name, value in model.state_dict().items() if not name.startswith("encoder.")}
    model.load_state_dict(check_fit(others, expected, "the detection net"), strict=False)
    return model.eval()


def _encoder(tensors: Mapping[str, Tensor]) -> Encoder:
    """An encoder of the tensors' own size, by torchvision's names."""
    stages = sorted({int(name[5]) for name in tensors if name.startswith("layer")})
    blocks = {stage: {int(name.split(".")[1]) for name in tensors if name.startswith(f"layer{stage}.")} for stage in stages}
    depths = tuple(max(numbers) + 1 for numbers in blocks.values())
    bottleneck = "layer1.0.conv3.weight" in tensors
    last = [tensors.get(f"layer{stage}.0.conv{3 if bottleneck else 2}.weight") for stage in stages]
    stem = tensors.get("conv1.weight")
    if stem is None or not stages or stages != list(range(1, len(stages) + 1)) or any(weight is None for weight in last):
        raise CheckpointError(f"not a whole ResNet: the encoder's tensors are {', '.join(list(tensors)[:8])} …")
    if len(stem) == 64 and depths not in DEPTHS.values():
        raise CheckpointError(f"a ResNet of width 64 with {depths} blocks is none of {', '.join(DEPTHS)}: tensors are missing")
    with torch.device("meta"):
        model = Encoder(depths, [len(weight) for weight in last if weight is not None], len(stem), "bottleneck" if bottleneck else "basic")
    found = {f"backbone.{transformers_name(name)}": value for name, value in tensors.items()}
    expected = {name: value if value.dim() else torch.zeros((), dtype=value.dtype) for name, value in model.state_dict().items()}
    model.load_state_dict({k: v.clone() for k, v in check_fit(found, expected, "a ResNet encoder").items()}, assign=True)
    return model.float().requires_grad_().eval()


def published_state_dict(encoder: Encoder) -> dict[str, Tensor]:
    """The encoder's tensors by torchvision's names (without its `fc`), as the released weights have them."""
    from pose_tools.simhand.checkpoint import torchvision_name

    return {torchvision_name(name) or name: value.clone() for name, value in encoder.backbone.state_dict().items()}
