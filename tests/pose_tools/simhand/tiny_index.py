"""A tiny encoder with random weights, and an index of noise pictures by it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from pose_tools.simhand.encoder import Encoder, published_state_dict
from pose_tools.simhand.hand_embedding import WEIGHTS, HandEncoder, load_hand_encoder, write_config
from pose_tools.simhand.hand_index import HandIndex, evened_directions
from scripts.build_hand_index import encode_thumbnail


def tiny_encoder(folder: Path, seed: int = 0) -> HandEncoder:
    """A folder as `pretrain_simhand.py --publish` leaves it, 32-pixel crops, and the encoder read from it."""
    folder.mkdir(parents=True, exist_ok=True)
    torch.manual_seed(seed)
    save_file(published_state_dict(Encoder((1, 1), (8, 16), 8, "basic")), folder / WEIGHTS)
    write_config(folder, 32)
    return load_hand_encoder(folder)


def crops(count: int, seed: int = 0, size: int = 40) -> list[np.ndarray]:
    """Smooth noise, uint8 (size, size, 3)."""
    coarse = np.random.default_rng(seed).integers(0, 256, (count, 5, 5, 3), dtype=np.uint8)
    return list(coarse.repeat(size // 5, axis=1).repeat(size // 5, axis=2))


def tiny_index(encoder: HandEncoder, count: int = 6, pictures: list[np.ndarray] | None = None) -> HandIndex:
    """Joints of every third hand are unknown."""
    pictures = crops(count) if pictures is None else pictures
    joints = np.random.default_rng(1).normal(size=(len(pictures), 21, 3)).astype(np.float16).astype(np.float32)
    joints[::3] = np.nan
    names = tuple(f"v{number // 2}-{number}" for number in range(len(pictures)))
    jpegs = tuple(encode_thumbnail(picture, 40, 90) for picture in pictures)
    vectors, videos = encoder.embed(pictures), tuple(name[:2] for name in names)
    index = HandIndex(vectors, *evened_directions(vectors), joints, jpegs, names, videos, encoder.fingerprint, "noise", "none")
    return replace(index, vectors=index.project(vectors))
