"""The detection net of Minimal-Hand, with which the SiMHand paper fine-tunes: heat maps, bone directions and locations on a 32 × 32 map."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from pose_tools.simhand.encoder import Encoder

CELLS = 32
DILATED = {"r50*": (2, 4, 6), "r152*": (3, 8, 36)}


class DetNet(nn.Module):
    """`forward(pictures (B, 3, 128, 128), value / 255 − 0.5)` → dict, joints in FreiHAND order:

    h_map (B, 21, 32, 32) in 0…1; d_map and l_map (B, 21, 3, 32, 32): unit bone directions and root-relative locations in lengths of
    the bone wrist – middle base; uv (B, 21, 2) int64 cell (row, column) of each heat map's maximum; delta, xyz (B, 21, 3) the maps there.

    Either an `encoder` (ResNet without its pool, then three deconvolutions) or `depths` of the net's own dilated ResNet.
    """

    def __init__(self, encoder: Encoder | None = None, depths: Sequence[int] | None = None):
        super().__init__()
        if (encoder is None) == (depths is None):
            raise ValueError("DetNet: give either an encoder or the depths of its own ResNet")
        if encoder is not None:
            self.encoder: nn.Module = encoder
            self.deconv: nn.Module | None = nn.Sequential(*(part for width in (encoder.width, 256, 256) for part in _deconvolution(width)))
        else:
            self.encoder, self.deconv = DilatedResNet(depths or ()), None
        self.hmap_0, self.dmap_0, self.lmap_0 = MapHead(258, 21), MapHead(279, 63), MapHead(342, 63)
        line = torch.linspace(-1, 1, CELLS)
        self.register_buffer("position", torch.stack([line.expand(CELLS, -1), line[:, None].expand(-1, CELLS)]), persistent=False)

    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, 128, 128) → (B, 256, 32, 32)."""
        return self.encoder(pixels) if self.deconv is None else self.deconv(self.encoder.maps(pixels))

    def forward(self, pixels: Tensor) -> dict[str, Tensor]:
        x = self.features(pixels)
        if x.shape[-2:] != (CELLS, CELLS):
            raise ValueError(f"DetNet: expected pictures of 128 x 128 px, got {tuple(pixels.shape)}")
        x = torch.cat([x, self.position.to(x.dtype).expand(len(x), -1, -1, -1)], dim=1)
        heat = self.hmap_0(x).sigmoid()
        x = torch.cat([x, heat], dim=1)
        delta = self.dmap_0(x)
        location = self.lmap_0(torch.cat([x, delta], dim=1))
        delta, location = (values.unflatten(1, (21, 3)) for values in (delta, location))
        cell = heat.flatten(2).argmax(-1)
        at = cell[:, :, None, None].expand(-1, -1, 3, 1)
        return {"h_map": heat, "d_map": delta, "l_map": location, "uv": torch.stack([cell // CELLS, cell % CELLS], dim=-1),
                "delta": delta.flatten(3).gather(3, at)[..., 0], "xyz": location.flatten(3).gather(3, at)[..., 0]}  # fmt: skip


class MapHead(nn.Module):
    """Features (B, inputs, 32, 32) → maps (B, outputs, 32, 32)."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.project = nn.Sequential(nn.Conv2d(inputs, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU())
        self.prediction = nn.Conv2d(256, outputs, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.prediction(self.project(x))


class DilatedResNet(nn.Module):
    """The net's own ResNet: (B, 3, 128, 128) → (B, 256, 32, 32). No max-pool after the stem; dilation instead of stride in the end."""

    def __init__(self, depths: Sequence[int]):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 64, 7, stride=2, padding=3, bias=False), nn.BatchNorm2d(64)
        self.block1 = _stage(64, 64, depths[0], 1)
        self.pool = nn.Sequential(Bottleneck(256, 64, 1, stride=2, shortcut=nn.MaxPool2d(2)))
        self.block2 = _stage(256, 128, depths[1], 2)
        self.block3 = _stage(512, 256, depths[2], 4)
        self.squeeze = nn.Sequential(nn.Conv2d(1024, 256, 3, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU())

    def forward(self, x: Tensor) -> Tensor:
        x = self.bn1(self.conv1(x)).relu()
        return self.squeeze(self.block3(self.block2(self.pool(self.block1(x)))))


class Bottleneck(nn.Module):
    """1 × 1, 3 × 3 (stride, dilation), 1 × 1 convolutions to 4 · `width` channels, added to the shortcut."""

    def __init__(self, inputs: int, width: int, dilation: int, stride: int = 1, shortcut: nn.Module | None = None):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv2 = nn.Conv2d(width, width, 3, stride=stride, padding=dilation, dilation=dilation, bias=False)
        self.bn2 = nn.BatchNorm2d(width)
        self.conv3, self.bn3 = nn.Conv2d(width, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width)
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn1(self.conv1(x)).relu()
        y = self.bn3(self.conv3(self.bn2(self.conv2(y)).relu()))
        return (y + (x if self.shortcut is None else self.shortcut(x))).relu()


def _stage(inputs: int, width: int, depth: int, dilation: int) -> nn.Sequential:
    shortcut = nn.Sequential(nn.Conv2d(inputs, 4 * width, 1, bias=False), nn.BatchNorm2d(4 * width))
    first = Bottleneck(inputs, width, dilation, shortcut=shortcut)
    return nn.Sequential(first, *(Bottleneck(4 * width, width, dilation) for _ in range(depth - 1)))


def _deconvolution(width: int) -> tuple[nn.Module, ...]:
    return nn.ConvTranspose2d(width, 256, 4, stride=2, padding=1, bias=False), nn.BatchNorm2d(256), nn.ReLU()


def dilated_depths(names: Iterable[str]) -> tuple[int, ...] | None:
    """Depths of the net's own ResNet by a checkpoint's names, those of the published net that is nearest; None where it has none."""
    found = [re.fullmatch(r"encoder\.block([123])\.(\d+)\..+", name) for name in names]
    blocks = [(int(match[1]), int(match[2]) + 1) for match in found if match]
    if not blocks:
        return None
    depths = tuple(max((count for stage, count in blocks if stage == number), default=0) for number in (1, 2, 3))
    # the published net that is nearest: what is missing is then listed by name
    return min(DILATED.values(), key=lambda known: sum(abs(a - b) for a, b in zip(known, depths, strict=True)))
