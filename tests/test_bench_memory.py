"""`bench.py memory` fills the context that it says, and prints the plan beside what it took."""

from __future__ import annotations

import re

import pytest

from scripts import bench
from scripts.benchmarks import memory
from tests.tiny import tiny


def test_the_plan_beside_what_was_measured(tmp_path, capsys):
    model, processor = tiny("minigpt")
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    seen: list[int] = []
    handle = model.model.language_model.register_forward_hook(lambda _, __, out: seen.append(out.past_key_values.get_seq_length()))
    length = len(processor([{"role": "user", "content": [{"type": "text", "text": memory.QUESTION}]}])["input_ids"][0])
    assert memory.answer(model, processor, length + 30) == length + 30 and seen[-1] == length + 29
    handle.remove()
    with pytest.raises(ValueError, match="--tokens 3: the picture and the question alone take"):
        memory.answer(model, processor, 3)
    assert bench.main(["memory", "--model", str(tmp_path), "--tokens", "60", "--device", "cpu"]) == 0
    printed = capsys.readouterr().out
    assert "language model, blocks (32 bit)" in printed
    assert re.search(r"measured on cpu, 60 tokens: \d+\.\d\d GiB", printed)
