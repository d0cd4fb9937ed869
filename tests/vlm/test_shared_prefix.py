"""Prompts that share what they open with are answered as if each were asked alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.sample import SampleError, assistant, text, user
from tests.tiny import tiny, tiny_clips
from vlm.evaluation.asking import Asker
from vlm.shared_prefix import check_can_share, generate_shared, share
from vlm.templates import TEMPLATES

QUESTIONS = ["where is my left hand?", "[refer] where is the red cup", "what is held?", "{<10><20><30><40>}", "[vqa] which hand has it"]


def picture(seed: int) -> dict:
    return {"type": "image", "image": np.random.default_rng(seed).integers(0, 255, (50 + seed, 70, 3), dtype=np.uint8)}


def conversations() -> list[list[dict]]:
    """Questions about three pictures in turn, four of the first; one goes on from an earlier answer."""
    asked = [[user(picture(seed), QUESTIONS[n])] for seed, n in ((0, 0), (1, 1), (0, 1), (0, 2), (2, 3), (1, 4), (0, 4))]
    return [*asked, [user(picture(2), QUESTIONS[2]), assistant("red cup"), user("and in the left hand?")]]


def alone(model, processor, asked, **options):
    asker = Asker(model, processor, max_new_tokens=6, **options)
    return [asker.generate([one], output_logits=True) for one in asked]


def same_as_alone(model, processor, asked, **options) -> None:
    together = Asker(model, processor, max_new_tokens=6, share_prefixes=True, **options)
    texts, views, output = together.generate(asked, output_logits=True)
    for row, ([expected], [view], single) in enumerate(alone(model, processor, asked, **options)):
        assert texts[row] == expected and views[row] == view
        for step, logits in enumerate(single.logits):
            torch.testing.assert_close(output.logits[step][row], logits[0], atol=2e-5, rtol=0)


@pytest.fixture(scope="module")
def parts():
    model, processor = tiny("minigpt")
    processor.tokenizer.bos_token = "<|system|>"  # templates other than chat open with it
    return model, processor


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template(parts, template):
    model, processor = parts
    processor.template = template
    same_as_alone(model, processor, conversations())


def test_pose_tokens_and_a_system_turn():
    model, processor = tiny("small")
    tokens = [np.array([[1, 2, 30, 40, -1, score, 5, 5, 20, 20, 0.5]], np.float32) for score in (0.9, 0.3)]
    poses = [{"type": "pose", "encoder": "detection", "tokens": one} for one in tokens]
    system = {"role": "system", "content": [text("Help.")]}
    asked = [[system, user(picture(0), poses[n % 2], question)] for n, question in enumerate(QUESTIONS)]
    asked += [[user("what is a cup?")], [user("what is a hand?")]]  # without a picture
    same_as_alone(model, processor, asked)
    assert share(processor, asked).group.tolist() == [0, 1, 0, 1, 0, 2, 2]


def test_tools_on_offer_are_shared_too():
    from pose_tools.tool import schemas

    model, processor = tiny("small", llama={"max_position_embeddings": 4096})
    asked, tools = conversations()[:3], schemas(["detect_hands"])
    prompts = share(processor, asked, tools)
    shared = prompts.prefixes["input_ids"].shape[1]
    assert prompts.batch["input_ids"].shape[1] - shared < 20 < len(processor.encode_conversation(asked[0], tools).input_ids) - 20
    same_as_alone(model, processor, asked, tools=tools)


def test_a_picture_is_encoded_once():
    model, processor = tiny("minigpt")
    prompts = share(processor, conversations())
    assert prompts.group.tolist() == [0, 1, 0, 0, 2, 1, 0, 2] and len(prompts.prefixes["pixel_values"]) == 3
    seen = []
    model.model.vision_tower.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    generate_shared(model, prompts, max_new_tokens=2)
    assert seen == [3]


def test_what_cannot_be_shared_is_refused():
    model, processor = tiny("minigpt")
    prompts = share(processor, conversations()[:2])
    for wrong in ({"do_sample": True}, {"num_beams": 2}, {"num_return_sequences": 2}):
        with pytest.raises(ValueError, match="greedy decoding only"):
            generate_shared(model, prompts, **wrong)
    with pytest.raises(ValueError, match="path head keeps a cache of its own"):
        Asker(*tiny_clips("path"), share_prefixes=True)
    model.config.text_config.layer_types = ["full_attention", "sliding_attention"]
    with pytest.raises(ValueError, match="this language model has sliding_attention"):
        check_can_share(model)
    parts = "{% for part in message['content'] %}{{ part.get('text', '<image>') }}{% endfor %}"
    processor.tokenizer.chat_template = f"{{% for message in messages %}}{parts}{{% endfor %}}"
    with pytest.raises(SampleError, match="ends with a picture"):
        share(processor, [[user("what is this?", picture(0))]])
