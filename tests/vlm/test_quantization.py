"""8 and 4 bits: what stays as it is, what is checked after loading, and the plan of memory before it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from tests.tiny import KINDS, tiny
from vlm import HandVLM, HandVLMConfig
from vlm.quantization import BODY, GIB, QuantizationError, kept_modules, loading_options, plan, skeleton, verify

SEVEN_B = Path(__file__).resolve().parents[2] / "scripts/configs/vlm4hoi_7b_model.json"


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_what_is_kept_is_everything_but_the_language_models_blocks(kind):
    model, _ = tiny(kind)
    kept = kept_modules(model)
    assert {"model.vision_tower", "model.multi_modal_projector", "lm_head"} <= set(kept)
    for name, _ in model.named_parameters():
        assert name.startswith(tuple(f"{k}." for k in kept)) != name.startswith(f"{BODY}."), name
    assert kept_modules(skeleton(model.config)) == kept


@pytest.mark.parametrize("load_in", ["8bit", "4bit"])
def test_loaded_and_verified(load_in, tmp_path):
    model, processor = tiny("small")
    model.save_pretrained(tmp_path)
    small = HandVLM.from_pretrained(tmp_path, **loading_options(model.config, load_in))
    verify(small, load_in)
    quantised = {type(m).__name__ for n, m in small.named_modules() if n.startswith(BODY) and isinstance(m, nn.Linear)}
    assert len(quantised) == 1 and quantised != {"Linear"}
    assert type(small.lm_head) is nn.Linear and small.lm_head.weight.dtype == torch.bfloat16
    batch = processor([{"role": "user", "content": [{"type": "text", "text": "where is my left hand?"}]}])
    assert torch.isfinite(small(**batch).logits).all()
    small.model.language_model.layers[0].mlp.up_proj = nn.Linear(48, 64)
    with pytest.raises(QuantizationError, match=r"1 layers .*layers.0.mlp.up_proj \(Linear\)"):
        verify(small, load_in)
    with pytest.raises(QuantizationError):
        verify(model, load_in)


def test_the_published_size_fits_where_it_should():
    config = HandVLMConfig.from_pretrained(SEVEN_B)
    plans = {kind: plan(config, load_in=kind) for kind in (None, "8bit", "4bit")}
    assert plans["8bit"].gib < 11.5 and plans["4bit"].gib < 8 and plans[None].gib > 15
    # dependencies measured on meta-device parameter counts: blocks of a 7B in GiB, and the tower's and projector's parameters
    blocks = {kind: next(r for r in p.rows if "blocks" in r.part) for kind, p in plans.items()}
    assert blocks["8bit"].parameters == 32 * (4 * 4096**2 + 3 * 4096 * 11008)
    assert blocks["8bit"].bytes / GIB == pytest.approx(6.04, abs=0.02) and blocks["4bit"].bytes / GIB == pytest.approx(3.39, abs=0.02)
    by_part = {row.part: row for row in plans["8bit"].rows}
    assert by_part["multi modal projector"].parameters == 23_072_768
    assert by_part["vision tower"].parameters == pytest.approx(987e6, rel=0.002)
    assert by_part["keys and values"].bytes == 0.5 * GIB * 1000 / 1024
    assert plan(config, load_in="8bit", tokens=2000, beams=3).gib > plans["8bit"].gib + 2
    plans["8bit"].check(11.5)
    with pytest.raises(QuantizationError, match="the largest is language model, blocks"):
        plans[None].check(12)


@pytest.mark.parametrize("kind", sorted(KINDS))
def test_a_plans_weights_are_the_models(kind):
    model, _ = tiny(kind)
    assert sum(row.parameters for row in plan(model.config).rows) == sum(p.numel() for p in model.parameters())


@pytest.mark.slow
def test_the_script_prints_the_table_and_refuses(root, tmp_path):
    command = [sys.executable, str(root / "scripts/plan_memory.py"), str(SEVEN_B), "--load-in", "8bit", "--memory"]
    fits, not_ = (subprocess.run([*command, memory], capture_output=True, text=True) for memory in ("11.5", "6"))
    assert fits.returncode == 0 and "fits into 11.5 GiB" in fits.stdout and "keys and values" in fits.stdout
    assert not_.returncode == 1 and "needs" in not_.stderr and "Traceback" not in not_.stderr
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "handvlm"})[:10])
    broken = subprocess.run([*command[:2], str(tmp_path)], capture_output=True, text=True)
    assert broken.returncode == 1 and "no model's config" in broken.stderr
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip_vision_model"}))  # not a HandVLM of default size
    another = subprocess.run([*command[:2], str(tmp_path)], capture_output=True, text=True)
    assert another.returncode == 1 and "model_type is 'clip_vision_model', expected 'handvlm'" in another.stderr
    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 32101}
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "handsonvlm"} | sizes))
    published = subprocess.run([*command[:2], str(tmp_path)], capture_output=True, text=True)
    assert published.returncode == 0 and "vision tower" in published.stdout and "sum" in published.stdout
    (tmp_path / "config.json").write_text(SEVEN_B.read_text())
    recipe = tmp_path / "train.yaml"
    recipe.write_text(f"output: {tmp_path}/run\nmodel: {tmp_path}\ndata: {{datasets: [{{kind: hoi_qa, path: x}}]}}\nsteps: 1\n")
    assert subprocess.run([*command[:2], str(recipe), *command[3:], "11.5"], capture_output=True, text=True).stdout == fits.stdout
    new = subprocess.run([*command[:2], str(root / "scripts/configs/vlm_small.yaml")], capture_output=True, text=True, cwd=tmp_path)
    assert new.returncode == 1 and "it makes a model of its own" in new.stderr
    misspelt = subprocess.run([*command[:2], "runs/mien"], capture_output=True, text=True)  # not looked for on the network
    assert misspelt.returncode == 1 and misspelt.stderr.splitlines()[-1].startswith("error: runs/mien: no such file or folder")
    assert "Retrying" not in misspelt.stderr
