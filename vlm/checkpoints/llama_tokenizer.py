"""Llama's tokenizer as the published checkpoints were trained with it, from whatever the user has of it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, LlamaTokenizer

from vlm.checkpoints.reading import refuse_pointer, refused


def load_tokenizer(source: str | Path) -> Any:
    """Llama's tokenizer with its legacy rule (each string begins a word), from a folder, a name or a sentencepiece file.

    Raises CheckpointError where there is none, or a broken one.
    """
    named = Path(source)
    if (file := named if named.is_file() else named / "tokenizer.model").is_file():
        refuse_pointer(file)
    with refused(
        f"{source}: no tokenizer could be read from there",
        "Give the tokenizer.model (with added_tokens.json, if there is one) that came with the model, whole, or name it with --tokenizer.",
    ):
        return _tokenizer_of(named)


def _tokenizer_of(source: Path) -> Any:
    if source.is_file():  # transformers reads a folder with the file under its usual name
        with tempfile.TemporaryDirectory() as folder:
            shutil.copy(source, Path(folder) / "tokenizer.model")
            return LlamaTokenizer.from_pretrained(folder, legacy=True)
    if (source / "tokenizer.model").is_file():  # without a tokenizer_config.json beside it, AutoTokenizer guesses, and wrongly
        return LlamaTokenizer.from_pretrained(str(source), legacy=True)
    return AutoTokenizer.from_pretrained(str(source), legacy=True)
