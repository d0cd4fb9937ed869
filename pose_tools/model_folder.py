"""One of our own networks as a folder: `config.json` and `model.safetensors`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import nn

from pose_tools.files import atomic_path, write_text
from pose_tools.tool_protocol import BackendMissing

Files = tuple[Path, Path]
Config = TypeVar("Config")
Network = TypeVar("Network", bound=nn.Module)


def write_folder(folder: str | Path, network: nn.Module, config: Mapping[str, Any]) -> None:
    """Both files, each written atomically; matrices as float16."""
    tensors = {k: (v.half() if v.dim() >= 2 else v).detach().cpu().contiguous() for k, v in network.state_dict().items()}
    with atomic_path(Path(folder) / "model.safetensors") as temporary:
        save_file(tensors, temporary)
    write_text(Path(folder) / "config.json", json.dumps(config, indent=1) + "\n")


def files_of(folder: Path, what: str, script: str) -> tuple[Files, tuple[tuple[int, int], ...]]:
    """Both files, and their sizes and times, which tell files that were written again. BackendMissing names the one that is not there."""
    files = (folder / "config.json", folder / "model.safetensors")
    for file in files:
        if not file.is_file():
            raise BackendMissing(f"the {what}'s {file} is missing: train one with scripts/{script}, or give its folder")
    return files, tuple((facts.st_size, facts.st_mtime_ns) for facts in (file.stat() for file in files))


def read_config(file: Path, make: Callable[..., Config], what: str, error: type[ValueError]) -> Config:
    """`make(**fields)` of a config.json; `error` for one that does not fit."""
    try:
        return make(**json.loads(file.read_text()))
    except (TypeError, ValueError) as problem:
        raise error(f"{file}: not the config of a {what} ({problem})") from problem


def read_weights(file: Path, network: Network, error: type[ValueError]) -> Network:
    """The network with the file's weights, in eval mode, without gradients; `error` unless they are exactly its own."""
    try:
        tensors = load_file(file)
    except SafetensorError as problem:
        raise error(f"{file}: not a whole file ({problem}); get or train it again") from problem
    wanted = network.state_dict()
    wrong = [k for k in wanted.keys() | tensors.keys() if k not in wanted or k not in tensors or wanted[k].shape != tensors[k].shape]
    if wrong:
        raise error(f"{file}: {len(wrong)} tensors missing, extra or of another shape, such as {sorted(wrong)[0]!r}")
    network.load_state_dict(tensors)
    return network.eval().requires_grad_(False)
