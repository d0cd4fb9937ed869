"""Hands as vectors: an encoder with the size of the crops it was trained on, and the crop of a hand in a picture."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np

from pose_tools.detect import check_image
from pose_tools.tool_protocol import BackendMissing
from pose_tools.types import Side
from pose_tools.user_error import UserError

if TYPE_CHECKING:
    from pose_tools.simhand.encoder import Encoder

DEFAULT_FOLDER = Path(__file__).resolve().parents[2] / "demos" / "assets" / "simhand_small"
WEIGHTS, CONFIG = "encoder.safetensors", "config.json"
VARIABLE = "HANDVLM_HAND_ENCODER"
PUBLISHED_SIZE = 128
"""Pixels that the published encoders were pre-trained on, taken where no config.json says otherwise."""
CHUNK = 256


class HandEmbeddingError(UserError):
    """An encoder's files, or a hand, that cannot be used; the message says which and why."""


@dataclass(frozen=True)
class HandEncoder:
    """`network` in eval mode; `image_size` pixels of its crops; `fingerprint` names the weights: vectors of two are not comparable."""

    network: Encoder
    image_size: int
    fingerprint: str

    @property
    def width(self) -> int:
        """Numbers of a vector."""
        return self.network.width

    def embed(self, crops: Sequence[np.ndarray]) -> np.ndarray:
        """Square crops of right hands, RGB uint8 (S, S, 3), as `hand_square` or hand shards give them → (N, width) float32 of length 1.

        Each crop's vector depends on nothing but that crop (to the rounding of a batch's sums).
        """
        import torch

        from pose_tools.simhand.probe import embed

        pixels = [self._planes(crop) for crop in crops]
        if not pixels:
            return np.empty((0, self.width), np.float32)
        with torch.inference_mode():
            features = embed(self.network, np.stack(pixels), CHUNK)
        return (features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)).astype(np.float32)

    def _planes(self, crop: np.ndarray) -> np.ndarray:
        crop = check_image(crop)
        if crop.shape[0] != crop.shape[1]:
            raise HandEmbeddingError(f"a hand's crop is {crop.shape[1]}x{crop.shape[0]} pixels; expected a square, as hand_square cuts it")
        size = (self.image_size, self.image_size)
        small = crop if crop.shape[:2] == size else cv2.resize(crop, size, interpolation=cv2.INTER_AREA)
        return np.ascontiguousarray(small.transpose(2, 0, 1))


def hand_square(picture: np.ndarray, bbox_xyxy: Any, side: Side, size: int = 224) -> np.ndarray:
    """The hand in a box (4,) xyxy pixels of an RGB uint8 picture as a right hand's crop, uint8 (size, size, 3), cut as for pre-training.

    Raises HandEmbeddingError for a box that is empty, not finite or outside the picture.
    """
    from pose_tools.simhand.views import hand_crop

    picture, box = check_image(picture), np.asarray(bbox_xyxy, float)
    width, height = picture.shape[1], picture.shape[0]
    if box.shape != (4,) or not np.isfinite(box).all() or box[2] <= box[0] or box[3] <= box[1]:
        raise HandEmbeddingError(f"a hand's box is {box.tolist()}; expected four finite numbers with x1 < x2 and y1 < y2")
    if box[0] >= width or box[1] >= height or box[2] <= 0 or box[3] <= 0:
        raise HandEmbeddingError(f"a hand's box {box.tolist()} lies outside the {width}x{height} picture; boxes are in its pixels")
    left, top, right, bottom = np.floor(box[0]), np.floor(box[1]), np.ceil(box[2]), np.ceil(box[3])
    if (right - left) % 2:  # the crop's rounding would favour a side: a mirrored picture's crop should be the same
        left, right = (left - 1, right) if side == "left" else (left, right + 1)
    return hand_crop(picture, (left, top, right, bottom), side=side, size=size)[0]


def load_hand_encoder(path: str | Path | None = None) -> HandEncoder:
    """The encoder of a folder (encoder.safetensors and config.json) or of one checkpoint of any published layout.

    None is $HANDVLM_HAND_ENCODER, or the small one that is shipped. Loaded once per file and shared: do not train it. Raises
    BackendMissing for what is not there, `CheckpointError` or HandEmbeddingError for what does not fit.
    """
    chosen = Path(path or os.environ.get(VARIABLE) or DEFAULT_FOLDER).resolve()
    weights = chosen / WEIGHTS if chosen.is_dir() else chosen
    if not weights.is_file():
        raise BackendMissing(f"the hand encoder's {weights} is missing: pre-train one with scripts/pretrain_simhand.py, or set {VARIABLE} "
                             "to a checkpoint or to a folder that holds one")  # fmt: skip
    return _read(weights, *_facts(weights), *_facts(weights.with_name(CONFIG)))


def encoder_version() -> str:
    """Names the encoder that `load_hand_encoder` takes by default, without loading it."""
    chosen = Path(os.environ.get(VARIABLE) or DEFAULT_FOLDER)
    weights = chosen / WEIGHTS if chosen.is_dir() else chosen
    return f"{weights} {_facts(weights)} {_facts(weights.with_name(CONFIG))}"


def write_config(folder: Path, image_size: int) -> None:
    """The config.json beside an encoder's weights."""
    from pose_tools.files import write_text

    write_text(folder / CONFIG, json.dumps({"image_size": image_size}) + "\n")


def _facts(file: Path) -> tuple[int, int]:
    facts = file.stat() if file.is_file() else None
    return (facts.st_size, facts.st_mtime_ns) if facts else (0, 0)


@lru_cache(maxsize=2)
def _read(weights: Path, *facts: int) -> HandEncoder:
    """`facts` only tell files that were written again from those that were loaded."""
    from pose_tools.simhand.encoder import load_encoder

    size, config = PUBLISHED_SIZE, weights.with_name(CONFIG)
    if config.is_file():
        try:
            size = int(json.loads(config.read_text(encoding="utf-8"))["image_size"])
        except (KeyError, TypeError, ValueError) as error:
            raise HandEmbeddingError(f'{config}: not a hand encoder\'s config ({error!r}); expected {{"image_size": pixels}}') from error
    if not 32 <= size <= 1024:
        raise HandEmbeddingError(f"{config}: image_size is {size}, expected 32 to 1024 pixels")
    digest = hashlib.sha256(weights.read_bytes())
    return HandEncoder(load_encoder(weights).requires_grad_(False), size, f"{digest.hexdigest()[:16]}-{size}")
