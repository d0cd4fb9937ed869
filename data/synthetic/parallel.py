"""Work spread over processes, in order."""

from __future__ import annotations

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from multiprocessing import resource_tracker
from typing import TypeVar

Job = TypeVar("Job")
Result = TypeVar("Result")


@contextmanager
def _interruption_blocked() -> Iterator[None]:
    """Processes that are started meanwhile never see a terminal's Ctrl-C, which reaches all; the parent sees it afterwards, says one line,
    and ends them."""
    resource_tracker.ensure_running()  # now: where it starts with the first process, it unblocks the signal again
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _start_worker() -> None:
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
    with _interruption_blocked():  # from their first moment on: an interpreter that is still starting would print a traceback
        pool = multiprocessing.get_context("spawn").Pool(workers, initializer=_start_worker)
    with pool:
        yield pool.imap(work, jobs, chunksize)
