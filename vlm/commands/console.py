"""What all commands share: one clear line for bad input instead of a traceback, where the shipped assets are."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

ASSETS = Path(__file__).resolve().parents[2] / "demos" / "assets"
DEFAULT_MODEL = ASSETS / "vlm_small"


class CommandError(ValueError):
    """Something a person asked for that cannot be done; the message says what to do instead."""


def run(main: Callable[[Sequence[str]], int], arguments: Sequence[str] | None = None) -> int:
    """Runs a command: user errors become one line on stderr and exit status 1, an interruption 130. Other errors keep
    their traceback, for they are ours. HANDVLM_TRACEBACK=1 shows it always."""
    logging.basicConfig(level=logging.WARNING, format="%(levelname)s: %(message)s")
    try:
        return main(sys.argv[1:] if arguments is None else arguments)
    except KeyboardInterrupt:
        print("interrupted; run the same command again to go on", file=sys.stderr)
        return 130
    except user_errors() as error:
        if os.environ.get("HANDVLM_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def user_errors() -> tuple[type[BaseException], ...]:
    """The errors whose message is meant for the person at the keyboard."""
    from data.groups import DatasetError
    from data.hand_samples import HandDataError
    from data.hoi_qa import HOIQAError
    from data.sample import SampleError
    from pose_tools.image_io import ImageError
    from pose_tools.mano.submission import SubmissionError
    from pose_tools.tool_protocol import ToolError
    from pose_tools.video import VideoError
    from vlm.evaluation.records import RecordsError
    from vlm.examples import ExamplesError
    from vlm.medium import MediumError
    from vlm.model import CheckpointError
    from vlm.quantization import QuantizationError
    from vlm.settings import SettingsError

    return (
        CommandError, DatasetError, HOIQAError, SampleError, ImageError, ToolError, RecordsError, CheckpointError, SettingsError,
        QuantizationError, VideoError, MediumError, ExamplesError, HandDataError, SubmissionError, OSError,
    )  # fmt: skip
