"""The output folder of a training run: who may write there, what is resumed, and how a folder is saved whole or not at all."""

from __future__ import annotations

import fcntl
import json
import os
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from pose_tools.files import write_text
from pose_tools.user_error import UserError

SETTINGS_FILE = "settings.yaml"
RESULT_FILE = "training.json"
LOG_FILE = "log.jsonl"
STAGING = ".saving"
LOCK = ".lock"
START = "start"
"""Subfolder with the model that a run which builds its own began from."""


class TrainingError(UserError, RuntimeError):
    """A run that cannot start or go on; the message says what was met and what to do."""


class RunFolder:
    """`path` of one run. Of several processes only the `main` one makes, moves and removes things there."""

    def __init__(self, path: str | Path, main: bool = True) -> None:
        self.path, self.main = Path(path).absolute(), main
        self._lock: Any = None

    @property
    def checkpoints(self) -> list[Path]:
        """Complete checkpoints, oldest first."""
        found = [p for p in self.path.glob("checkpoint-*") if re.fullmatch(r"checkpoint-\d+", p.name)]
        return sorted((p for p in found if (p / "trainer_state.json").is_file()), key=lambda p: int(p.name.split("-")[1]))

    @property
    def checkpoint(self) -> Path | None:
        return self.checkpoints[-1] if self.checkpoints else None

    @property
    def result(self) -> dict[str, Any] | None:
        """What the finished run in this folder wrote at its end, or None."""
        file = self.path / RESULT_FILE
        return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else None

    def lock(self) -> None:
        """Takes the folder for this process until it ends; TrainingError when another one has it."""
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            self._lock = open(self.path / LOCK, "w", encoding="utf-8")  # noqa: SIM115 (held until unlock)
        except OSError as error:
            raise TrainingError(f"{self.path}: cannot write there ({error.strerror}); choose another output") from error
        try:
            fcntl.flock(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise TrainingError(f"{self.path}: another run is writing here; wait for it, or choose another output") from None

    def unlock(self) -> None:
        if self._lock is not None:
            (self.path / LOCK).unlink(missing_ok=True)
            self._lock.close()
            self._lock = None

    def open(self, *, resume: bool, overwrite: bool) -> None:
        """Checks that a run may start here, and clears the folder when it is to be overwritten. Call with the lock held."""
        holds = [p for p in self.path.iterdir() if p.name not in (LOCK, STAGING)]
        ours = (self.path / SETTINGS_FILE).is_file()
        if resume and not ours:
            raise TrainingError(f"{self.path}: there is no run to resume ({SETTINGS_FILE} is missing); leave out --resume to start one")
        if holds and not ours:
            names = ", ".join(sorted(p.name for p in holds)[:5])
            raise TrainingError(f"{self.path}: the folder is not empty ({names}) and not a training run; choose another output")
        if ours and not resume and not overwrite:
            state = "finished" if self.result else "unfinished"
            remedy = "go on with --resume, throw it away with --overwrite, or choose another output"
            raise TrainingError(f"{self.path}: holds a {state} run; {remedy}")
        if ours and not resume:
            for entry in holds:
                shutil.rmtree(entry) if entry.is_dir() and not entry.is_symlink() else entry.unlink()
        shutil.rmtree(self.path / STAGING, ignore_errors=True)

    @contextmanager
    def saving(self, what: str) -> Iterator[Path]:
        """A staging folder, which vanishes at the end; a failure to write is one TrainingError that names what is safe."""
        staging = self.path / STAGING
        try:
            if self.main:
                staging.mkdir(parents=True, exist_ok=True)
            yield staging
        except Exception as error:
            if not _is_write_error(error):
                raise
            last = self.checkpoint
            safe = f"the last checkpoint is {last}" if last else "there is no checkpoint yet"
            raise TrainingError(f"{self.path}: cannot save {what} ({error}). {safe}; make room and go on with --resume") from error
        finally:
            if self.main:
                shutil.rmtree(staging, ignore_errors=True)

    def publish(self, staged: Path, target: Path) -> None:
        """Moves a staged folder to `target` (which must not exist or be replaced whole), or its files into an existing run folder."""
        if target == self.path:
            for entry in sorted(staged.iterdir()):
                os.replace(entry, target / entry.name)
            return
        shutil.rmtree(target, ignore_errors=True)
        os.replace(staged, target)

    def keep_newest(self, count: int) -> None:
        """Removes all but the newest `count` checkpoints."""
        for old in self.checkpoints[: -max(count, 1)]:
            shutil.rmtree(old, ignore_errors=True)

    def trim_log(self, step: int) -> None:
        """Drops log lines after `step`: a resumed run writes them again."""
        file = self.path / LOG_FILE
        if not file.is_file():
            return
        kept = []
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:  # the line being written when the run was cut off
                continue
            if entry.get("step", 0) <= step:
                kept.append(line + "\n")
        write_text(file, "".join(kept))


def _is_write_error(error: Exception) -> bool:
    """Full disk, quota, no permission: torch reports these as RuntimeError, safetensors as an error of its own."""
    if isinstance(error, OSError) or type(error).__name__ == "SafetensorError":
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(word in text for word in ("writ", "no space", "disk", "file too large"))


def link_or_copy(source: Path, target: Path) -> None:
    """A hard link where the file system has them, else a copy."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)
