"""Token ids → text, with bytes that are no whole characters read as sentencepiece reads them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import groupby
from typing import Any

_BYTE = re.compile(r"<0x([0-9A-F]{2})>")
_UNREADABLE = "\ufffd"
_LONGEST_CHARACTER = 4  # bytes, in UTF-8


def decode_text(ids: Sequence[int], tokenizer: Any) -> str:
    """The text of `ids` without special tokens, a padding token that is an ordinary piece of the vocabulary included.

    A vocabulary with byte pieces (Llama's) writes rare characters, line breaks among them, as bytes. Of neighbouring bytes that are not
    valid UTF-8 as a whole, an answer cut inside a character for example, the tokenizers library makes every one unreadable;
    sentencepiece, with which the published models were read, only those that belong to no character.
    """
    special = set(tokenizer.all_special_ids)  # the tokenizers library itself does not skip a pad token that was merely named
    kept = [token for token in ids if token not in special]
    tokens = tokenizer.convert_ids_to_tokens(kept, skip_special_tokens=True)
    readable = [token for byte, run in groupby(tokens, _is_byte) for token in (_readable(list(run)) if byte else run)]
    if readable == tokens:
        return tokenizer.decode(kept, skip_special_tokens=True)
    return tokenizer.convert_tokens_to_string(readable)


def _is_byte(token: str) -> bool:
    return _BYTE.fullmatch(token) is not None


def _readable(run: list[str]) -> list[str]:
    """Neighbouring byte pieces with those that belong to no character replaced."""
    data = bytes(int(token[3:5], 16) for token in run)
    result: list[str] = []
    while len(result) < len(data):
        start = len(result)
        length = next((n for n in range(1, _LONGEST_CHARACTER + 1) if _is_character(data[start : start + n])), 0)
        result += run[start : start + length] or [_UNREADABLE]
    return result


def _is_character(data: bytes) -> bool:
    try:
        return len(data.decode("utf-8")) == 1
    except UnicodeDecodeError:
        return False
