"""What all commands share: one clear line for bad input instead of a traceback, where the shipped assets are."""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from pose_tools import interruption
from pose_tools.process_group import end_process_group
from pose_tools.user_error import UserError

ASSETS = Path(__file__).resolve().parents[2] / "demos" / "assets"
DEFAULT_MODEL = ASSETS / "vlm_small"


class CommandError(UserError):
    """Something a person asked for that cannot be done; the message says what to do instead."""


def run(
    main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None, *, again: str = "run the same command again"
) -> int:
    """Runs a command: user errors become one line on stderr and exit status 1, an interruption 130, and `again` is how to go on.
    Other errors keep their traceback, for they are ours; HANDVLM_TRACEBACK=1 shows it always. A process of several leaves their
    group at the end."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # peft imports it, and it warns of kernels that nobody asked for
    try:
        status = main(sys.argv[1:] if arguments is None else arguments)
        end_process_group()
        return status
    except KeyboardInterrupt:
        return interruption.tell(again)
    except user_errors() as error:
        if os.environ.get("HANDVLM_TRACEBACK"):
            raise
        print(f"error: {in_words(error)}", file=sys.stderr)
        return 1


def in_words(error: BaseException) -> str:
    """The message; of the system's own errors, which only name a number and a file, what to look at, too."""
    if isinstance(error, OSError) and error.filename is not None and error.strerror:
        return f"{error.filename}: cannot be read or written ({error.strerror}); check the path, the rights and the room on the disk"
    if type(error).__name__ == "SafetensorError":  # it names no file when it reads
        return f"a file of weights cannot be read or written ({error}); check its path, the room on the disk, and that it was copied whole"
    return str(error)


def positive(text: str) -> int:
    """The `type` of an option that counts something: a whole number of at least 1."""
    try:
        number = int(text)
    except ValueError:
        number = 0
    if number < 1:
        raise argparse.ArgumentTypeError(f"is {text}, expected a whole number of at least 1")
    return number


def user_errors() -> tuple[type[BaseException], ...]:
    """The errors whose message is meant for the person at the keyboard: ours that say so, and those of files."""
    from safetensors import SafetensorError

    return (UserError, SafetensorError, OSError)
