"""Records of written pictures, one JSON line each, in order: what lets a run be stopped, resumed, extended and checked.

A record is written after its files, with their sha256, so a folder can be read while it grows and the manifest's hash of the
lines covers every byte.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from data.synthetic.parallel import worker_map
from pose_tools.files import atomic_path, exclusive, write_text
from pose_tools.user_error import UserError


class FolderError(UserError):
    """A folder that is not what was asked for; the message names the file and the remedy."""


def save(folder: Path, record: dict[str, Any], files: dict[str, bytes]) -> str:
    """Writes `files` (name → content) of a record and returns its line, with the sha256 of their contents in order."""
    digest = hashlib.sha256()
    for name, content in files.items():
        with atomic_path(folder / name) as path:
            path.write_bytes(content)
        digest.update(content)
    return json.dumps({**record, "sha256": digest.hexdigest()}, separators=(",", ":"))


def read_lines(path: Path, hint: str) -> list[dict[str, Any]]:
    """The records of a journal, in order; a last line that is still being written is left out.

    FolderError when there is no journal (`hint` says how to get one) or a line of it is broken.
    """
    if not path.is_file():
        raise FolderError(f"{path} does not exist: {hint}")
    records = []
    for number, line in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            records.append(json.loads(line))
        except ValueError as error:
            raise FolderError(
                f"{path}, line {number}: not JSON ({error}); delete that line and all after it, then write the folder again"
            ) from error
    return records


class Journal:
    """The growing list of records in `folder/name`, described by `folder/manifest_name`; continues behind the last whole line."""

    def __init__(self, folder: Path, name: str, manifest_name: str, settings: dict[str, Any]) -> None:
        self.path, self.manifest_path, self.settings = folder / name, folder / manifest_name, settings
        self._check_settings()
        content = self.path.read_bytes() if self.path.is_file() else b""
        whole = content[: content.rfind(b"\n") + 1]
        if len(whole) < len(content):
            with self.path.open("r+b") as file:
                file.truncate(len(whole))
        self.count, self._hash = whole.count(b"\n"), hashlib.sha256(whole)

    def _check_settings(self) -> None:
        if not self.manifest_path.is_file():
            if self.path.is_file():
                raise FolderError(
                    f"{self.path} has no {self.manifest_path.name} beside it: what it was made with is unknown; delete the folder"
                )
            write_text(self.manifest_path, json.dumps({**self.settings, "count": 0, "complete": False}, indent=1))
            return
        try:
            there = json.loads(self.manifest_path.read_text())
        except ValueError:
            there = None
        if not isinstance(there, dict):
            raise FolderError(f"{self.manifest_path}: not a manifest, so what the folder was made with is unknown; delete the folder")
        differing = [k for k, v in self.settings.items() if there.get(k) != v]
        if differing:
            got = ", ".join(f"{k} {there.get(k)!r} (asked for {self.settings[k]!r})" for k in differing)
            raise FolderError(f"{self.manifest_path} belongs to other pictures: {got}; choose another --out or delete the folder")

    def extend(self, lines: Iterable[str], target: int) -> Iterator[int]:
        """Appends the lines that follow; yields the new count after each, and leaves a manifest that matches however it ends."""
        try:
            with self.path.open("ab") as file:
                for line in lines:
                    content = line.encode() + b"\n"
                    file.write(content)
                    file.flush()
                    self.count += 1
                    self._hash.update(content)
                    if self.count % 1000 == 0:
                        self.write_manifest(target)
                    yield self.count
        finally:
            self.write_manifest(target)

    def write_manifest(self, target: int) -> None:
        """Count and hash of what is there now."""
        state = {"count": self.count, "complete": self.count >= target, "records_sha256": self._hash.hexdigest()}
        write_text(self.manifest_path, json.dumps({**self.settings, **state}, indent=1))


def fill(
    folder: Path,
    name: str,
    manifest_name: str,
    settings: dict[str, Any],
    write: Callable[[Any], str],
    count: int,
    workers: int,
    *,
    jobs: Sequence[Any] | None = None,
    chunksize: int = 8,
) -> Iterator[int]:
    """Brings a journal to at least `count` records by calling `write(index)`, or with what `jobs` has at that index; yields how many there
    are, first what was there. A worker is handed `chunksize` records at a time, and is asked for them together: what it has done of them is
    lost when the run is stopped.

    The result depends neither on `workers` nor on how often it was stopped. FolderBusyError when another process is writing
    the folder, FolderError when it holds something else.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        journal = Journal(folder, name, manifest_name, settings)
        yield journal.count
        if journal.count < count:
            left = (range(count) if jobs is None else jobs)[journal.count : count]
            with worker_map(write, left, workers, chunksize) as lines:
                yield from journal.extend(lines, count)
