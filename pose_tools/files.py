"""Writing a file whole or not at all, and one writer per folder."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pose_tools.user_error import UserError


class FolderBusyError(UserError, RuntimeError):
    """Another process is writing the folder."""


@contextmanager
def atomic_path(path: str | os.PathLike[str]) -> Iterator[Path]:
    """A temporary path beside `path` that takes its place on success and vanishes on failure (full disk, interruption)."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        yield temporary
        os.replace(temporary, path)
    except OSError as error:
        if str(error.filename) == str(temporary):  # people know the file by its own name
            error.filename, error.filename2 = str(path), None
        raise
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`text` as UTF-8 in `path`, whole or not at all."""
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds an existing folder for one writer; the lock ends with the process, however it ends. FolderBusyError when another has it."""
    with (folder / ".lock").open("a") as lock:
        try:
            import fcntl
        except ImportError:  # not on Windows: there the file stays open without a lock
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderBusyError(f"another process is writing {folder}: wait for it, or choose another output folder") from error
        yield
