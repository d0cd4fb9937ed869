"""A model of pretrained parts: their weights are in it, all of them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import CLIPConfig, CLIPModel, LlamaConfig, LlamaForCausalLM, ViTConfig, ViTModel

from tests.tiny import CLIP, LLAMA, TEXTS, tiny
from vlm.build import BuildSettings, build, load_projector
from vlm.checkpoints.reading import CheckpointError
from vlm.small_tokenizer import train_tokenizer


def without(folder: Path, part: str) -> None:
    """Takes the tensors whose names have `part` out of a model's file."""
    file = folder / "model.safetensors"
    tensors = load_file(file)
    kept = {name: value for name, value in tensors.items() if part not in name}
    assert len(kept) < len(tensors)
    save_file(kept, file, {"format": "pt"})


@pytest.fixture
def parts(tmp_path: Path) -> BuildSettings:
    """A tokenizer, a language model and a whole CLIP, in folders."""
    tokenizer = train_tokenizer(TEXTS, 1500)
    tokenizer.save_pretrained(tmp_path / "llm")
    llama = {**LLAMA, "vocab_size": len(tokenizer), "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    LlamaForCausalLM(LlamaConfig(**llama)).save_pretrained(tmp_path / "llm")
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16, "vocab_size": 20}
    CLIPModel(CLIPConfig(text_config=text, vision_config=CLIP)).save_pretrained(tmp_path / "clip")
    folders = {name: str(tmp_path / name) for name in ("llm", "clip")}
    return BuildSettings(folders["llm"], folders["clip"], tokenizer=folders["llm"], image_size=56)


def test_the_parts_weights_are_the_models(parts: BuildSettings):
    model, _ = build(parts)
    built = model.state_dict()
    tower, words = (load_file(Path(folder) / "model.safetensors") for folder in (str(parts.vision_tower), str(parts.language_model)))
    tower = {name: value for name, value in tower.items() if name.startswith("vision_model.")}
    words = {name: value for name, value in words.items() if name.startswith("model.")}
    assert len(tower) > 30 and len(words) > 18
    for part, tensors, prefix in (("vision_tower", tower, "vision_model."), ("language_model", words, "model.")):
        for name, value in tensors.items():
            ours = built[f"model.{part}.{name.removeprefix(prefix)}"]
            assert torch.equal(ours[: len(value)], value), name  # of the table of words the first rows


@pytest.mark.parametrize("part, missing", [("language_model", "layers.1.mlp.up_proj"), ("vision_tower", "vision_model.encoder.layers.0")])
def test_a_part_that_lacks_a_tensor_is_refused(parts: BuildSettings, part: str, missing: str):
    without(Path(getattr(parts, part)), missing)
    with pytest.raises(CheckpointError, match=f"not a whole model. missing: .*{missing.removeprefix('vision_model.')}.* Copy the folder"):
        build(parts)


def test_a_tower_needs_no_pooler(parts: BuildSettings, tmp_path: Path):
    sizes = {name: value for name, value in CLIP.items() if name != "model_type"}
    ViTModel(ViTConfig(**sizes)).save_pretrained(tmp_path / "vit")
    without(tmp_path / "vit", "pooler.")
    parts.vision_tower = str(tmp_path / "vit")
    model, _ = build(parts)
    assert model.model.image_tokens(torch.zeros(1, 3, 56, 56)).shape == (1, 16, 48)


@pytest.mark.parametrize("key", ["language_model", "vision_tower", "tokenizer"])
def test_a_part_that_is_not_there_is_named_by_its_setting(key: str, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    parts = {"language_model": LLAMA, "vision_tower": CLIP, "image_size": 56, "vocab_size": 1500} | {key: "/no/such/part"}
    settings = BuildSettings(**parts)
    with pytest.raises(CheckpointError, match=f"{key}: /no/such/part: cannot be .*Name a folder that holds it whole"):
        build(settings, ["where is my left hand?"] * 9)


def test_a_projector_as_published_is_to_be_converted(tmp_path):
    model, _ = tiny("llava")
    torch.save({"mm_projector.weight": torch.zeros(4, 4)}, tmp_path / "mm_projector.bin")
    for name in ("mm_projector.bin", "nowhere.safetensors"):
        with pytest.raises(CheckpointError, match=f"{name}: no .safetensors file .*convert.py llava-projector"):
            load_projector(model, tmp_path / name)
