"""Work spread over processes in order, and one writer per folder."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


class FolderBusyError(RuntimeError):
    """Another process is writing the folder."""


@contextmanager
def exclusive(folder: Path) -> Iterator[None]:
    """Holds a folder for one writer; the lock ends with the process, however it ends."""
    path = folder / ".lock"
    with path.open("a") as lock:
        try:
            import fcntl
        except ImportError:  # not on Windows: there the file stays open without a lock
            yield
            return
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise FolderBusyError(f"another process is writing {folder}: wait for it or choose another --out") from error
        yield


def _start_worker() -> None:
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def worker_map(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int) -> Iterator[Iterator[Result]]:
    """`map(work, jobs)`, in order, over `workers` processes (1: in this one)."""
    if workers <= 1:
        yield map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_start_worker) as pool:
        yield pool.imap(work, jobs, chunksize=8)
