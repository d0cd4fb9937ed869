"""The from-scratch tokenizer: any text survives it, and numbers are single tokens in a row."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.tiny import TEXTS
from vlm.small_tokenizer import number_token_ids, train_tokenizer

TOKENIZER = train_tokenizer(TEXTS, 1500)


@given(st.text(max_size=80))
def test_text_survives(text):
    assert TOKENIZER.decode(TOKENIZER.encode(text, add_special_tokens=False), skip_special_tokens=False) == text


@given(st.lists(st.integers(0, 1000), min_size=4, max_size=4))
def test_a_box_takes_nine_tokens(numbers):
    text = "[" + ", ".join(map(str, numbers)) + "]"
    ids = TOKENIZER.encode(text, add_special_tokens=False)
    start, count = number_token_ids(TOKENIZER)
    assert len(ids) == 9 and [i - start for i in ids if start <= i < start + count] == numbers
    assert TOKENIZER.decode(ids, skip_special_tokens=True) == text


def test_same_texts_make_the_same_tokenizer():
    assert train_tokenizer(TEXTS, 1500).get_vocab() == TOKENIZER.get_vocab()


def test_tool_tags_stay_in_the_answer():
    text = '<tool_call>{"name": "detect_hands"}</tool_call>'
    assert TOKENIZER.decode(TOKENIZER.encode(text), skip_special_tokens=True) == text


def test_a_vocabulary_without_room_for_words_is_refused():
    with pytest.raises(ValueError, match="vocab_size is 1200, but numbers, marks and single bytes take 1267"):
        train_tokenizer(TEXTS, 1200)
