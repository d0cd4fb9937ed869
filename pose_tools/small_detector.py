"""Our own small detector: both hands, what they hold, and every object, in one pass over a 192-pixel picture.

A ResNet of basic blocks turns the picture into 12 × 12 tokens of stride 16; every answer is *linear* in a token (1 × 1 heads). So the
tokens hold, ready to be read off, what a language model that is given the same tower needs: which part of the cell is hand, held or
other object, where the edges of the box around it are, its colour and its name, and whether the hand touches something.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from pose_tools.detect import HandDetection, check_image
from pose_tools.model_folder import Files, files_of, read_config, read_weights, write_folder
from pose_tools.types import SIDES
from pose_tools.user_error import UserError
from pose_tools.views import View, letterbox

LABELS = ("background", "left hand", "right hand", "object held by left", "object held by right", "other object")
"""Classes of the label map, which has 4 × 4 labels in a cell."""
INSTANCES = ("left hand", "right hand", "object held by left", "object held by right")
"""What a picture holds at most once; hands first, left before right."""
PATCH = 4
STRIDE = 16
FILL = 127
"""Grey of a letterbox's borders: 0 after normalisation."""
DEFAULT_FOLDER = Path(__file__).resolve().parents[1] / "demos" / "assets" / "hand_detector"


class SmallDetectorError(UserError):
    """A detector folder whose files are incomplete or not ours."""


@dataclass(frozen=True)
class SmallDetectorConfig:
    """What is needed to build the network and to read its answers; `config.json` of a detector's folder.

    `calibration`: per instance (slope, offset) on the log-odds of its presence, fitted on held-out pictures.
    `object_threshold`: least probability at which a hand is said to hold something.
    """

    names: tuple[str, ...]
    colours: tuple[str, ...]
    image_size: int = 192
    embedding_size: int = 32
    hidden_sizes: tuple[int, ...] = (32, 64, 128)
    depths: tuple[int, ...] = (2, 2, 3)
    calibration: tuple[tuple[float, float], ...] = field(default=((1.0, 0.0),) * len(INSTANCES))
    object_threshold: float = 0.5

    def __post_init__(self) -> None:
        for name in ("names", "colours", "hidden_sizes", "depths"):  # json has lists only
            object.__setattr__(self, name, tuple(getattr(self, name)))
        object.__setattr__(self, "calibration", tuple(tuple(pair) for pair in self.calibration))
        if self.image_size % STRIDE or len(self.hidden_sizes) != 3 or len(self.depths) != 3:
            raise SmallDetectorError(f"image_size {self.image_size} must be a multiple of {STRIDE}, with 3 hidden_sizes and 3 depths")

    @property
    def cells(self) -> int:
        """Cells along a side."""
        return self.image_size // STRIDE

    def backbone(self) -> dict:
        """Arguments of `transformers.ResNetConfig`."""
        sizes = {"embedding_size": self.embedding_size, "hidden_sizes": list(self.hidden_sizes), "depths": list(self.depths)}
        return sizes | {"num_channels": 3, "layer_type": "basic", "hidden_act": "relu", "downsample_in_first_stage": False}

    def heads(self) -> dict[str, int]:
        """Channels of each linear head. Boxes are left, top, right, bottom distances from the cell's centre in thirds of the picture."""
        single = {"label_map": len(LABELS) * PATCH * PATCH, "instance_cell": len(INSTANCES), "instance_box": 4 * len(INSTANCES)}
        objects = {"object_score": 1, "object_box": 4, "colour": len(self.colours), "name": len(self.names)}
        return single | objects | {"contact": 2, "holding": 2}


class SmallDetector(nn.Module):
    """`backbone` (a `transformers.ResNetModel`) and `heads`, one 1 × 1 convolution each."""

    def __init__(self, config: SmallDetectorConfig):
        super().__init__()
        from transformers import ResNetConfig, ResNetModel

        self.config = config
        self.backbone = ResNetModel(ResNetConfig(**config.backbone()))
        self.heads = nn.ModuleDict({name: nn.Conv2d(config.hidden_sizes[-1], channels, 1) for name, channels in config.heads().items()})
        # presence starts rare: 144 cells compete with one "none" of log-odds 0
        nn.init.constant_(self.heads["instance_cell"].bias, -5.0)
        nn.init.constant_(self.heads["object_score"].bias, -3.0)

    def forward(self, pixel_values: Tensor) -> dict[str, Tensor]:
        """pixel_values (B, 3, S, S), x / 127.5 − 1 → maps (B, channels, S/16, S/16) float32, one per head of the config."""
        features = self.backbone(pixel_values).last_hidden_state
        return {name: head(features).float() for name, head in self.heads.items()}

    def preprocess(self, image: np.ndarray) -> tuple[Tensor, View]:
        """RGB uint8 (H, W, 3) of any size → ((3, S, S) float32, the letterbox view)."""
        image = check_image(image)
        view = letterbox((image.shape[1], image.shape[0]), self.config.image_size)
        return normalise(torch.from_numpy(view.warp(image, fill=FILL)).permute(2, 0, 1)), view

    @torch.inference_mode()
    def detect_batch(self, images: Sequence[np.ndarray], least: float = 0.01) -> list[list[HandDetection]]:
        """The hands of each picture (RGB uint8, any sizes): at most one per side, left first, with a calibrated score ≥ `least`."""
        if not images:
            return []
        pixels, views = zip(*(self.preprocess(image) for image in images), strict=True)
        sizes = [(image.shape[1], image.shape[0]) for image in images]
        weight = self.heads["contact"].weight
        maps = self(torch.stack(pixels).to(weight.device, weight.dtype))
        boxes, scores = instances(maps, self.config)
        decoded = zip(boxes.cpu().double().numpy(), scores.tolist(), views, sizes, strict=True)
        return [self._hands(*parts, least) for parts in decoded]

    def detect(self, image: np.ndarray, least: float = 0.01) -> list[HandDetection]:
        """As `detect_batch`, for one picture."""
        return self.detect_batch([image], least)[0]

    def _hands(self, boxes: np.ndarray, scores: list[float], view: View, edges: tuple[int, int], least: float) -> list[HandDetection]:
        boxes = np.clip(view.box_to_original(boxes), 0, np.tile(edges, 2))
        hands = []
        for i, side in enumerate(SIDES):
            if scores[i] >= least:
                thing, score = tuple(boxes[2 + i].tolist()), scores[2 + i]
                if score < self.config.object_threshold:
                    thing = score = None
                hands.append(HandDetection(tuple(boxes[i].tolist()), side, scores[i], object_bbox=thing, object_score=score))
        return hands

    def save(self, folder: str | Path) -> None:
        """`model.safetensors` (matrices as float16) and `config.json`, each written atomically."""
        write_folder(folder, self, asdict(self.config))


def normalise(pixels: Tensor) -> Tensor:
    """uint8 0…255 → float32 −1…1."""
    return pixels.float() / 127.5 - 1.0


def cell_centres(cells: int, device: torch.device | None = None) -> Tensor:
    """(cells², 2) x and y of the cells' centres in grid pixels, raster order."""
    centres = (torch.arange(cells, dtype=torch.float32, device=device) + 0.5) * STRIDE
    y, x = torch.meshgrid(centres, centres, indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2)


def cell_boxes(distances: Tensor) -> Tensor:
    """Box heads (B, 4·n, h, w) → boxes (B, n, h·w, 4), xyxy grid pixels."""
    batch, channels, cells, _ = distances.shape
    distances = distances.reshape(batch, channels // 4, 4, cells * cells).transpose(2, 3) * (cells * STRIDE / 3)
    centres = cell_centres(cells, distances.device)
    return torch.cat([centres - distances[..., :2], centres + distances[..., 2:]], -1)


def label_logits(label_map: Tensor) -> Tensor:
    """The label-map head (B, 6·16, h, w) → (B, 6, 4h, 4w)."""
    return F.pixel_shuffle(label_map, PATCH)


def presence_logits(instance_cell: Tensor) -> Tensor:
    """(B, 4, h, w) → (B, 4) log-odds: "somewhere" against "nowhere", where the cells and one "nowhere" of logit 0 share a softmax."""
    return instance_cell.flatten(2).logsumexp(-1)


def instances(maps: dict[str, Tensor], config: SmallDetectorConfig) -> tuple[Tensor, Tensor]:
    """Boxes (B, 4, 4), xyxy grid pixels, and calibrated probabilities (B, 4) of `INSTANCES`."""
    boxes = average_box(maps["instance_cell"].flatten(2), cell_boxes(maps["instance_box"]))
    calibration = torch.tensor(config.calibration, device=boxes.device)
    return boxes, torch.sigmoid(presence_logits(maps["instance_cell"]) * calibration[:, 0] + calibration[:, 1])


def average_box(logits: Tensor, boxes: Tensor, reach: int = 2) -> Tensor:
    """Mean of the cells' boxes (…, cells², 4), weighted by the softmax of (…, cells²) over the best cell and those up to `reach` away."""
    cells = round(logits.shape[-1] ** 0.5)
    place = torch.arange(cells * cells, device=logits.device)
    best = logits.argmax(-1, keepdim=True)
    far = ((place // cells - best // cells).abs() > reach) | ((place % cells - best % cells).abs() > reach)
    weights = logits.masked_fill(far, float("-inf")).softmax(-1)
    return (weights.unsqueeze(-1) * boxes).sum(-2)


def named_object(maps: dict[str, Tensor], name: Tensor, colour: Tensor) -> tuple[Tensor, Tensor]:
    """The object of that name and colour (indices, (B,)): boxes (B, 4), xyxy grid pixels, and scores (B,) in 0…1."""
    rows = torch.arange(len(name), device=name.device)
    logits = F.logsigmoid(maps["object_score"]).flatten(1)
    for head, wanted in (("name", name), ("colour", colour)):
        logits = logits + maps[head].log_softmax(1)[rows, wanted].flatten(1)
    return average_box(logits, cell_boxes(maps["object_box"])[:, 0], reach=1), logits.amax(-1).exp()


@lru_cache(maxsize=4)
def _load(files: Files, version: tuple[tuple[int, int], ...]) -> SmallDetector:
    """`version` only tells files that were written again from those that were loaded."""
    config = read_config(files[0], SmallDetectorConfig, "small detector", SmallDetectorError)
    return read_weights(files[1], SmallDetector(config), SmallDetectorError)


def load_small_detector(path: str | Path | None = None) -> SmallDetector:
    """The detector of a folder with `model.safetensors` and `config.json`, in eval mode on the CPU; None is the one this project ships.

    Loaded once, until the files change, and shared: do not train it. Raises BackendMissing for a missing file, SmallDetectorError
    for one that does not fit; both name it.
    """
    folder = Path(path).resolve() if path is not None else DEFAULT_FOLDER
    return _load(*files_of(folder, "small detector", "train_detector.py"))
