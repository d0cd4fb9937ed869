"""LoRA runs: what trains, what the folder holds, and that it becomes the same model again."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from data.sample import user
from tests.runs import losses, make_base, make_world, settings, weights
from vlm import HandVLM, HandVLMProcessor
from vlm.adapters import AdapterError, load_adapter
from vlm.run_folder import TrainingError
from vlm.settings import SettingsError
from vlm.training import finetune, merge

ROWS = ["<|end|>", "<|user|>"]


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "train", 6)


def parts(rows: str, **changes: dict) -> dict:
    part = {"mode": rows, "tokens": ROWS} if rows == "new_rows" else {"mode": rows}
    return {"vision_tower": {"mode": "freeze"}, "language_model": {"mode": "lora"}, "embeddings": part, "lm_head": part} | changes


def logits(model: torch.nn.Module, folder: Path) -> torch.Tensor:
    processor = HandVLMProcessor.from_pretrained(folder)
    picture = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    tokens = np.array([[10, 20, 50, 60, -1, 0.9, 20, 20, 40, 40, 0.5]], np.float32)
    pose = {"type": "pose", "encoder": "detection", "tokens": tokens}
    batch = processor([user({"type": "image", "image": picture}, pose, "where is my left hand?")])
    with torch.no_grad():
        return model.eval()(**batch).logits


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("rows", ["freeze", "new_rows", "train"])
def test_an_adapter_folder_becomes_the_trained_model_again(tied: bool, rows: str, world: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "small", llama={"tie_word_embeddings": tied})
    before = (base / "model.safetensors").read_bytes()
    out = finetune(settings(tmp_path / "out", base, world, parts=parts(rows)))
    assert (base / "model.safetensors").read_bytes() == before

    merged, in_place = HandVLM.from_pretrained(out), load_adapter(HandVLM, out, merge=False)
    expected = logits(in_place, out)
    torch.testing.assert_close(logits(merged, out), expected, atol=1e-5, rtol=0)
    assert (expected - logits(HandVLM.from_pretrained(base), base)).abs().max() > 1e-3
    assert (merged.lm_head.weight is merged.get_input_embeddings().weight) == tied
    torch.testing.assert_close(logits(HandVLM.from_pretrained(merge(out)), out), logits(merged, out), atol=0, rtol=0)

    old, new = weights(base), weights(out / "merged")
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert not any("vision_tower" in name or "norm.weight" in name and "language_model" in name for name in changed)
    assert any("q_proj" in name for name in changed) and any("multi_modal_projector" in name for name in changed)
    if rows == "new_rows":
        moved = (old["model.language_model.embed_tokens.weight"] != new["model.language_model.embed_tokens.weight"]).any(-1).nonzero()
        assert moved.flatten().tolist() == HandVLMProcessor.from_pretrained(out).tokenizer.convert_tokens_to_ids(ROWS)


def test_a_resumed_adapter_equals_an_uninterrupted_one(world: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "small", llama={"tie_word_embeddings": True})
    options = settings(tmp_path / "whole", base, world, parts=parts("new_rows"))
    whole, cut = finetune(options), tmp_path / "cut"
    cut.mkdir()
    shutil.copytree(whole / "checkpoint-2", cut / "checkpoint-2")
    for name in ("settings.yaml", "log.jsonl"):
        shutil.copy(whole / name, cut / name)
    options.output = str(cut)
    finetune(options, resume=True)
    one, two = (load_file(folder / "adapter_model.safetensors") for folder in (whole, cut))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)
    assert losses(whole) == losses(cut)


def test_the_plan_counts_what_trains(world: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "llava")
    changes = {"vision_tower": {"mode": "lora", "lr": 1e-3}, "projector": {"mode": "freeze"}}
    lora = {"rank": 2, "targets": ["q_proj", "v_proj"]}
    out = finetune(settings(tmp_path / "out", base, world, parts=parts("new_rows", **changes), lora=lora, steps=1))
    plan = {row["part"]: row for row in json.loads((out / "parts.json").read_text())}
    tensors = load_file(out / "adapter_model.safetensors")
    counted = {part: sum(v.numel() for name, v in tensors.items() if key in name) for part, key in (
        ("vision_tower", "vision_tower"), ("language_model", ".layers."), ("embeddings", "embed_tokens"), ("lm_head", "lm_head"))}
    counted["language_model"] = sum(v.numel() for n, v in tensors.items() if "language_model" in n and "embed_tokens" not in n)
    assert {part: plan[part]["trainable"] for part in counted} == counted and all(counted.values())
    assert counted["embeddings"] == len(ROWS) * 48 and plan["projector"]["trainable"] == 0
    assert {name.split(".lora_")[0].rsplit(".", 1)[1] for name in tensors if ".lora_" in name} == {"q_proj", "v_proj"}
    assert plan["vision_tower"]["lr"] == 1e-3


def test_a_folder_that_was_moved_or_damaged_says_so(world: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "small")
    out = finetune(settings(tmp_path / "out", base, world, parts=parts("freeze"), steps=1))
    tensors = load_file(out / "adapter_model.safetensors")
    name = next(name for name in tensors if "lora_B" in name)
    shutil.copytree(out, tmp_path / "damaged")
    save_file({key: value for key, value in tensors.items() if key != name}, tmp_path / "damaged" / "adapter_model.safetensors")
    with pytest.raises(AdapterError, match="missing .*lora_B"):
        HandVLM.from_pretrained(tmp_path / "damaged")
    (tmp_path / "base").rename(tmp_path / "elsewhere")
    with pytest.raises(SettingsError, match="base model .*base is not there"):
        HandVLM.from_pretrained(out)


def test_a_base_that_the_run_built_moves_with_it(world: Path, tmp_path: Path) -> None:
    from tests.tiny import KINDS, LLAMA
    from vlm.settings import from_mapping, to_mapping

    options = settings(tmp_path / "out", tmp_path, world, parts=parts("freeze"), steps=2)
    mapping = to_mapping(options) | {"model": None, "build": {"language_model": LLAMA, "vocab_size": 1400, **KINDS["small"]}}
    out = finetune(from_mapping(type(options), mapping))
    expected = logits(HandVLM.from_pretrained(out), out)
    out.rename(tmp_path / "moved")
    for folder in (tmp_path / "moved", tmp_path / "moved" / "checkpoint-2"):
        torch.testing.assert_close(logits(HandVLM.from_pretrained(folder), folder), expected, atol=0, rtol=0)


def test_what_lora_cannot_do_is_refused(world: Path, tmp_path: Path) -> None:
    base = make_base(tmp_path / "base", "small", llama={"tie_word_embeddings": True})
    whole = parts("freeze", language_model={"mode": "train"}, vision_tower={"mode": "lora"})
    for number, (changes, message) in enumerate(
        [
            ({"parts": parts("freeze", lm_head={"mode": "train"})}, "lm_head is tied"),
            ({"parts": whole}, "language_model is 'lora' or 'freeze'"),
            ({"parts": parts("freeze"), "lora": {"targets": ["query"]}}, "targets names query; the linear layers there are down_proj"),
        ]
    ):
        with pytest.raises(SettingsError, match=message):
            finetune(settings(tmp_path / f"out{number}", base, world, **changes))
    with pytest.raises(TrainingError, match="no adapter to merge"):
        merge(base)
