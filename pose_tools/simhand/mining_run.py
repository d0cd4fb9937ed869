"""A mining run that may be stopped: every chunk's result is a file, and what is there is not searched again."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from tqdm import tqdm

from pose_tools.files import atomic_path, write_text
from pose_tools.simhand.mining import Miner
from pose_tools.user_error import UserError


class MiningRunError(UserError, RuntimeError):
    """Parts of another run lie where this one would put its own."""


def identity(miner: Miner, settings: dict[str, Any]) -> str:
    """Changes with the pool, with what may be whose neighbour, and with the settings."""
    digest = hashlib.sha256(json.dumps({"k": miner.k} | settings, sort_keys=True, default=str).encode())
    for array in (miner.points, miner.groups, miner.whole):
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def run_mining(miner: Miner, parts: str | Path, settings: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """(indices (N, k) int64, distances (N, k) float64) as `mine` gives them; goes on from the chunks that lie in the folder `parts`.

    Both are memory maps of files in `parts`, so that a pool's size is no matter of memory. A damaged part is searched again. Raises
    MiningRunError when the folder is of another pool or other settings.
    """
    parts = Path(parts)
    _begin(miner, parts, settings)
    indices, distances = _blank(parts / "indices.npy", miner, np.int64, -1), _blank(parts / "distances.npy", miner, np.float64, np.inf)
    for number in tqdm(range(len(miner)), unit="chunk", desc="mining", mininterval=2):
        rows, near, away = _part(miner, parts, number)
        indices[rows], distances[rows] = near, away
    return indices, distances


def run_share(miner: Miner, parts: str | Path, settings: dict[str, Any], share: int, of: int) -> None:
    """Every `of`-th chunk from number `share` − 1 on, for one of several machines; `run_mining` on the same folder then joins all parts."""
    parts = Path(parts)
    _begin(miner, parts, settings)
    for number in tqdm(range(share - 1, len(miner), of), unit="chunk", desc=f"mining, share {share} of {of}", mininterval=2):
        _part(miner, parts, number)


def _begin(miner: Miner, parts: Path, settings: dict[str, Any]) -> None:
    """Makes the folder, or sees that it is of this run."""
    parts.mkdir(parents=True, exist_ok=True)
    name, marker = identity(miner, settings), parts / "run.json"
    if marker.exists():
        if json.loads(marker.read_text(encoding="utf-8"))["identity"] != name:
            raise MiningRunError(f"{parts} holds parts of another run (other pool or settings): remove it, or choose another output")
    else:
        write_text(marker, json.dumps({"identity": name} | settings, default=str))


def _part(miner: Miner, parts: Path, number: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A chunk's rows, indices and distances: its file's, or searched and written."""
    file = parts / f"{number:06d}.npz"
    found = _read(file)
    if found is None:
        found = miner.chunk(number)
        with atomic_path(file) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, rows=found[0], indices=found[1], distances=found[2])
    return found


def _blank(file: Path, miner: Miner, kind: type, value: float) -> np.ndarray:
    array = np.lib.format.open_memmap(file, mode="w+", dtype=kind, shape=(miner.total, miner.k))
    array[:] = value
    return array


def _read(file: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray] | None:
    if not file.is_file():
        return None
    try:
        with np.load(file, allow_pickle=False) as part:
            return part["rows"], part["indices"], part["distances"]
    except Exception:  # a part that was cut off; it is only a cache
        return None
