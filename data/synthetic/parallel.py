"""Work spread over processes, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


def _start_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal's Ctrl-C reaches all; the parent says one line, and ends them
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    import cv2
    import torch

    torch.set_num_threads(1)
    cv2.setNumThreads(1)


@contextmanager
def worker_map(work: Callable[[Job], Result], jobs: Iterable[Job], workers: int, chunksize: int = 8) -> Iterator[Iterator[Result]]:
    """`map(work, jobs)`, in order, over `workers` processes (1: in this one), `chunksize` jobs handed out at a time."""
    if workers <= 1:
        yield map(work, jobs)
        return
    with multiprocessing.get_context("spawn").Pool(workers, initializer=_start_worker) as pool:
        yield pool.imap(work, jobs, chunksize)
