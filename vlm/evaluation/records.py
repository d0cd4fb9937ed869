"""Predictions on disk: one json line a question, appended, so that a run may be cut at any moment and be taken up again.

A folder of records has one writer at a time (`single_writer`) and says in `settings.json` what it belongs to: records made
with another model or other data are never mixed with the ones that are there.
"""

from __future__ import annotations

import contextlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

from tqdm import tqdm

from pose_tools.files import write_text
from pose_tools.user_error import UserError

logger = logging.getLogger(__name__)
Item = TypeVar("Item")


class RecordsError(UserError, RuntimeError):
    """Records that cannot be read, or may not be written; the message names the file and the remedy."""


@contextlib.contextmanager
def single_writer(folder: Path) -> Iterator[None]:
    """Hold `folder/.lock` while the block runs. The system drops the lock when the process ends, however it ends.

    Raises RecordsError when another process holds it.
    """
    import fcntl

    folder.mkdir(parents=True, exist_ok=True)
    path = folder / ".lock"
    with open(path, "a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            file.seek(0)
            owner = file.read().strip() or "unknown"
            raise RecordsError(f"{folder}: another process (id {owner}) is writing here; wait for it, or choose another --out") from error
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        yield


def share_of(items: Sequence[Item], batch_size: int, rank: int, world: int) -> list[Item]:
    """What process `rank` of `world` answers: whole batches, so that what a batch holds is the same for any number of processes."""
    batches = [items[start : start + batch_size] for start in range(0, len(items), batch_size)]
    return [item for batch in batches[rank::world] for item in batch]


def read_records(path: Path) -> list[dict[str, Any]]:
    """All whole records of a jsonl file, in order; [] where there is no file. A half-written last line is left out.

    Raises RecordsError for a broken line anywhere else: that is damage, not an interruption.
    """
    return _whole_records(path)[0]


def records_by_id(path: Path) -> dict[str, dict[str, Any]]:
    """The records of a jsonl file by their "id". Raises RecordsError as `read_records` does, and for two of one id."""
    found: dict[str, dict[str, Any]] = {}
    for record in read_records(path):
        if record["id"] in found:
            raise RecordsError(f"{path}: two predictions for {record['id']!r}; keep one of them")
        found[record["id"]] = record
    return found


def _whole_records(path: Path) -> tuple[list[dict[str, Any]], list[int]]:
    """The records, and where in the file each starts, in bytes; at the end of that list, where the last one ends."""
    records: list[dict[str, Any]] = []
    starts = [0]
    if not path.exists():
        return records, starts
    lines = path.read_bytes().splitlines(keepends=True)
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
            complete = line.endswith(b"\n") and isinstance(record, dict) and "id" in record
        except ValueError:
            complete = False
        if complete:
            records.append(record)
            starts.append(starts[-1] + len(line))
        elif number < len(lines):
            raise RecordsError(
                f"{path}, line {number}: not a json record with an 'id': {line[:60]!r}. Delete that line, or the file, and run again"
            )
    return records, starts


def append_records(path: Path, records: Sequence[dict[str, Any]]) -> None:
    """Append records in one write and make sure they are on the disk. What a failed write left behind is taken back."""
    data = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records).encode()
    before = path.stat().st_size if path.exists() else 0
    try:
        with open(path, "ab") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        with contextlib.suppress(OSError):
            os.truncate(path, before)
        raise RecordsError(
            f"{path}: cannot write ({error.strerror}); the {before} bytes before are untouched. Free space and run again"
        ) from error


def claim(folder: Path, settings: dict[str, Any]) -> None:
    """Write `settings.json` into a new folder, or check that one with anything else in it was made with the same settings.

    Raises RecordsError naming the first setting that differs.
    """
    path = folder / "settings.json"
    kept = (file for file in folder.rglob("*") if file.is_file() and file.name not in ("settings.json", ".lock"))
    if not path.exists() or not any(file.stat().st_size for file in kept):  # a run that could not begin leaves its settings alone
        write_text(path, json.dumps(settings, indent=2, sort_keys=True) + "\n")
        return
    try:
        there = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise RecordsError(f"{path}: not json ({error}); delete the folder, or choose another --out") from error
    for key in sorted(set(there) | set(settings)):
        if there.get(key) != settings.get(key):
            raise RecordsError(
                f"{folder} holds records of another run: {key} was {there.get(key)!r}, now {settings.get(key)!r}. "
                "Choose another --out, or delete the folder"
            )


def complete(
    path: Path,
    items: Sequence[Item],
    answer: Callable[[Sequence[Item]], Sequence[dict[str, Any]]],
    *,
    key: Callable[[Item], str],
    batch_size: int = 32,
    title: str = "answering",
) -> dict[str, dict[str, Any]]:
    """Answer every item that has no record yet, batch by batch, appending to `path`; returns all records by item id.

    `answer` takes up to `batch_size` items and returns one json-able record for each; "id" is added here. Items keep their order,
    and a batch that was cut is asked again whole (a reply may depend, in its last bits, on its batch): so a run that was cut and
    taken up again writes the same file as one that was not. Call under `single_writer`.
    """
    keys = [key(item) for item in items]
    if len(set(keys)) != len(keys):
        twice = next(k for k in keys if keys.count(k) > 1)
        raise RecordsError(f"{path}: two questions share the id {twice!r}; ids must be unique")
    records, starts = _whole_records(path)
    kept = len(records) if len(records) >= len(items) else len(records) // batch_size * batch_size
    if path.exists() and path.stat().st_size > starts[kept]:
        logger.warning("%s: going on behind record %d, where the last whole batch ended", path, kept)
        os.truncate(path, starts[kept])
        records = records[:kept]
    done = {record["id"]: record for record in records}
    todo = [item for item, name in zip(items, keys) if name not in done]
    path.parent.mkdir(parents=True, exist_ok=True)
    with tqdm(total=len(items), initial=len(items) - len(todo), desc=title, unit="q", disable=None) as bar:
        for start in range(0, len(todo), batch_size):
            batch = todo[start : start + batch_size]
            fresh = [{"id": key(item), **record} for item, record in zip(batch, answer(batch), strict=True)]
            append_records(path, fresh)
            done.update((record["id"], record) for record in fresh)
            bar.update(len(batch))
    return {name: done[name] for name in keys}
