"""Chat templates in the styles that language models come with, written for these tests, each with a tokenizer that suits it."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

from transformers import LlamaTokenizer, PreTrainedTokenizerFast

from vlm.small_tokenizer import train_tokenizer

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"

# ChatML with a default system turn, tools and tool results of its own (Qwen2.5).
QWEN = """\
{%- if tools %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0]['role'] == 'system' %}{{- messages[0]['content'] }}{%- else %}{{- 'Be brief.' }}{%- endif %}
    {{- "\\n\\n# Tools\\n<tools>" }}
    {%- for tool in tools %}{{- "\\n" }}{{- tool | tojson }}{%- endfor %}
    {{- "\\n</tools>\\nCall one as <tool_call>{...}</tool_call><|im_end|>\\n" }}
{%- elif messages[0]['role'] == 'system' %}
    {{- '<|im_start|>system\\n' + messages[0]['content'] + '<|im_end|>\\n' }}
{%- else %}
    {{- '<|im_start|>system\\nBe brief.<|im_end|>\\n' }}
{%- endif %}
{%- for message in messages %}
    {%- if message.role in ('user', 'assistant') %}
        {{- '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
    {%- elif message.role == 'tool' %}
        {{- '<|im_start|>user\\n<tool_response>\\n' + message.content + '\\n</tool_response><|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# No tool turns, strict alternation, the system turn inside the first question, no generation prompt.
LLAMA_2 = """\
{%- if messages[0]['role'] == 'system' %}{%- set turns = messages[1:] %}{%- set system = messages[0]['content'] %}
{%- else %}{%- set turns = messages %}{%- set system = false %}{%- endif %}
{%- for message in turns %}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{- raise_exception('roles must alternate') }}{%- endif %}
    {%- if loop.index0 == 0 and system %}{%- set content = '<<SYS>>\\n' + system + '\\n<</SYS>>\\n\\n' + message['content'] %}
    {%- else %}{%- set content = message['content'] %}{%- endif %}
    {%- if message['role'] == 'user' %}{{- bos_token + '[INST] ' + content.strip() + ' [/INST]' }}
    {%- else %}{{- ' ' + content.strip() + ' ' + eos_token }}{%- endif %}
{%- endfor %}"""

# Any role in a header, trimmed content; tools in another form than ours, which must not be used.
LLAMA_3 = """\
{{- bos_token }}
{%- if tools %}{{- "<|start_header_id|>system<|end_header_id|>\\n\\nRespond with {'name':, 'parameters':}<|eot_id|>" }}{%- endif %}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""

# Marks itself what the model writes; refuses a system turn.
MARKED = """\
{%- for message in messages %}
    {%- if message.role == 'system' %}{{- raise_exception('no system turn') }}{%- endif %}
    {{- '<|im_start|>' + message.role + '\\n' }}
    {%- if message.role == 'assistant' %}{% generation %}{{- message.content + '<|im_end|>' }}{% endgeneration %}
    {%- else %}{{- message.content + '<|im_end|>' }}{%- endif %}
    {{- '\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""

# Takes content as parts only; the last answer is opened by an empty thought, earlier ones are not; turns end in plain text.
PARTS = """\
{%- for message in messages %}
    {{- message['role'] | upper + ': ' }}
    {%- if message['role'] == 'assistant' and loop.last %}{{- '(thinks) ' }}{%- endif %}
    {%- for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{- part['text'] }}{%- endfor %}
    {{- ' END\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- 'ASSISTANT: ' }}{%- endif %}"""

TEXTS = ["where is my left hand? none", "[INST] what is held? [/INST] system user assistant", "left hand [1, 2, 3, 4], right hand"] * 8


def sentencepiece(fixture: str, legacy: bool = True, **options) -> LlamaTokenizer:
    """A Llama tokenizer of one of the fixtures' sentencepiece models."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copy(FIXTURES / fixture, Path(folder) / "tokenizer.model")
        return LlamaTokenizer.from_pretrained(folder, legacy=legacy, **options)


def byte_level(template: str, *special: str, **options) -> PreTrainedTokenizerFast:
    """A small byte-level tokenizer with the markers of a template."""
    tokenizer = train_tokenizer(TEXTS, 1500)
    tokenizer.add_special_tokens({"additional_special_tokens": [*special, "<image>", "<detection>"], **options})
    tokenizer.chat_template = template
    return tokenizer


def tokenizers() -> dict[str, PreTrainedTokenizerFast]:
    """A tokenizer with its chat template, by style."""
    found = {
        "qwen": byte_level(QWEN, "<|im_start|>", "<|im_end|>", eos_token="<|im_end|>"),
        "llama-3": byte_level(LLAMA_3, "<|start_header_id|>", "<|end_header_id|>", bos_token="<|begin|>", eos_token="<|eot_id|>"),
        "marked": byte_level(MARKED, "<|im_start|>", "<|im_end|>", eos_token="<|im_end|>"),
        "parts": byte_level(PARTS),
        "small": train_tokenizer(TEXTS, 1500),
    }
    found["small"].add_special_tokens({"additional_special_tokens": ["<image>", "<detection>"]})
    for legacy in (True, False):
        found[f"llama-2{'' if legacy else '-new'}"] = tokenizer = sentencepiece("handsonvlm/toy_tokenizer/tokenizer.model", legacy)
        tokenizer.add_special_tokens({"additional_special_tokens": ["<image>", "<detection>"]})
        tokenizer.chat_template = LLAMA_2
    return found
