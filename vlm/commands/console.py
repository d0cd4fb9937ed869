"""What all commands share: one clear line for bad input instead of a traceback, where the shipped assets are, loading a model."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

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
    except _user_errors() as error:
        if os.environ.get("HANDVLM_TRACEBACK"):
            raise
        print(f"error: {error}", file=sys.stderr)
        return 1


def _user_errors() -> tuple[type[BaseException], ...]:
    from data.groups import DatasetError
    from data.sample import SampleError
    from pose_tools.image_io import ImageError
    from pose_tools.tool_protocol import ToolError
    from vlm.evaluation.records import RecordsError
    from vlm.model import CheckpointError

    return (CommandError, DatasetError, SampleError, ImageError, ToolError, RecordsError, CheckpointError, OSError)


def load_model(folder: str | Path, *, device: str = "cpu", load_in: str | None = None) -> tuple[Any, Any]:
    """The model and processor of a folder, ready to answer; `load_in` is "8bit", "4bit" or None.

    Raises CommandError for a folder that is not a model's, a config that is not understood, or a device that is not there.
    """
    from vlm import HandVLM, HandVLMProcessor

    folder = Path(folder)
    if not (folder / "config.json").is_file():
        raise CommandError(f"{folder}: not a model folder (no config.json). Train one with scripts/finetune.py, or name another with --model")
    options: dict[str, Any] = _quantised(load_in) if load_in else {"dtype": "auto"}
    try:
        processor = HandVLMProcessor.from_pretrained(folder)
        model = HandVLM.from_pretrained(folder, **options)
        return (model if load_in else model.to(device)).eval(), processor
    except _user_errors():
        raise
    except (TypeError, ValueError, KeyError, RuntimeError, AttributeError) as error:  # what transformers, torch and safetensors raise for a broken folder
        raise CommandError(f"{folder}: cannot be loaded: {error}. Copy the folder again, or correct its config.json") from error


def _quantised(load_in: str) -> dict[str, Any]:
    """Arguments of from_pretrained for 8- or 4-bit weights of the language model; eyes, projectors and head stay as they are."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise CommandError(f"--load-in {load_in} needs bitsandbytes: pip install 'handvlm[quant]'") from error
    import torch
    from transformers import BitsAndBytesConfig

    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # one line per layer and token about casting
    kept = ["model.vision_tower", "model.multi_modal_projector", "model.pose_projectors", "lm_head"]
    config = BitsAndBytesConfig(
        load_in_8bit=load_in == "8bit", load_in_4bit=load_in == "4bit", bnb_4bit_compute_dtype=torch.bfloat16, llm_int8_skip_modules=kept
    )
    return {"quantization_config": config, "dtype": torch.bfloat16}
