"""Reading checkpoints of SiMHand, PeCLR and ours: which tensors are there, under one set of names.

Encoders come as torchvision's ResNet (flat or in {"state_dict": …}), as `features.*` of the pre-training code, inside the 2.5-D net
(`backend_model.*`), inside the detection net, or with the names of transformers. Here every tensor of an encoder gets
torchvision's name, and all others keep theirs.
"""

from __future__ import annotations

import os
import re
import zipfile
from collections import OrderedDict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pose_tools.user_error import UserError

Source = str | os.PathLike[str] | Mapping[str, Any]


class CheckpointError(UserError):
    """A checkpoint that does not fit; the message lists missing, unexpected and misshapen tensors."""


class Inert:
    """Stands for any class that a pickled checkpoint mentions: an empty dictionary comes of it, which is filled and never does anything."""

    # OrderedDict itself, since torch's restricted reader fills nothing else that may also have attributes
    def __new__(cls, *args: Any, **kwargs: Any) -> OrderedDict:  # type: ignore[misc]
        return OrderedDict()


def read_state_dict(source: Source) -> dict[str, Tensor]:
    """All tensors by name, from a file (.safetensors, or torch's) or a mapping; a nested `state_dict` is taken, `module.` dropped.

    torch files are read with `weights_only`; classes that they mention (a Lightning checkpoint's settings and logger) are replaced
    by empty dictionaries, so no code of the file's runs.
    """
    found: Any = source if isinstance(source, Mapping) else _read_file(Path(source))
    for _ in range(3):
        if isinstance(found, Mapping) and not any(isinstance(value, Tensor) for value in found.values()):
            inner = [found[name] for name in ("state_dict", "model", "model_state_dict") if isinstance(found.get(name), Mapping)]
            found = inner[0] if inner else found
    place = "the mapping" if isinstance(source, Mapping) else str(source)
    if not isinstance(found, Mapping):
        raise CheckpointError(f"{place}: expected a dictionary of tensors, got {type(found).__name__}")
    tensors = {re.sub(r"^(module\.)+", "", str(name)): value for name, value in found.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{place}: no tensors in it; its entries are {', '.join(map(str, list(found)[:8])) or 'none'}")
    return tensors


def _read_file(path: Path) -> Any:
    if not path.is_file():
        raise CheckpointError(f"{path}: no such file")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        mentioned = torch.serialization.get_unsafe_globals_in_checkpoint(path) if zipfile.is_zipfile(path) else []
        numbers = _numpy_globals()
        inert = [(Inert, name) for name in mentioned if name not in numbers]
        with torch.serialization.safe_globals([*((value, name) for name, value in numbers.items()), *inert]):
            return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file can raise nearly anything
        raise CheckpointError(f"{path}: cannot be read as a checkpoint ({str(error).splitlines()[0]}); is it whole?") from error


def _numpy_globals() -> dict[str, Any]:
    """What a pickled NumPy number or array of numbers mentions; a file may hold its best score or its step so."""
    makers = [np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]]
    found = {f"{home}.{maker.__name__}": maker for maker in makers for home in ("numpy.core.multiarray", "numpy._core.multiarray")}
    kinds = {type(np.dtype(code)) for code in "?" + np.typecodes["AllInteger"] + np.typecodes["AllFloat"]}
    return found | {"numpy.dtype": np.dtype, "numpy.ndarray": np.ndarray} | {f"numpy.dtypes.{kind.__name__}": kind for kind in kinds}


_OUTER = r"(?:(?:module|model|backend_model|backbone|resnet|encoder)\.)*?"
_FEATURES = re.compile(_OUTER + r"features\.(\d+)\.(.+)")
_HF_STEM = re.compile(_OUTER + r"embedder\.embedder\.(convolution|normalization)\.(.+)")
_HF_BLOCK = re.compile(_OUTER + r"encoder\.stages\.(\d+)\.layers\.(\d+)\.(?:layer\.(\d+)|shortcut)\.(convolution|normalization)\.(.+)")
_TORCHVISION = re.compile(_OUTER + r"((?:conv1|bn1|layer\d)\..+)")
_BESIDE = re.compile(_OUTER + r"(?:fc|final_layer|projection_head|deconv|[hdl]map_0|zroot_ref|root_refinement)\..+")


def torchvision_name(name: str) -> str | None:
    """The name that an encoder's tensor has in torchvision's ResNet, or None for one that belongs to no encoder."""
    if match := _FEATURES.fullmatch(name):
        number, rest = int(match[1]), match[2]
        outer = {0: "conv1", 1: "bn1"} | {i: f"layer{i - 3}" for i in range(4, 8)}
        return f"{outer[number]}.{rest}" if number in outer else None
    if match := _HF_STEM.fullmatch(name):
        return f"{'conv1' if match[1] == 'convolution' else 'bn1'}.{match[2]}"
    if match := _HF_BLOCK.fullmatch(name):
        stage, block, number, kind, rest = match.groups()
        if number is None:
            return f"layer{int(stage) + 1}.{block}.downsample.{0 if kind == 'convolution' else 1}.{rest}"
        return f"layer{int(stage) + 1}.{block}.{'conv' if kind == 'convolution' else 'bn'}{int(number) + 1}.{rest}"
    if match := _TORCHVISION.fullmatch(name):
        return match[1]
    return None


def transformers_name(name: str) -> str:
    """torchvision's name of an encoder's tensor → the one in transformers' ResNetModel."""
    kinds = {"conv": "convolution", "bn": "normalization"}
    if match := re.fullmatch(r"(conv|bn)1\.(.+)", name):
        return f"embedder.embedder.{kinds[match[1]]}.{match[2]}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.(conv|bn)(\d)\.(.+)", name):
        stage, block, kind, number, rest = match.groups()
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.layer.{int(number) - 1}.{kinds[kind]}.{rest}"
    if match := re.fullmatch(r"layer(\d)\.(\d+)\.downsample\.([01])\.(.+)", name):
        stage, block, number, rest = match.groups()
        return f"encoder.stages.{int(stage) - 1}.layers.{block}.shortcut.{'normalization' if int(number) else 'convolution'}.{rest}"
    raise CheckpointError(f"{name}: not a name of a ResNet's tensor")


def split_encoder(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """(the encoder's tensors by torchvision's names, all others by their own). Raises CheckpointError for names that are neither."""
    encoder: dict[str, Tensor] = {}
    others: dict[str, Tensor] = {}
    strange: list[str] = []
    for name, value in tensors.items():
        canonical = torchvision_name(name)
        if canonical is None:
            others[name] = value
            if not _BESIDE.fullmatch(name):
                strange.append(name)
        elif canonical in encoder:
            raise CheckpointError(f"two tensors are the encoder's {canonical}; the second is {name}")
        else:
            encoder[canonical] = value
    if strange:
        raise CheckpointError(f"unexpected tensors, of no layout that is known here ({len(strange)}): {some(strange)}")
    if not encoder:
        raise CheckpointError(f"no tensor of a ResNet in it; found {some(list(tensors))}")
    return encoder, others


def some(names: list[str], most: int = 12) -> str:
    """Names for a message, shortened."""
    return ", ".join(names[:most]) + (f", … ({len(names)} in all)" if len(names) > most else "")


def check_fit(found: Mapping[str, Tensor], expected: Mapping[str, Tensor], what: str) -> dict[str, Tensor]:
    """`found` as a state dict for `expected`, batch counters filled in; CheckpointError with the lists when they differ."""
    filled = {name: found.get(name, value) if name.endswith("num_batches_tracked") else found.get(name) for name, value in expected.items()}
    missing = [name for name, value in filled.items() if value is None]
    extra = [name for name in found if name not in expected]
    shapes = [
        f"{name} {tuple(value.shape)}, expected {tuple(expected[name].shape)}"
        for name, value in filled.items()
        if value is not None and value.shape != expected[name].shape
    ]
    if missing or extra or shapes:
        lists = [f"{title} ({len(names)}): {some(names)}" for title, names in
                 (("missing", missing), ("unexpected", extra), ("of another shape", shapes)) if names]  # fmt: skip
        raise CheckpointError(f"this is no checkpoint of {what}; " + "; ".join(lists))
    return {name: value for name, value in filled.items() if value is not None}
