"""A plain variant becomes a LLaVA with equal logits; anything else is refused with its reasons."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from transformers import AutoProcessor, LlavaForConditionalGeneration

from data.sample import user
from tests.tiny import tiny
from vlm.export import ExportError, to_llava


@pytest.mark.parametrize("tied", [False, True])
def test_logits_and_prompt_agree(tied, tmp_path):
    model, processor = tiny("llava", llama={"tie_word_embeddings": tied})
    llava, llava_processor = to_llava(model, processor)
    llava.save_pretrained(tmp_path)
    llava_processor.save_pretrained(tmp_path)
    llava, llava_processor = (
        LlavaForConditionalGeneration.from_pretrained(tmp_path).eval(),
        AutoProcessor.from_pretrained(tmp_path, backend="pil"),
    )
    picture = np.kron(np.random.default_rng(0).integers(0, 255, (8, 10, 3), dtype=np.uint8), np.ones((16, 16, 1), np.uint8))
    ours = processor([user({"type": "image", "image": picture}, "where is my left hand?")])
    messages = [{"role": "user", "content": [{"type": "image", "image": picture}, {"type": "text", "text": "where is my left hand?"}]}]
    text = llava_processor.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    theirs = llava_processor(images=picture, text=text, return_tensors="pt", add_special_tokens=False)
    assert theirs["input_ids"].tolist() == ours["input_ids"].tolist()
    torch.testing.assert_close(theirs["pixel_values"], ours["pixel_values"], atol=0.02, rtol=0)
    same = {"input_ids": ours["input_ids"], "attention_mask": ours["attention_mask"], "pixel_values": ours["pixel_values"]}
    with torch.no_grad():
        torch.testing.assert_close(llava(**same).logits, model(**same).logits, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(("kind", "reason"), [("small", "pose encoders"), ("minigpt", "merge-4")])
def test_other_models_are_refused(kind, reason):
    with pytest.raises(ExportError, match=reason):
        to_llava(*tiny(kind))


def test_a_model_of_clips_and_paths_is_refused():
    model, processor = tiny("llava", clip={"slow_frames": 1}, trajectory={"head": "cvae", "steps": 4})
    with pytest.raises(ExportError, match="a path head; clips"):
        to_llava(model, processor)


def test_script_refuses_to_overwrite(tmp_path):
    run = subprocess.run(
        [sys.executable, "scripts/export.py", "llava", "--model", str(tmp_path), "--out", str(tmp_path)], capture_output=True, text=True
    )
    assert run.returncode == 2 and "exists already" in run.stderr


def test_a_misspelt_folder_is_not_looked_for_on_the_network(tmp_path):
    command = [sys.executable, "scripts/export.py", "llava", "--model", "runs/mien", "--out", str(tmp_path / "out")]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 1 and run.stderr.splitlines() == [
        "runs/mien: not a model folder (no config.json). Train one with scripts/finetune.py, or name another with --model"
    ]
