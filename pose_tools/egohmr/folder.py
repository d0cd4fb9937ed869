"""A trained pair of stages as one folder: what `scripts/train_egohmr.py --publish` writes and the `recover_body` tool opens.

stage1.safetensors, stage2.safetensors    tensors by the published names, half precision, without the body's arrays
preprocess_stats.npz                      Xmean, Xstd (144,): the 6D statistics of stage 2's training poses
egohmr.json                               side of the person's crop (pixels), number of scene points
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from pose_tools.body_models import Smpl
from pose_tools.egohmr.checkpoint import load_stage1, load_stage2, published_state_dict
from pose_tools.egohmr.stage1 import Stage1
from pose_tools.egohmr.stage2 import Stage2
from pose_tools.files import atomic_path, write_text
from pose_tools.simhand.checkpoint import CheckpointError, read_state_dict

STATISTICS = "preprocess_stats.npz"
SETTINGS = "egohmr.json"


@dataclass(frozen=True)
class InputSizes:
    """What the networks were trained on: `side` pixels of the person's square crop, `points` of the scene."""

    side: int = 224
    points: int = 20000


@dataclass(frozen=True)
class EgoHMR:
    """Both stages in eval mode, and the sizes of their inputs."""

    stage1: Stage1
    stage2: Stage2
    sizes: InputSizes


def weights_name(stage: Stage1 | Stage2) -> str:
    return f"stage{1 if isinstance(stage, Stage1) else 2}.safetensors"


def save_stage(folder: str | Path, stage: Stage1 | Stage2, sizes: InputSizes) -> Path:
    """Writes a stage into the folder, atomically; stage 2's statistics beside it. Returns the file of weights.

    Raises CheckpointError when the folder's other stage takes other sizes.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    if (folder / SETTINGS).is_file() and read_sizes(folder) != sizes:
        raise CheckpointError(f"{folder} holds a stage for {read_sizes(folder)}, this one takes {sizes}: both stages need the same sizes")
    path = folder / weights_name(stage)
    tensors = {name: value.half() if value.is_floating_point() else value for name, value in published_state_dict(stage).items()}
    with atomic_path(path) as temporary:
        save_file({name: value.cpu().contiguous() for name, value in tensors.items()}, temporary)
    if isinstance(stage, Stage2):
        write_statistics(folder / STATISTICS, stage.mean, stage.std)
    write_text(folder / SETTINGS, json.dumps(asdict(sizes), indent=1) + "\n")
    return path


def load_folder(folder: str | Path, smpl: Smpl | Mapping[str, Smpl]) -> EgoHMR:
    """Both stages of a folder in float32. Raises CheckpointError for what is missing or of another model."""
    return EgoHMR(open_stage1(folder, smpl), open_stage2(folder, smpl), read_sizes(folder))


def open_stage1(folder: str | Path, smpl: Smpl | Mapping[str, Smpl]) -> Stage1:
    """The folder's stage 1 alone."""
    return load_stage1(_single(Path(folder) / "stage1.safetensors"), smpl)


def open_stage2(folder: str | Path, smpl: Smpl | Mapping[str, Smpl]) -> Stage2:
    """The folder's stage 2 alone."""
    mean, std = read_statistics(Path(folder) / STATISTICS)
    return load_stage2(_single(Path(folder) / "stage2.safetensors"), smpl, mean, std)


def read_sizes(folder: str | Path) -> InputSizes:
    path = Path(folder) / SETTINGS
    try:
        return InputSizes(**{name: int(value) for name, value in json.loads(path.read_text()).items()})
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: expected {{\"side\": …, \"points\": …}} ({error})") from error


def write_statistics(path: str | Path, mean: Tensor, std: Tensor) -> None:
    """`preprocess_stats.npz` as published: Xmean, Xstd (144,)."""
    with atomic_path(path) as temporary, open(temporary, "wb") as file:
        np.savez(file, Xmean=mean.cpu().numpy(), Xstd=std.cpu().numpy())


def read_statistics(path: str | Path) -> tuple[np.ndarray, np.ndarray]:
    """(Xmean, Xstd), (144,) float32 each. Raises CheckpointError."""
    try:
        with np.load(path, allow_pickle=False) as file:
            found: tuple[Any, Any] = (np.asarray(file["Xmean"], np.float32).ravel(), np.asarray(file["Xstd"], np.float32).ravel())
    except (OSError, KeyError, ValueError, EOFError) as error:
        raise CheckpointError(f"{path}: expected an .npz with Xmean and Xstd of 144 numbers ({error})") from error
    if any(value.shape != (144,) or not np.isfinite(value).all() for value in found):
        raise CheckpointError(f"{path}: Xmean and Xstd have shapes {found[0].shape}, {found[1].shape}: expected 144 finite numbers each")
    return found


def _single(path: Path) -> dict[str, Tensor]:
    return {name: value.float() if value.dtype == torch.float16 else value for name, value in read_state_dict(path).items()}
