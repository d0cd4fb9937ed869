"""The tokenizer of a language model trained from scratch: byte-level BPE of its own texts, and one token for each number 0 … 1000.

A place is then four tokens that a model can learn as a place, whatever the language model around it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

NUMBERS = 1001
PAD, END = "<pad>", "<|end|>"
ROLE_TOKENS = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
TEXT_TAGS = ("<tools>", "</tools>", "<tool_call>", "</tool_call>")  # one token each, but part of the text an answer is read from

LEAST_WORDS = 100

# The generation tags say what the model writes: an answer and its end.
CHAT_TEMPLATE = r"""
{%- macro written(content) -%}
    {%- if content is string -%}
        {{- content -}}
    {%- else -%}
        {%- for part in content %}{{ '<image>\n' if part['type'] == 'image' else part['text'] }}{% endfor -%}
    {%- endif -%}
{%- endmacro -%}
{%- if tools %}<|system|><tools>{% for tool in tools %}{{ tool | tojson }}{% endfor %}</tools><|end|>{% endif -%}
{%- for message in messages -%}
    {{- '<|' + message['role'] + '|>' -}}
    {%- if message['role'] == 'assistant' -%}
        {%- generation -%}{{ written(message['content']) + '<|end|>' }}{%- endgeneration -%}
    {%- else -%}
        {{- written(message['content']) + '<|end|>' -}}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}<|assistant|>{% endif -%}
"""

# Words keep their leading blank; ", " stays whole because it stands between the numbers of every box; digits never merge.
SPLIT = r", |[\[\]]| ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}\[\]]+|\s+"


def train_tokenizer(texts: Iterable[str], vocab_size: int = 3000) -> PreTrainedTokenizerFast:
    """A tokenizer for any text, short on `texts`; the numbers "0" … "1000" have consecutive ids (see `number_token_ids`).

    Raises ValueError for a `vocab_size` that leaves words no room: every text would be spelt out letter by letter.
    """
    marks = [PAD, END, *ROLE_TOKENS, *TEXT_TAGS]
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    taken = NUMBERS + len(marks) + len(alphabet)
    if vocab_size < taken + LEAST_WORDS:
        raise ValueError(
            f"vocab_size is {vocab_size}, but numbers, marks and single bytes take {taken} of it: give at least {taken + LEAST_WORDS}, "
            "better 2000, or texts are spelt out letter by letter"
        )
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(SPLIT), "isolated"), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    plain = [str(number) for number in range(NUMBERS)] + list(TEXT_TAGS)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[PAD, END, *ROLE_TOKENS, *plain],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # The trainer gives the first ids to "special" tokens only; numbers and tags are ordinary text that decoding must keep.
    description = json.loads(tokenizer.to_str())
    for token in description["added_tokens"]:
        token["special"] = token["content"] not in plain
    return PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_str(json.dumps(description)),
        pad_token=PAD,
        eos_token=END,
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def number_token_ids(tokenizer: PreTrainedTokenizerFast) -> list[int] | None:
    """[id of "0", 1001] when the tokenizer has one token per number 0 … 1000 with consecutive ids, else None."""
    ids = tokenizer.convert_tokens_to_ids([str(number) for number in range(NUMBERS)])
    start = ids[0]
    if start is None or start == tokenizer.unk_token_id or ids != list(range(start, start + NUMBERS)):
        return None
    return [start, NUMBERS]
