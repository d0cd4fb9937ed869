"""LITA's published checkpoint: HandsOnVLM's without paths."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from data.sample import assistant, user
from scripts import convert as script
from tests.vlm.test_handsonvlm_parity import FRAMES, TEXT, TOKENIZER, VISION, WORDS, converted, fill, published_folder
from vlm import HandVLM, HandVLMProcessor
from vlm.checkpoints.handsonvlm import add_tokens, convert, expected_keys, load_tokenizer, make_processor
from vlm.checkpoints.reading import CheckpointError

LITA = TEXT | {
    "model_type": "lita", "vocab_size": WORDS + 100, "num_time_tokens": 100, "time_token_ids": [*range(WORDS, WORDS + 100)],
    "num_frames": 100, "input_type": "video", "video_arch": "temporal_spatial_pool", "mm_hidden_size": 16,
}  # fmt: skip
QUESTION = [user({"type": "video", "video": FRAMES}, "When does he row?"), assistant("<t3> <t10> He rows.")]


def weights() -> dict[str, torch.Tensor]:
    """Those of the tiny HandsOnVLM, without the row of `<hand_traj>`."""
    whole = {name: fill.value(name, shape, scale=0.1) for name, shape in expected_keys(TEXT, VISION).items()}
    return {name: whole[name][: shape[0]] for name, shape in expected_keys(LITA, VISION).items()}


def test_it_computes_what_handsonvlm_does_where_no_path_is():
    assert not [name for name in expected_keys(LITA, VISION) if "traj" in name or "time_embedding" in name]
    model = convert(weights(), LITA, VISION, TOKENIZER)
    batch = make_processor(TOKENIZER, model.config)(QUESTION)
    other, processor = converted()
    theirs = processor(QUESTION)
    assert model.config.trajectory is None and model.config.image_token_id == WORDS + 100
    assert ((batch["input_ids"] == theirs["input_ids"]) | (batch["input_ids"] == WORDS + 100)).all()
    with torch.no_grad():
        torch.testing.assert_close(model(**batch).logits, other(**theirs).logits[..., : WORDS + 100], atol=1e-6, rtol=1e-5)


def test_a_folder_as_published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("vlm.checkpoints.handsonvlm_keys.CLIP_VIT_L_14", VISION | {"num_channels": 3, "hidden_act": "quick_gelu"})
    folder, out = published_folder(tmp_path / "lita", weights(), LITA), tmp_path / "out"
    add_tokens(load_tokenizer(TOKENIZER), paths=False).save_pretrained(folder)
    assert script.main(["handsonvlm", str(folder), "--out", str(out), "--template", "llava_v1"]) == 0
    model, processor = HandVLM.from_pretrained(out).eval(), HandVLMProcessor.from_pretrained(out)
    same = convert(weights(), LITA, VISION, TOKENIZER)
    batch = processor(QUESTION)
    assert torch.equal(model(**batch).logits, same(**batch).logits)
    assert processor.tokenizer.convert_tokens_to_ids(["<t0>", "<t99>", "<image>"]) == [WORDS, WORDS + 99, WORDS + 100]


def test_a_pooling_that_was_never_released_is_refused():
    with pytest.raises(CheckpointError, match="video_arch is 'temporal', expected 'temporal_spatial_pool'"):
        convert(weights(), LITA | {"video_arch": "temporal"}, VISION)
