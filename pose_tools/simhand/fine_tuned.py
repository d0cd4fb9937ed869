"""The networks that a pre-trained encoder is fine-tuned into, with what they need beside their weights: saved, loaded, asked.

    network = load_fine_tuned(folder)                   # of scripts/finetune_simhand.py, or a published checkpoint file
    network.estimate([HandInPicture(image, box, side, intrinsics), ...])       # (N, 21, 3) metres
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.mano.crops import MIRROR, hand_view, warp
from pose_tools.mano.estimate import HandInPicture
from pose_tools.simhand.checkpoint import CheckpointError, read_state_dict
from pose_tools.simhand.detnet import CELLS, DetNet
from pose_tools.simhand.detnet_training import IMAGE_SIZE
from pose_tools.simhand.encoder import Encoder, load_25d, load_detnet
from pose_tools.simhand.evaluate import peclr_joints
from pose_tools.simhand.hand_targets import crop_intrinsics, in_plane
from pose_tools.simhand.probe import pixels_to_input
from pose_tools.simhand.regression_25d import Regression25D
from pose_tools.views import View

Kind = Literal["regression_25d", "detnet"]
CONFIG, WEIGHTS = "config.json", "model.safetensors"
BONES: dict[Kind, tuple[int, int]] = {"regression_25d": (9, 10), "detnet": (0, 9)}
"""Reference bone of each network, FreiHAND order: everything it says is in lengths of it."""
MIN_DEPTH = 0.05
"""Metres; nearer no wrist is put, whatever the network says."""


@dataclass(frozen=True)
class NetworkSettings:
    """`kind`: PeCLR's 2.5-D net ("regression_25d") or Minimal-Hand's detection net ("detnet"; its pictures have 128 pixels).

    `crop_scale`: side of the crop in longer sides of the joints' box; the published nets have 1 / 0.7 and 2.0. `pixels`: "imagenet"
    (mean and deviation, as in pre-training) or "half" (value / 255 − 0.5, the published detection net's).
    """

    kind: Kind = "regression_25d"
    image_size: int = 224
    crop_scale: float = 1.43
    pixels: Literal["imagenet", "half"] = "imagenet"

    def __post_init__(self) -> None:
        for name, value, expected in (("kind", self.kind, tuple(BONES)), ("pixels", self.pixels, ("imagenet", "half"))):
            if value not in expected:
                raise ValueError(f"network.{name} is {value!r}: expected {' or '.join(expected)}")
        if self.kind == "detnet" and self.image_size != IMAGE_SIZE:
            raise ValueError(f"network.image_size is {self.image_size}: the detection net's pictures have {IMAGE_SIZE} pixels")

    def build(self, encoder: Encoder) -> Regression25D | DetNet:
        """A fresh network around an encoder."""
        if self.kind == "detnet":
            return DetNet(encoder=encoder)
        model = Regression25D(encoder)
        with torch.no_grad():  # from the middle of the picture, not from its corner
            model.fc.bias.view(-1)[:63].view(21, 3)[:, :2] = self.image_size / 2
            model.fc.bias[2:63:3] = 0
        return model


@dataclass(frozen=True)
class FineTuned:
    """A network in eval mode. `bone_length`: metres that its reference bone is taken to have, where nobody knows the hand's size."""

    model: nn.Module
    settings: NetworkSettings
    bone_length: float

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` and `config.json`, for `load_fine_tuned`."""
        from pose_tools.files import write_text
        from pose_tools.training import save_weights

        Path(folder).mkdir(parents=True, exist_ok=True)
        save_weights(self.model, Path(folder) / WEIGHTS)
        said = asdict(self.settings)
        config = {"network": said.pop("kind"), **said, "bone_length": self.bone_length}
        write_text(Path(folder) / CONFIG, json.dumps(config, indent=1) + "\n")

    @torch.inference_mode()
    def estimate(self, hands: Sequence[HandInPicture]) -> np.ndarray:
        """Joints (N, 21, 3) metres, FreiHAND order, camera frame of each hand's picture, as large as `bone_length` makes them.

        Left hands are looked at in a mirror. CropError for a box that is none.
        """
        if not hands:
            return np.zeros((0, 21, 3))
        size, scale = self.settings.image_size, self.settings.crop_scale
        views = [hand_view(hand.bbox_xyxy, size, scale=scale, mirror=hand.side == "left") for hand in hands]
        crops = np.stack([warp(view, hand.image).transpose(2, 0, 1) for view, hand in zip(views, hands, strict=True)])
        intrinsics = np.stack([crop_intrinsics(v, h.intrinsics, h.side == "left") for v, h in zip(views, hands, strict=True)])
        pixels = network_input(torch.from_numpy(crops), self.settings.pixels)
        pixels = pixels.to(next(self.model.parameters()).device)
        if self.settings.kind == "regression_25d":
            joints = peclr_joints(self.model(pixels, torch.from_numpy(intrinsics).float().to(pixels.device))["kp3d"])
            flips = [MIRROR if hand.side == "left" else np.ones(3) for hand in hands]
            return joints.double().cpu().numpy() * self.bone_length * np.stack(flips)[:, None]
        output = {name: value.double().cpu().numpy() for name, value in self.model(pixels).items() if name in ("uv", "xyz")}
        parts = zip(output["xyz"], output["uv"], views, hands, strict=True)
        return np.stack([self._placed(*part) for part in parts])

    def _placed(self, xyz: np.ndarray, uv: np.ndarray, view: View, hand: HandInPicture) -> np.ndarray:
        """The detection net's answer where its key points were seen."""
        relative = (xyz - xyz[:1]) * self.bone_length @ in_plane(view)  # the inverse of an orthogonal matrix is its transpose
        seen = view.to_original((uv[:, ::-1] + 0.5) * IMAGE_SIZE / CELLS)
        rays = np.concatenate([seen, np.ones((21, 1))], 1) @ np.linalg.inv(hand.intrinsics).T
        return relative + translation(relative, rays)


def translation(points: np.ndarray, rays: np.ndarray) -> np.ndarray:
    """(3,) t that brings points (J, 3) nearest to their rays (J, 3), z = 1: least squares of x + t_x − r_x (z + t_z), likewise in y.

    A hand that this would put behind the camera, or in it, is put on the first point's ray at `MIN_DEPTH` instead.
    """
    system = np.zeros((2, len(points), 3))
    system[0, :, 0] = system[1, :, 1] = 1
    system[:, :, 2] = -rays[:, :2].T
    wanted = (rays[:, :2] * points[:, 2:] - points[:, :2]).T
    t = np.linalg.lstsq(system.reshape(-1, 3), wanted.reshape(-1), rcond=None)[0]
    return t if np.isfinite(t).all() and t[2] + points[0, 2] >= MIN_DEPTH else rays[0] * MIN_DEPTH - points[0]


def network_input(pixels: Tensor, how: str) -> Tensor:
    """uint8 (B, 3, H, W) → float32, "imagenet" or "half" (see `NetworkSettings`)."""
    return pixels.float() / 255 - 0.5 if how == "half" else pixels_to_input(pixels)


PUBLISHED = {
    "regression_25d": NetworkSettings("regression_25d", image_size=224, crop_scale=1 / 0.7),
    "detnet": NetworkSettings("detnet", image_size=IMAGE_SIZE, crop_scale=2.0, pixels="half"),
}
_LOADERS: dict[str, Callable[..., nn.Module]] = {"regression_25d": load_25d, "detnet": load_detnet}


def is_fine_tuned(path: str | Path) -> bool:
    """Whether this is a folder that `FineTuned.save` wrote, or a file (a published checkpoint)."""
    path = Path(path)
    if path.is_dir():
        try:
            return "network" in json.loads((path / CONFIG).read_text())
        except (OSError, ValueError):
            return False
    return path.is_file()


def load_fine_tuned(path: str | Path) -> FineTuned:
    """A folder that `FineTuned.save` wrote, or a published checkpoint of either network (told by its tensors' names; its hands are as large
    as the stand-in). CheckpointError for what is neither; it names the file and what is missing in it."""
    path = Path(path)
    if path.is_dir():
        settings, bone_length = _read_config(path / CONFIG)
        return FineTuned(_LOADERS[settings.kind](path / WEIGHTS), settings, bone_length)
    tensors = read_state_dict(path)
    kind = "detnet" if any(".hmap_0." in f".{name}" for name in tensors) else "regression_25d"
    return FineTuned(_LOADERS[kind](tensors), PUBLISHED[kind], stand_in_bone(PUBLISHED[kind].kind))


def _read_config(path: Path) -> tuple[NetworkSettings, float]:
    try:
        said = json.loads(path.read_text())
        kind, bone_length = said.pop("network"), float(said.pop("bone_length"))
        return NetworkSettings(kind, **said), bone_length
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing: expected a folder that scripts/finetune_simhand.py published") from None
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{path}: not the config of a fine-tuned hand network ({error!r})") from error


def stand_in_bone(kind: Kind) -> float:
    """Metres of the network's reference bone of the stand-in hand at rest."""
    from pose_tools.body_models import load_mano

    zero = torch.zeros(1, 3)
    joints = load_mano()(zero, torch.zeros(1, 45), torch.zeros(1, 10), zero).joints[0]
    first, second = BONES[kind]
    return float((joints[first] - joints[second]).norm())
