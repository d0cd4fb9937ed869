"""The regressors: a backbone of transformers, one of three trunks, and the read-outs all of them share.

    "mlp"          mean of the features, two linear layers                             (ResNet + MLP)
    "transformer"  features as tokens with a learnt position code, encoder layers      (ResNet + transformer, after HandFormer)
    "query"        one learnt query that looks at the tokens through decoder layers    (ViT + one query, after HaMeR)

Whatever the trunk, the same is read out: 16 rotations as 6D (Zhou et al., CVPR 2019), 10 shape numbers and a camera, each added to
a mean hand; and 21 key points by soft-argmax over the feature grid. The key points and what the features hold there are given to
the read-outs too: where the joints are in the crop says most about how they are bent.
"""

from __future__ import annotations

import inspect
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from pose_tools.body_models import Mano
from pose_tools.geometry import axis_angle_to_matrix, matrix_to_rotation_6d, rotation_6d_to_matrix
from pose_tools.mano.prediction import HandPrediction
from pose_tools.model_folder import write_folder
from pose_tools.user_error import UserError

JOINTS = 21
_SCALE = 5.0
"""Crop widths per metre of a hand that fills its crop: what `camera` starts from."""
_FINE = 4
"""Each feature cell has this many heat-map cells along a side."""
_HIDDEN = 8
"""Numbers that are read from the features at each key point."""


class RegressorError(UserError):
    """A regressor's settings or folder cannot be used; the message names the file or the setting and the remedy."""


@dataclass(frozen=True)
class RegressorConfig:
    """`config.json` of a regressor's folder.

    `backbone`: a name or path for transformers (pretrained), or a mapping with `model_type` (fresh). `image_size`: side of the
    crop in pixels. Pixels / 255 are normalised with `mean` and `std`. `width`: of the trunk; `layers`, `heads`: of its
    transformer. `crop_scale`: side of the crop in hand boxes.
    `doubt`: hidden width of the layers that `pose_tools.mano.calibration` fits after the training; 0 is none.
    """

    backbone: str | dict[str, Any]
    trunk: Literal["mlp", "transformer", "query"] = "mlp"
    image_size: int = 224
    mean: tuple[float, float, float] = (0.485, 0.456, 0.406)
    std: tuple[float, float, float] = (0.229, 0.224, 0.225)
    width: int = 512
    layers: int = 4
    heads: int = 8
    dropout: float = 0.1
    crop_scale: float = 1.3
    doubt: int = 0

    def __post_init__(self) -> None:
        for name in ("mean", "std"):  # json has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        if self.trunk not in ("mlp", "transformer", "query"):
            raise RegressorError(f"trunk is {self.trunk!r}: expected mlp, transformer or query")
        if self.trunk != "mlp" and self.width % self.heads:
            raise RegressorError(f"width {self.width} must be a multiple of heads {self.heads}")
        if self.image_size < 32 or not self.crop_scale > 0:
            raise RegressorError(f"image_size {self.image_size} and crop_scale {self.crop_scale}: expected at least 32 and more than 0")


class Features(nn.Module):
    """A vision model of transformers as (B, 3, S, S) → feature map (B, channels, h, w)."""

    def __init__(self, config: RegressorConfig, pretrained: bool = True) -> None:
        super().__init__()
        from transformers import AutoConfig, AutoModel

        if isinstance(config.backbone, str):
            settings = AutoConfig.from_pretrained(config.backbone)
            self.model = AutoModel.from_pretrained(config.backbone) if pretrained else AutoModel.from_config(settings)
        else:
            options = dict(config.backbone)
            if "model_type" not in options:
                raise RegressorError(f"backbone {options}: expected a name, or a mapping with model_type such as resnet or vit")
            settings = AutoConfig.for_model(options.pop("model_type"), **options)
            self.model = AutoModel.from_config(settings)
        if list(getattr(self.model, "pooler", nn.Identity()).parameters()):
            self.model.pooler = None  # unused, and distributed training refuses parameters without a gradient
        self.patch = getattr(settings, "patch_size", None)
        self.any_size = "interpolate_pos_encoding" in inspect.signature(self.model.forward).parameters
        size = config.image_size
        with torch.no_grad():
            shape = self.eval()(torch.zeros(1, 3, size, size)).shape
        self.train()
        self.channels, self.grid = shape[1], (shape[2], shape[3])

    def forward(self, pixels: Tensor) -> Tensor:
        extra = {"interpolate_pos_encoding": True} if self.any_size else {}
        features = self.model(pixels, **extra).last_hidden_state
        if features.dim() == 4:
            return features
        # a transformer's tokens: class and register tokens come first
        rows, columns = (side // self.patch for side in pixels.shape[-2:])
        return features[:, -rows * columns :].transpose(1, 2).unflatten(2, (rows, columns))


class KeyPoints(nn.Module):
    """Soft-argmax over a finer grid than the features': map (B, C, h, w) → points (B, 21, 2) crop units, their log scale (B, 21), and
    what the features hold there (B, 21, 8)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.heat = nn.Conv2d(channels, JOINTS * _FINE * _FINE, 1)
        self.read = nn.Conv2d(channels, _HIDDEN + JOINTS, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        heat = nn.functional.pixel_shuffle(self.heat(features), _FINE).float()
        weights = heat.flatten(2).softmax(-1).unflatten(2, heat.shape[2:])
        rows, columns = (torch.arange(n, device=heat.device) + 0.5 for n in heat.shape[2:])
        x = (weights.sum(2) * (columns / len(columns) - 0.5)).sum(-1)
        y = (weights.sum(3) * (rows / len(rows) - 0.5)).sum(-1)
        coarse = nn.functional.avg_pool2d(weights, _FINE, divisor_override=1).flatten(2)
        read = torch.einsum("bjn,bcn->bjc", coarse, self.read(features).float().flatten(2))
        own = read[:, :, _HIDDEN:].diagonal(dim1=1, dim2=2)
        return torch.stack([x, y], -1), own - 3.0, read[:, :, :_HIDDEN]


class Trunk(nn.Module):
    """Feature map (B, C, h, w) → one vector (B, width)."""

    def __init__(self, config: RegressorConfig, channels: int, grid: tuple[int, int]) -> None:
        super().__init__()
        self.kind, width = config.trunk, config.width
        if self.kind == "mlp":
            self.layers: nn.Module = nn.Sequential(nn.Linear(channels, width), nn.GELU(), nn.Dropout(config.dropout))
            return
        self.bring = nn.Linear(channels, width)
        self.position = nn.Parameter(0.02 * torch.randn(1, width, *grid))
        options = {"dim_feedforward": 4 * width, "dropout": config.dropout, "activation": "gelu", "batch_first": True, "norm_first": True}
        if self.kind == "transformer":
            layer = nn.TransformerEncoderLayer(width, config.heads, **options)
            self.layers = nn.TransformerEncoder(layer, config.layers, nn.LayerNorm(width), enable_nested_tensor=False)
        else:
            self.query = nn.Parameter(0.02 * torch.randn(1, 1, width))
            decoder = nn.TransformerDecoderLayer(width, config.heads, **options)
            self.layers = nn.TransformerDecoder(decoder, config.layers, nn.LayerNorm(width))

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "mlp":
            return self.layers(features.mean((2, 3)))
        position = self.position
        if position.shape[2:] != features.shape[2:]:  # another picture size than the one it was built for
            position = nn.functional.interpolate(position, features.shape[2:], mode="bicubic", align_corners=False)
        tokens = self.bring(features.flatten(2).transpose(1, 2)) + position.flatten(2).transpose(1, 2)
        if self.kind == "transformer":
            return self.layers(tokens).mean(1)
        return self.layers(self.query.expand(len(tokens), -1, -1), tokens)[:, 0]


class HandRegressor(nn.Module):
    """Crops (B, 3, S, S) float, 0..255 → `HandPrediction`. `mano` is a right hand; its arrays are not part of the weights."""

    def __init__(self, config: RegressorConfig, mano: Mano, *, pretrained: bool = True) -> None:
        super().__init__()
        if mano.side != "right":
            raise RegressorError("the regressor predicts right hands (left ones are mirrored): give it load_mano(side='right')")
        self.config, self.mano = config, mano
        self.features = Features(config, pretrained)
        self.key_points = KeyPoints(self.features.channels)
        self.trunk = Trunk(config, self.features.channels, self.features.grid)
        width = config.width + JOINTS * (2 + _HIDDEN)
        self.mix = nn.Sequential(nn.Linear(width, config.width), nn.GELU(), nn.Dropout(config.dropout))
        sizes = {"pose": 16 * 6, "betas": 10, "camera": 3, "log_scale_3d": JOINTS}
        self.read_outs = nn.ModuleDict({name: nn.Linear(config.width, size) for name, size in sizes.items()})
        for layer in self.read_outs.values():  # starts at the mean hand
            nn.init.xavier_uniform_(layer.weight, gain=0.01)
            nn.init.zeros_(layer.bias)
        self.doubt: nn.Sequential | None = None
        if config.doubt:  # says nothing until `pose_tools.mano.calibration` has fitted it; not trained with the rest
            layers = nn.Linear(config.width, config.doubt), nn.GELU(), nn.Dropout(0.3), nn.Linear(config.doubt, 1)
            nn.init.zeros_(layers[-1].weight)
            nn.init.zeros_(layers[-1].bias)
            self.doubt = nn.Sequential(*layers).requires_grad_(False)
        mean = torch.cat([torch.zeros(1, 3), mano.hands_mean.detach().float().reshape(15, 3).cpu()])
        self.register_buffer("mean_pose", matrix_to_rotation_6d(axis_angle_to_matrix(mean)).reshape(1, 16, 6))
        self.register_buffer("pixel_mean", torch.tensor(config.mean).reshape(1, 3, 1, 1) * 255, persistent=False)
        self.register_buffer("pixel_std", torch.tensor(config.std).reshape(1, 3, 1, 1) * 255, persistent=False)

    def forward(self, pixels: Tensor) -> HandPrediction:
        if pixels.dim() != 4 or pixels.shape[1] != 3 or 0 in pixels.shape:
            raise RegressorError(f"pixels have shape {tuple(pixels.shape)}: expected crops (B, 3, S, S), RGB 0..255")
        features = self.features((pixels - self.pixel_mean) / self.pixel_std)
        joints_2d, log_scale_2d, read = self.key_points(features)
        vector = self.mix(torch.cat([self.trunk(features).float(), joints_2d.flatten(1) * 4, read.flatten(1)], 1))
        out = {name: layer(vector).float() for name, layer in self.read_outs.items()}
        with torch.autocast(pixels.device.type, enabled=False):  # geometry in float32 whatever the network runs in
            rotations = rotation_6d_to_matrix(out["pose"].unflatten(1, (16, 6)) + self.mean_pose)
            scale = _SCALE * out["camera"][:, :1].clamp(-3, 3).exp()
            hand = self.mano(rotations[:, 0], rotations[:, 1:], out["betas"], pose_format="rotation_matrix")
            wrist = hand.joints[:, :1]
            # the scale of the error starts at e⁻⁴ m, about 2 cm
            log_scale = out["log_scale_3d"] if self.doubt is None else out["log_scale_3d"] + self.doubt(vector.float())
            return HandPrediction(
                rotations, out["betas"], torch.cat([scale, out["camera"][:, 1:]], 1), hand.joints - wrist, hand.vertices - wrist,
                joints_2d, log_scale_2d.clamp(-8, 2), (log_scale - 4.0).clamp(-9, 0),
            )  # fmt: skip

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` (matrices as float16) and `config.json`, each written atomically; no array of the hand model."""
        # a pretrained backbone is written as a mapping, so that the folder opens without its name's weights
        architecture = self.features.model.config
        backbone = self.config.backbone
        if isinstance(backbone, str):
            backbone = architecture.to_diff_dict() | {"model_type": architecture.model_type}
        write_folder(folder, self, asdict(self.config) | {"backbone": backbone})
