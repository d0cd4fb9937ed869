"""A model that is given more: what it knew, it still knows."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.sample import user
from tests.tiny import DETECTION, TEXTS, TRACK, tiny
from vlm import HandVLM, HandVLMProcessor
from vlm.answers import TRAJECTORY_TOKEN
from vlm.extend import ExtendSettings, extend

MORE = ["where will my right hand go to take the cup? it will reach over there"] * 6
PICTURE = np.random.default_rng(0).integers(0, 255, (50, 70, 3), dtype=np.uint8)
ASKED = [user({"type": "image", "image": PICTURE}, "where is my left hand?")]
SETTINGS = {
    "clip": {"slow_frames": 1, "slow": "last", "pool": 1},
    "trajectory": {"head": "path", "steps": 4, "rate": 4.0},
    "pose_encoders": TRACK,
}


@pytest.mark.parametrize("tokenizer", ["keep", "retrain"])
def test_old_questions_get_the_old_logits(tokenizer, tmp_path):
    model, processor = tiny()
    larger, other = extend(model, processor, ExtendSettings(**SETTINGS, tokenizer=tokenizer, vocab_size=1600), TEXTS + MORE)
    before, after = processor(ASKED), other(ASKED)
    words, again = (p.tokenizer.convert_ids_to_tokens(b["input_ids"][0]) for p, b in ((processor, before), (other, after)))
    assert words == again
    shared = [
        (old, other.tokenizer.get_vocab()[token])
        for token, old in processor.tokenizer.get_vocab().items()
        if token in other.tokenizer.get_vocab()
    ]
    assert len(shared) > 1000
    rows, columns = zip(*shared)
    old, new = model(**before).logits[0, -1], larger.eval()(**after).logits[0, -1]
    torch.testing.assert_close(new[list(columns)], old[list(rows)], atol=1e-5, rtol=1e-4)
    larger.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    assert torch.equal(HandVLM.from_pretrained(tmp_path).eval()(**HandVLMProcessor.from_pretrained(tmp_path)(ASKED)).logits[0, -1], new)


def test_new_words_start_as_what_they_were_written_with():
    model, processor = tiny()
    larger, other = extend(model, processor, ExtendSettings(**SETTINGS, tokenizer="retrain", vocab_size=1600), TEXTS + MORE)
    word = other.tokenizer.tokenize(" reach")
    assert len(word) == 1 and word[0] not in processor.tokenizer.get_vocab()
    pieces = processor.tokenizer(" reach", add_special_tokens=False)["input_ids"]
    weight = model.get_input_embeddings().weight
    number = other.tokenizer.convert_tokens_to_ids(word[0])
    torch.testing.assert_close(larger.get_input_embeddings().weight[number], weight[pieces].mean(0))


def test_what_is_added_is_there():
    model, processor = tiny()
    larger, other = extend(model, processor, ExtendSettings(**SETTINGS))
    assert set(larger.config.pose_encoders) == {"detection", "track"} and other.trajectory_steps == 4
    assert len(other.tokenizer.tokenize(TRAJECTORY_TOKEN * 2)) == 2
    assert TRAJECTORY_TOKEN in other.tokenizer.decode([other.tokenizer.convert_tokens_to_ids(TRAJECTORY_TOKEN)], skip_special_tokens=True)
    for name, value in model.state_dict().items():
        if "embed_tokens" not in name and "lm_head" not in name:
            assert torch.equal(larger.state_dict()[name], value), name


def test_an_encoder_that_is_there_is_named():
    with pytest.raises(ValueError, match="already has detection"):
        extend(*tiny(), ExtendSettings(pose_encoders=DETECTION))


def test_an_encoder_is_left_out_and_the_template_changed(tmp_path):
    model, processor = tiny()
    smaller, other = extend(model, processor, ExtendSettings(without=["detection"], template="vicuna_v1"))
    assert not smaller.config.pose_encoders and not [name for name in smaller.state_dict() if "pose_projectors" in name]
    smaller.save_pretrained(tmp_path)
    other.save_pretrained(tmp_path)
    asked = HandVLMProcessor.from_pretrained(tmp_path)(ASKED)
    assert other.tokenizer.decode(asked["input_ids"][0]).endswith("where is my left hand? ASSISTANT:")
    assert torch.isfinite(HandVLM.from_pretrained(tmp_path)(**asked).logits).all()


@pytest.mark.parametrize(
    "wrong, message",
    [
        ({"without": ["track"]}, "no pose encoder track"),
        ({"template": "vicuna"}, "expected one of chat, "),
        ({"clip": {"slow": "even"}}, "clip.slow is 'even', expected one of spread, last"),
        ({"clip": {"pool": 3}}, "clip.pool is 3, expected a divisor"),
        ({"clip": {"pool": 0}}, "clip.pool is 0, expected a whole number of at least 1"),
        ({"trajectory": {"steps": 4, "compat": "lita"}}, "trajectory.compat is 'lita', expected one of None, False, True, handsonvlm"),
        ({"trajectory": {"steps": 4, "hand_layout": "right_left"}}, "trajectory.hand_layout is 'right_left'"),
        ({"trajectory": {"steps": "4"}}, "trajectory.steps is '4'"),
    ],
)
def test_what_cannot_be_changed_is_said(wrong, message):
    with pytest.raises(ValueError, match=message):
        extend(*tiny(), ExtendSettings(**wrong))
