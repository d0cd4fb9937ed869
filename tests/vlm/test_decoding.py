"""Decoded answers against sentencepiece's own."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from sentencepiece import SentencePieceProcessor

from tests.vlm import vlm4hoi_tiny as tiny
from vlm import HandVLMProcessor
from vlm.checkpoints.vlm4hoi import IMAGE_TOKEN, load_tokenizer
from vlm.decoding import decode_text

SP = SentencePieceProcessor(model_file=str(tiny.TOKENIZER))
TOKENIZER = load_tokenizer(tiny.TOKENIZER)
TOKENIZER.pad_token = "$$"
SPECIAL = (0, 1, 2, 3)


def bytes_as_ids(data: bytes) -> list[int]:
    return [SP.piece_to_id(f"<0x{byte:02X}>") for byte in data]


@given(st.lists(st.integers(0, SP.get_piece_size() - 1), min_size=1, max_size=14))
def test_any_ids_decode_as_by_sentencepiece(ids):
    assert decode_text(ids, TOKENIZER).strip() == SP.decode([i for i in ids if i not in SPECIAL]).strip()


@pytest.mark.parametrize(
    "data, text", [("é".encode(), "é"), ("手\n".encode()[1:], "\ufffd\ufffd\n"), (b"a\xb8b", "a\ufffdb"), (b"\xc0\x80", "\ufffd\ufffd")]
)
def test_a_character_that_is_cut_costs_no_other(data, text):
    assert decode_text([*SP.encode("cup"), *bytes_as_ids(data)], TOKENIZER) == f"cup{text}"


@pytest.mark.parametrize("template, answer", [("vlm4hoi_inference", "{<1><2><3><4>}"), ("vlm4hoi", "a [/INST] {<1><2><3><4>}</s> b")])
def test_asking_as_published_reads_answers_as_published(template, answer):
    """What is behind the last [/INST] and before </s>; elsewhere a text is only ever text."""
    processor = HandVLMProcessor(tokenizer=TOKENIZER, image_token=IMAGE_TOKEN, template=template, dialect="minigpt")
    ids = [9, 9, *SP.encode("a [/INST] {<1><2><3><4>}</s> b"), 2, 3]
    assert processor.decode_answers(torch.tensor([ids]), {"input_ids": torch.zeros(1, 2)}) == [answer]
