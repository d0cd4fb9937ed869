"""HOI-QA's json files, whole or a record at a time, and where the frames that they name lie.

The published training files hold millions of records: a few hundred bytes each in the file, ten times that as Python objects.
"""

from __future__ import annotations

import json
import os
import re
import stat
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path
from typing import Any

from pose_tools.user_error import UserError

EPIC_FRAMES = "EPIC_Kitchens/frames"
"""Under the frames' folder; the published EPIC training file's pictures start from there, those of the other files one folder higher."""
_SPACE = re.compile(r"[ \t\n\r]+")


class HOIQAError(UserError):
    """A HOI-QA file or record that cannot be used; the message names it and the remedy."""


def read_json(path: Path) -> Any:
    """The content of a json file. Raises HOIQAError for a missing or broken one, and for a pickle, which is never read."""
    return _parse(path, _read_text(path))


def scan(path: Path) -> Iterator[tuple[Any, Any, int, int]]:
    """The records of a json list or object in its order: (number or key, record, its first byte, the byte behind it).

    A list is read record by record; the records of an object, which a later name may replace, have no places (-1, -1).
    Raises HOIQAError as `read_json` does, and for a file without records.
    """
    text = _read_text(path)
    at = _behind_space(text, 0)
    if not text.startswith("[", at):
        content = _parse(path, text)
        rows = list(content.items()) if isinstance(content, dict) else []
        _check_first(path, content, [row for _, row in rows[:1]])
        yield from ((key, row, -1, -1) for key, row in rows)
        return
    decoder, number, place, counted = json.JSONDecoder(), 0, 0, 0  # `place` bytes of the file are the first `counted` letters
    more = True
    while more:
        start = _behind_space(text, at + 1)
        if number == 0 and text.startswith("]", start):
            _check_first(path, _parse(path, text), [])
        try:
            row, end = decoder.raw_decode(text, start)
        except ValueError:
            _parse(path, text)  # says what is wrong
            raise
        if number == 0:
            _check_first(path, [row], [row])
        place += len(text[counted:start].encode())
        size = len(text[start:end].encode())
        yield number, row, place, place + size
        place, counted, number = place + size, end, number + 1
        at = _behind_space(text, end)
        more = text.startswith(",", at)
    if not text.startswith("]", at) or _behind_space(text, at + 1) < len(text):
        _parse(path, text)


def read_record(path: Path, start: int, end: int) -> Any:
    """The record at a place of a file, as `scan` has it."""
    with open(path, "rb") as file:
        file.seek(start)
        return _parse(path, file.read(end - start).decode("utf-8"))


class Frames:
    """Where records' frames lie under `root`. Every name is looked for once; no picture is opened."""

    def __init__(self, root: Path) -> None:
        self.root = root.resolve()
        self._look = lru_cache(maxsize=None)(self._look_for)
        self._folder = lru_cache(maxsize=None)(os.path.realpath)

    def of(self, row: Any, where: str) -> tuple[str, bool]:
        """The path of a record's frame and whether it is there: `image_path` as it is, or EPIC's training `image`, which lacks its ending
        and may lack `EPIC_FRAMES`. Raises HOIQAError for a record without, and a path that leaves `root`."""
        name = row.get("image_path") if isinstance(row, dict) else None
        short = name is None and isinstance(row, dict) and isinstance(row.get("image"), str)
        if short:
            name = row["image"] if row["image"].endswith(".jpg") else f"{row['image']}.jpg"
        if not isinstance(name, str):
            raise HOIQAError(f"{where}: neither 'image' nor 'image_path' holds a path")
        path, there, inside = self._look(name, short)
        if not inside:
            raise HOIQAError(f"{where}: the path {name!r} leaves the frames' folder {self.root}")
        return path, there

    def _look_for(self, name: str, short: bool) -> tuple[str, bool, bool]:
        """A frame's path, whether it is there, and whether it is under the root."""
        path, there = self._resolve(os.path.join(self.root, name))
        if short and not there:
            longer, there = self._resolve(os.path.join(self.root, EPIC_FRAMES, name))
            path = longer if there else path
        return path, there, Path(path).is_relative_to(self.root)

    def _resolve(self, path: str) -> tuple[str, bool]:
        folder, name = os.path.split(path)
        path = os.path.join(self._folder(folder), name)
        try:
            mode = os.lstat(path).st_mode
        except OSError:
            return path, False
        if stat.S_ISREG(mode):
            return path, True
        path = os.path.realpath(path)  # a link, or no file at all
        return path, os.path.isfile(path)


def _behind_space(text: str, at: int) -> int:
    found = _SPACE.match(text, at)
    return found.end() if found else at


def _read_text(path: Path) -> str:
    if path.suffix in (".pkl", ".pickle"):
        raise HOIQAError(f"{path}: a pickle can run code when it is read; write the list as json first (json.dump of the same list)")
    try:
        return path.read_bytes().decode("utf-8")
    except FileNotFoundError:
        raise HOIQAError(f"{path}: no such file") from None
    except ValueError as error:
        raise _broken(path, error) from None


def _parse(path: Path, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise _broken(path, error) from None


def _broken(path: Path, error: ValueError) -> HOIQAError:
    return HOIQAError(f"{path}: not whole json ({error}); fetch or write the file again")


def _check_first(path: Path, content: Any, first: list[Any]) -> None:
    if not first or not isinstance(first[0], dict):
        raise HOIQAError(f"{path}: expected a json list or object of records, got {type(content).__name__} without any")
