"""Writes hand shards (`data.hand_shards`): unit by unit, each whole or not at all, then the index over all of them.

A unit is what is made, lost and made again in one piece: a video, or some videos. The bytes of its files depend on its hands alone,
so a run that was killed and resumed leaves the same folder as one that was not.
"""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import cv2
import numpy as np

from data.hand_shards import COLUMNS, INDEX, MANIFEST, PARTS, REMEDY, SHARDS, ShardError, ShardHand
from pose_tools.files import atomic_path, write_text

if TYPE_CHECKING:
    import pyarrow

PER_SHARD = 2000
QUALITY = 92
_GROUP = 50_000
"""Rows of a row group of the index."""
_FACTS = b"unit"


def safe(name: str) -> str:
    """A video's id as a file name and part of a hand's id: another for every id, without slashes and full stops."""
    return quote(name, safe="").replace(".", "%2E")


def hand_id(video_id: str, frame: int, number: int) -> str:
    """The id of hand `number` of a frame."""
    return f"{safe(video_id)}-{frame:06d}-{number}"


def settle(folder: Path, settings: dict[str, Any]) -> None:
    """Notes what a folder is made with; ShardError when it was begun with other settings. The folder must be held (`files.exclusive`).

    Removes what a killed run left half written.
    """
    for left_over in folder.glob("*/.*.tmp"):
        left_over.unlink()
    path = folder / MANIFEST
    wanted = json.loads(json.dumps(settings))
    if not path.exists():
        write_text(path, json.dumps(wanted, indent=1))
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ShardError(f"{path}: not a manifest ({error}); delete the folder") from error
    if there != wanted:
        keys = [key for key in {**there, **wanted} if there.get(key) != wanted.get(key)]
        told = ", ".join(f"{key} {there.get(key)!r} (asked for {wanted.get(key)!r})" for key in keys)
        raise ShardError(f"{path}: these hands were made with other settings: {told}; choose another --out or delete the folder")


def write_unit(folder: str | Path, unit: str, hands: Iterable[ShardHand], facts: dict[str, Any], *, per_shard: int = PER_SHARD) -> int:
    """Writes a unit's shards, then its part; returns how many hands it has. `facts` are kept with it (and may be filled meanwhile)."""
    folder = Path(folder)
    rows: list[dict[str, Any]] = []
    shards: dict[str, int] = {}
    for number, some in enumerate(_batches(hands, per_shard)):
        name = f"{safe(unit)}-{number:03d}.tar"
        with atomic_path(folder / SHARDS / name) as temporary:
            rows += _write_shard(temporary, name, some)
            shards[name] = temporary.stat().st_size
    _write_part(folder / PARTS / f"{safe(unit)}.parquet", rows, {"shards": shards, **facts})
    return len(rows)


def unit_facts(folder: str | Path, unit: str) -> dict[str, Any] | None:
    """What `write_unit` kept of a unit, with `hands`, their number; None when it is not there or a shard of it is damaged."""
    from pyarrow import lib, parquet

    folder = Path(folder)
    try:
        with parquet.ParquetFile(folder / PARTS / f"{safe(unit)}.parquet") as part:
            facts = {"hands": part.metadata.num_rows, **json.loads(part.schema_arrow.metadata[_FACTS])}
    except (OSError, lib.ArrowException, KeyError, TypeError, ValueError):
        return None
    whole = all((path := folder / SHARDS / name).is_file() and path.stat().st_size == size for name, size in facts["shards"].items())
    return facts if whole else None


def write_index(folder: str | Path, units: Sequence[str]) -> int:
    """Joins the parts of the units, in that order, into the index; returns the number of hands."""
    from pyarrow import Table, concat_tables, parquet

    folder, count = Path(folder), 0
    with atomic_path(folder / INDEX) as temporary, parquet.ParquetWriter(temporary, schema(), compression="zstd") as writer:
        waiting: list[Table] = []
        for unit in units:
            waiting.append(parquet.read_table(folder / PARTS / f"{safe(unit)}.parquet").replace_schema_metadata(None).cast(schema()))
            count += len(waiting[-1])
            if sum(map(len, waiting)) >= _GROUP:
                writer.write_table(concat_tables(waiting))
                waiting = []
        if waiting:
            writer.write_table(concat_tables(waiting))
    return count


def schema() -> pyarrow.Schema:
    """Of the index and its parts."""
    try:
        import pyarrow
    except ImportError as error:
        raise ShardError(f"hand shards need pyarrow: {REMEDY}") from error
    types = {
        "string": pyarrow.string(), "dictionary": pyarrow.dictionary(pyarrow.int32(), pyarrow.string()), "int64": pyarrow.int64(),
        "bool": pyarrow.bool_(), "float32": pyarrow.float32(),
    }  # fmt: skip
    return pyarrow.schema([(name, pyarrow.list_(types[kind], size) if size else types[kind]) for name, (kind, size) in COLUMNS.items()])


def _batches(hands: Iterable[ShardHand], size: int) -> Iterator[Iterator[ShardHand]]:
    """The hands in runs of `size`, none of them in memory before it is asked for."""
    source = iter(hands)

    def run(first: ShardHand) -> Iterator[ShardHand]:
        yield first
        for _, hand in zip(range(size - 1), source):
            yield hand

    while (first := next(source, None)) is not None:
        yield run(first)


def _write_shard(path: Path, name: str, hands: Iterable[ShardHand]) -> list[dict[str, Any]]:
    """A tar of the hands; the rows of the index that lead to them."""
    rows = []
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT) as tar:
        for hand in hands:
            picture = _jpeg(hand.image)
            offset = _add(tar, f"{hand.hand_id}.jpg", picture)
            _add(tar, f"{hand.hand_id}.json", json.dumps(hand.as_json(), separators=(",", ":")).encode())
            rows.append(_row(hand) | {"shard": name, "offset": offset, "length": len(picture)})
    return rows


def _add(tar: tarfile.TarFile, name: str, content: bytes) -> int:
    """Appends a file without times and owners; where its content lies in the tar."""
    entry = tarfile.TarInfo(name)
    entry.size = len(content)
    tar.addfile(entry, io.BytesIO(content))
    return tar.offset - -(-len(content) // tarfile.BLOCKSIZE) * tarfile.BLOCKSIZE


def _jpeg(image: np.ndarray) -> bytes:
    return cv2.imencode(".jpg", np.ascontiguousarray(image[:, :, ::-1]), [cv2.IMWRITE_JPEG_QUALITY, QUALITY])[1].tobytes()


def _row(hand: ShardHand) -> dict[str, Any]:
    def numbers(value: Any) -> list[float] | None:
        return None if value is None else np.asarray(value, np.float32).ravel().tolist()

    return {
        "hand_id": hand.hand_id, "video_id": hand.video_id, "frame": hand.frame, "left": hand.mirrored, "confidence": hand.confidence,
        "bbox": numbers(hand.bbox_xyxy), "crop_box": numbers(hand.crop_box), "keypoints": numbers(hand.keypoints),
        "joints_3d": numbers(hand.joints_3d), "intrinsics": numbers(hand.intrinsics),
    }  # fmt: skip


def _write_part(path: Path, rows: list[dict[str, Any]], facts: dict[str, Any]) -> None:
    import pyarrow
    from pyarrow import parquet

    table = pyarrow.Table.from_pylist(rows, schema=schema())
    with atomic_path(path) as temporary:
        parquet.write_table(table.replace_schema_metadata({_FACTS: json.dumps(facts).encode()}), temporary, compression="zstd")
