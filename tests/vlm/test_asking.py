"""What ends an answer is no part of it, whoever asks; and whether an answer has ended by itself is known."""

from __future__ import annotations

import pytest

from data.sample import user
from tests.vlm.test_handsonvlm_parity import FRAMES, TOKENIZER, Script, converted
from vlm.agent import Agent
from vlm.checkpoints.handsonvlm import make_processor
from vlm.evaluation.asking import Asker

QUESTION = [user({"type": "video", "video": FRAMES}, "What do I hold?")]


@pytest.mark.parametrize("template, end", [("vicuna_v1", "</s>"), ("llava_v0", "###"), ("llava_v1", "</s>")])
def test_an_answer_is_read_without_its_end(template: str, end: str) -> None:
    model, _ = converted()
    processor = make_processor(TOKENIZER, model.config, template)
    words = processor.tokenizer.encode("a cup", add_special_tokens=False)
    ids = [*words, processor.tokenizer.convert_tokens_to_ids(end)]
    prompt = processor(QUESTION)["input_ids"].shape[1]
    for script, finished in ((ids, True), ([*words, *words], False)):
        forced = [Script(script, prompt)]
        texts, _, output = Asker(model, processor, max_new_tokens=len(script)).generate([QUESTION], logits_processor=forced)
        turn = Agent(model, processor, max_new_tokens=len(script), logits_processor=forced).ask(QUESTION)
        assert texts == [turn.text] == ["a cup" if finished else "a cup a cup"]
        assert processor.finished(output) == [finished]
