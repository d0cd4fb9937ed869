"""Published checkpoints from disk: tensors and plain values only, never code."""

from __future__ import annotations

import json
import pickle
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pose_tools.user_error import UserError

_SHOWN = 8
_POINTER = b"version https://git-lfs"
_TORCH = (b"PK", b"\x80")
"""How files of torch.save begin: a zip archive, or a pickle of before torch 1.6."""


class CheckpointError(UserError):
    """A checkpoint is damaged or does not fit its model; the message lists the tensors."""


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What a .pth / .bin / .safetensors file holds, tensors on the CPU and mapped from the file where its format allows.

    Raises CheckpointError for a file that is missing, cut off, or holds more than tensors and plain values: such a pickle could run
    code when it is read, and is never read.
    """
    path = Path(path)
    if not path.is_file():
        raise CheckpointError(f"{path}: {'a folder, expected a file' if path.is_dir() else 'no such file'}")
    refuse_pointer(path)
    _check_start(path)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        try:
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        except RuntimeError as error:
            if "mmap" not in str(error):
                raise
            content = torch.load(path, map_location="cpu", weights_only=True)  # a file in the format before torch 1.6
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            f"{path}: refused, because it holds more than tensors and plain values and could run code when read "
            f"({_reason(error)}). If you trust who made it, write its tensors to a new file there: "
            "torch.save({'model': checkpoint['model']}, path)"
        ) from error
    except Exception as error:  # a broken file makes torch and safetensors raise nearly anything
        raise CheckpointError(
            f"{path}: not a whole checkpoint ({type(error).__name__}: {' '.join(str(error).split())[:200]}); fetch it again"
        ) from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, expected a dictionary of tensors")
    return content


def refuse_pointer(path: Path) -> None:
    """Raises CheckpointError for what Git leaves in the place of a large file that was not fetched."""
    with path.open("rb") as file:
        if file.read(len(_POINTER)) == _POINTER:
            raise CheckpointError(f"{path}: a Git LFS pointer, not the file it stands for; fetch that with git lfs pull")


def _check_start(path: Path) -> None:
    """Raises CheckpointError for an empty file, and for one that no torch.save has written, such as a page that was downloaded in its
    place."""
    with path.open("rb") as file:
        start = file.read(16)
    if not start:
        raise CheckpointError(f"{path}: the file is empty (0 bytes); fetch it again")
    if path.suffix != ".safetensors" and not start.startswith(_TORCH):
        raise CheckpointError(f"{path}: no checkpoint, it begins with {start!r}; fetch it again")


def _reason(error: BaseException) -> str:
    """What torch says of a pickle's contents, without its advice to read it all the same."""
    named = re.search(r"GLOBAL (\S+)", str(error))
    return f"it calls {named[1]}" if named else " ".join(str(error).split())[:200]


def read_model_folder(folder: str | Path) -> dict[str, Tensor]:
    """The tensors of a model folder in Hugging Face's form: one file or shards with an index, .safetensors before .bin.

    Raises CheckpointError naming a shard that is missing, cut off or lacks tensors that the index promises.
    """
    folder = Path(folder)
    for name in ("model.safetensors", "pytorch_model.bin"):
        index = folder / f"{name}.index.json"
        if (folder / name).is_file():
            return model_tensors(read_checkpoint(folder / name))
        if index.is_file():
            return _read_shards(folder, index)
    raise CheckpointError(f"{folder}: no model.safetensors or pytorch_model.bin, whole or in shards with an index; copy the whole folder")


def _read_shards(folder: Path, index: Path) -> dict[str, Tensor]:
    try:
        places = dict(json.loads(index.read_text(encoding="utf-8"))["weight_map"])
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{index}: not a whole index of shards ({error}); fetch it again") from None
    strangers = sorted({str(shard) for shard in places.values() if Path(str(shard)).name != shard})
    if strangers or not places:
        raise CheckpointError(f"{index}: names files outside its folder, or none: {shown(strangers)}")
    missing = sorted({shard for shard in places.values() if not (folder / shard).is_file()})
    if missing:
        raise CheckpointError(f"{folder}: shards missing: {shown(missing)}; fetch them again")
    tensors: dict[str, Tensor] = {}
    for shard in sorted(set(places.values())):
        found = model_tensors(read_checkpoint(folder / shard))
        promised = {name for name, place in places.items() if place == shard}
        lacking = [*(promised - found.keys())]
        refuse({"missing": lacking}, f"{folder / shard}: lacks tensors that {index.name} promises", "Fetch the shard again.")
        tensors |= found
    return tensors


def model_tensors(checkpoint: Mapping[str, Any]) -> dict[str, Tensor]:
    """The tensors of a checkpoint: its part "model" or "state_dict", if it has one, without the prefix of a parallel wrapper."""
    for part in ("model", "state_dict"):
        if isinstance(checkpoint.get(part), Mapping):
            checkpoint = checkpoint[part]
            break
    strangers = [str(key) for key, value in checkpoint.items() if not (isinstance(key, str) and isinstance(value, Tensor))]
    if strangers or not checkpoint:
        raise CheckpointError(f"expected a dictionary of tensors, got {len(checkpoint)} entries; not named tensors: {shown(strangers)}")
    return {key.removeprefix("module."): value for key, value in checkpoint.items()}


def refuse(problems: Mapping[str, list[str]], what: str, remedy: str) -> None:
    """Raises CheckpointError with the list of everything that does not fit, if anything."""
    found = [f"{title}: {shown(names)}" for title, names in problems.items() if names]
    if found:
        raise CheckpointError(f"{what}. {'; '.join(found)}. {remedy}")


@contextmanager
def refused(what: str, remedy: str) -> Iterator[None]:
    """Any error inside becomes a CheckpointError: transformers raises nearly anything for a file that is missing, a pointer or cut off."""
    try:
        yield
    except Exception as error:
        raise CheckpointError(f"{what} ({type(error).__name__}: {' '.join(str(error).split())[:200]}). {remedy}") from error


def not_finite(tensors: Mapping[str, Tensor]) -> list[str]:
    """Names of floating-point tensors that hold NaN or infinite numbers."""
    return [name for name, value in tensors.items() if value.is_floating_point() and not bool(torch.isfinite(value).all())]


def shown(names: list[str]) -> str:
    """The first of a list of names, and how many there are."""
    ordered = sorted(names)
    return f"{', '.join(ordered[:_SHOWN])}{' …' if len(ordered) > _SHOWN else ''} ({len(ordered)})"
