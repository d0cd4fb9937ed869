"""Ctrl-C in a script: one line in place of a traceback. What is written stays, and the same command goes on from there."""

from __future__ import annotations

import sys
from collections.abc import Callable

STATUS = 130
"""What shells expect of a program that an interruption ended."""


def tell(again: str = "run the same command again") -> int:
    """Says on stderr, below the progress bar, how to go on; returns STATUS."""
    sys.stderr.write(f"\ninterrupted; {again} to go on\n")
    return STATUS


def status_of(main: Callable[[], int]) -> int:
    """The exit status of `main()`, STATUS where it was interrupted."""
    try:
        return main()
    except KeyboardInterrupt:
        return tell()
