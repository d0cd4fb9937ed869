"""A model folder → a model ready to answer: whole or an adapter, in full precision or in 8 or 4 bits."""

from __future__ import annotations

import argparse
import difflib
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from vlm.commands.console import CommandError, user_errors

WRITTEN_BESIDE = {
    "architectures", "auto_map", "bos_token_id", "decoder_start_token_id", "dtype", "eos_token_id", "pad_token_id", "quantization_config",
    "sep_token_id", "torch_dtype", "transformers_version", "transformers_weights", "use_cache",
}  # fmt: skip
"""Keys of config.json that transformers writes into any model's."""


def add_load_in(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--load-in", choices=("8bit", "4bit"), help="the language model in 8 or 4 bits (needs the extra [quant])")


def load_model(folder: str | Path, *, device: str = "cpu", load_in: Any = None) -> tuple[Any, Any]:
    """The model and processor of a folder, ready to answer; `load_in` is "8bit", "4bit" or None.

    Raises CommandError for a folder that is not a model's, a config that is not understood, or a device that is not there, and
    CheckpointError for weights that do not fit or are not numbers.
    """
    from transformers.utils import logging as transformers_logging

    from vlm import HandVLM, HandVLMProcessor
    from vlm.adapters import is_adapter, load_adapter
    from vlm.checkpoints.reading import not_finite, refuse
    from vlm.quantization import verify

    folder = Path(folder)
    if not is_adapter(folder) and not (folder / "config.json").is_file():
        raise CommandError(
            f"{folder}: not a model folder (no config.json). Train one with scripts/finetune.py, or name another with --model"
        )
    _check_device(device)
    transformers_logging.disable_progress_bar()
    with _in_words(folder):
        _check_keys(folder / "config.json")
        if not (folder / "processor_config.json").is_file():
            raise CommandError(
                f"{folder}: no processor_config.json, so how questions are put to this model is unknown. Copy the folder again"
            )
        options = _quantised(folder, load_in, device) if load_in else {"dtype": "auto"}
        processor = HandVLMProcessor.from_pretrained(folder)
        if is_adapter(folder):
            model = load_adapter(HandVLM, folder, merge=load_in is None, **options)
        else:
            model = HandVLM.from_pretrained(folder, **options)
        _check_processor(folder, processor, model.config)
        if load_in:
            verify(model, load_in)
        damaged = {"not finite": not_finite(model.state_dict())}
        refuse(damaged, f"{folder}: the weights are damaged", "Copy the folder again, or train anew.")
        return (model if load_in else model.to(device)).eval(), processor


@contextmanager
def _in_words(folder: Path) -> Iterator[None]:
    """Around the loading of a folder: whatever is raised becomes an error that names it and says what to do."""
    from safetensors import SafetensorError

    try:
        yield
    except user_errors() as error:
        nameless = isinstance(error, SafetensorError) or (isinstance(error, OSError) and error.filename is None)
        if nameless:  # words of the libraries, without the folder and a remedy
            raise CommandError(f"{folder}: cannot be loaded ({' '.join(str(error).split())}). Copy the folder again") from error
        raise
    except json.JSONDecodeError as error:
        raise CommandError(f"{folder}: a json file in it is not json ({error}). Copy the folder again") from error
    except Exception as error:  # a broken folder makes transformers, torch and safetensors raise nearly anything
        why = " ".join(f"{type(error).__name__}: {error}".split())
        raise CommandError(f"{folder}: cannot be loaded ({why}). Copy the folder again, or correct its config.json") from error


def _check_device(device: str) -> None:
    """Raises CommandError for a device that torch does not know, or that this machine or this build of torch lacks."""
    import torch

    try:
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: a build without CUDA
        why = str(error).split("\n")[0].rstrip(".")
        raise CommandError(f"--device {device}: cannot be used ({why}). `scripts/doctor.py` says what is here; cpu always is") from error


def _check_keys(file: Path) -> None:
    """Another program's model is refused as such; a key that no HandVLM has is a typing error that would silently change nothing.
    Raises CommandError."""
    from vlm import HandVLMConfig

    if not file.is_file():  # an adapter's folder
        return
    written = json.loads(file.read_text(encoding="utf-8"))
    kind = written.get("model_type")
    if kind != HandVLMConfig.model_type:
        raise CommandError(
            f"{file.parent}: not a HandVLM folder (model_type {kind!r} in its config.json, expected {HandVLMConfig.model_type!r}). "
            "Train one with scripts/finetune.py, or make one of a published checkpoint with scripts/convert.py"
        )
    config = HandVLMConfig()
    known = set(config.to_dict()) | set(vars(config)) | WRITTEN_BESIDE
    for key in written:
        if key not in known:
            close = difflib.get_close_matches(key, known, 1)
            raise CommandError(f"{file}: unknown key {key!r}" + (f"; did you mean {close[0]!r}?" if close else "; remove it"))


def _check_processor(folder: Path, processor: Any, config: Any) -> None:
    """Raises CommandError where the tokenizer gives the marks of pictures, poses and paths other ids than the model's, as another model's
    does, or one of which a file is missing; and for an unknown template."""
    from vlm.answers import TRAJECTORY_TOKEN
    from vlm.processor import pose_token
    from vlm.templates import TEMPLATES

    wanted = {processor.image_token: config.image_token_id, TRAJECTORY_TOKEN: config.trajectory_token_id}
    wanted |= {pose_token(name): number for name, number in config.pose_token_ids.items()}
    given = {token: processor.tokenizer.convert_tokens_to_ids(token) for token in wanted}
    wrong = [f"{token} is {given[token]}, expected {number}" for token, number in wanted.items() if number not in (None, given[token])]
    if wrong:
        raise CommandError(
            f"{folder}: the tokenizer is not this model's, or a file of it is missing ({'; '.join(wrong)}). Copy the folder again, or "
            "give it the tokenizer.json and tokenizer_config.json that were saved with the weights"
        )
    if processor.template not in TEMPLATES:
        known = ", ".join(TEMPLATES)
        raise CommandError(f"{folder / 'processor_config.json'}: template is {processor.template!r}, expected one of {known}")


def _quantised(folder: Path, load_in: Any, device: str) -> dict[str, Any]:
    """Arguments of from_pretrained for 8- or 4-bit weights of the language model; eyes, projectors and head stay as they are."""
    try:
        import bitsandbytes  # noqa: F401
    except ImportError as error:
        raise CommandError(f"--load-in {load_in} needs bitsandbytes: pip install 'handvlm[quant]'") from error
    from vlm import HandVLMConfig
    from vlm.adapters import base_of, is_adapter
    from vlm.quantization import loading_options

    config = HandVLMConfig.from_pretrained(base_of(folder) if is_adapter(folder) else folder)
    place = {} if device == "cpu" else {"device_map": {"": device}}  # quantised weights cannot be moved afterwards
    return loading_options(config, load_in) | place
