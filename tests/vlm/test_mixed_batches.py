"""Rows with and without a picture, a clip and a path in one run: two processes, of which one often has nothing for a part of the model,
learn what one learns, and never wait for each other."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.synthetic.epic_writer import ClipSettings, make_clips
from tests.runs import assert_close, settings, weights
from tests.tiny import tiny
from tests.two_processes import run_two
from vlm import HandVLM, HandVLMProcessor
from vlm import settings as settings_io
from vlm.path_noise import PathNoise
from vlm.trainer import Collator
from vlm.training import finetune
from vlm.training_data import TrainingRows
from vlm.training_settings import FinetuneSettings

CVAE = {"head": "cvae", "steps": 4, "rate": 4.0, "position_code": "handsonvlm", "options": {"hidden": 16, "latent": 8}}
KINDS = {"published": CVAE | {"compat": "handsonvlm_fp32"}, "ours": CVAE}
CLIP = {"slow_frames": 4, "slow": "spread", "pool": 2, "total": 20, "frames": 10, "pictures": False}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two clips, two pictures asked about, and two conversations in words; a model of each kind to start from."""
    top = tmp_path_factory.mktemp("mixed")
    list(make_clips(top / "clips", ClipSettings("train", seed=3, size=64), 2))
    turns = [{"from": "human", "value": "What is it?"}, {"from": "gpt", "value": "A cup, and a bowl."}]
    for number in range(2):
        Image.new("RGB", (40, 30), (200, 90 * number, 10)).save(top / f"{number}.png")
    (top / "pictures.json").write_text(json.dumps([{"image": f"{number}.png", "conversations": turns} for number in range(2)]))
    (top / "words.json").write_text(json.dumps([{"id": "a", "conversations": turns}, {"id": "b", "conversations": turns * 2}]))
    for name, trajectory in KINDS.items():
        model, processor = tiny("llava", clip=CLIP, trajectory=trajectory)
        model.save_pretrained(top / name)
        processor.save_pretrained(top / name)
    return top


def mixture(world: Path, kind: str, output: Path, **changes) -> FinetuneSettings:
    options = {"task": "imgqa", "media": str(world)}
    sets = [{"kind": "clip_trajectory", "path": str(world / "clips"), "weight": 0.4, "questions": 1, "options": {"wording": "narration"}}]
    sets += [
        {"kind": "lita", "name": name, "path": str(world / f"{name}.json"), "weight": weight, "options": options}
        for name, weight in (("pictures", 0.2), ("words", 0.4))
    ]
    parts = {"vision_tower": {"mode": "freeze"}}  # as in the recipe
    return settings(output, world / kind, world, {"datasets": sets}, parts=parts, **changes)


def made_of(world: Path, kind: str) -> list[tuple[bool, bool]]:
    """Of each row of a run, whether it has pictures and whether it has a path."""
    processor = HandVLMProcessor.from_pretrained(world / kind)
    rows = TrainingRows(mixture(world, kind, world / "none").data, processor, seed=0, length=8)
    batches = [processor.collate_packed([rows[number]]) for number in range(8)]
    return [(batch.get("pixel_values") is not None, batch.get("trajectories") is not None) for batch in batches]


@pytest.mark.slow
@pytest.mark.two_process
@pytest.mark.parametrize("kind, engine", [("ours", "ddp"), ("published", "zero3")])
def test_two_processes_equal_one(world: Path, kind: str, engine: str, tmp_path: Path, root: Path) -> None:
    """The published loss depends on what a micro-batch holds, so that here one process takes two of one row."""
    steps = list(zip(*[iter(made_of(world, kind))] * 2, strict=True))
    assert any(one[0] != two[0] for one, two in steps) and any(one[1] != two[1] for one, two in steps), "all batches are of one kind"
    alone = finetune(mixture(world, kind, tmp_path / "one", batch_size=1, accumulate=2))
    changes = {} if engine == "ddp" else {"deepspeed": str(_gathering(root, tmp_path))}
    config = tmp_path / "run.yaml"
    settings_io.save(mixture(world, kind, tmp_path / "two", batch_size=1, **changes), config)
    run_two("scripts/finetune.py" if engine == "ddp" else "tests/vlm/zero_ranks.py", config)
    one, two = (_steps(folder) for folder in (alone, tmp_path / "two"))
    assert two == pytest.approx(one, rel=1e-5), "losses and gradients; weight decay that one of them leaves out moves them by 1e-4"
    assert_close(alone, tmp_path / "two", atol=2e-5)
    before = HandVLM.from_pretrained(world / kind).state_dict()
    still = {name for name, value in weights(alone).items() if name in before and torch.equal(value, before[name])}
    assert not [name for name in still if "vision_tower" not in name], "the head, the projector and the words learn"


def _steps(folder: Path) -> np.ndarray:
    """(steps, 2): the loss and the norm of the gradient."""
    entries = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return np.array([[entry["loss"], entry["grad_norm"]] for entry in entries if "loss" in entry])


def _gathering(root: Path, folder: Path) -> Path:
    """ZeRO-3 that shards the smallest tensor, as it shards a large model's: each use of a part is then a meeting of all processes."""
    config = json.loads((root / "scripts/configs/zero3.json").read_text())
    config["zero_optimization"]["stage3_param_persistence_threshold"] = 0
    (folder / "zero3.json").write_text(json.dumps(config))
    return folder / "zero3.json"


@pytest.mark.parametrize("kind", KINDS)
def test_noise_belongs_to_the_row(world: Path, kind: str) -> None:
    """A row's loss is the same in every batch and in every run; another row has other noise."""
    model, processor = HandVLM.from_pretrained(world / kind), HandVLMProcessor.from_pretrained(world / kind)
    rows = TrainingRows(mixture(world, kind, world / "none").data, processor, seed=0, length=12)
    collate = Collator(processor, PathNoise.of(model))
    with_path = [number for number, batch in enumerate(collate([rows[n]]) for n in range(12)) if "noise" in batch]
    without = next(number for number in range(12) if number not in with_path)
    chosen = [with_path[0], without, with_path[1]]
    batch, singles = collate([rows[n] for n in chosen]), [collate([rows[n]]) for n in chosen]
    assert "noise" not in singles[1]
    blocks = [0, 2] if KINDS[kind].get("compat") else [0, 1]
    np.testing.assert_array_equal(batch["noise"][blocks], torch.cat([singles[0]["noise"], singles[2]["noise"]]))
    assert not torch.equal(batch["noise"][blocks[0]], batch["noise"][blocks[1]]) and len(batch["noise"]) == blocks[-1] + 1
    with torch.no_grad():
        model.train()
        losses = [model(**one).losses["path_traj"] for one in singles]
        torch.testing.assert_close(model(**one_more(singles[0])).losses["path_traj"], losses[0])
    assert losses[1] == 0 < losses[0]


def one_more(batch: dict) -> dict:
    """The batch again, after other numbers were drawn."""
    torch.randn(5)
    return batch


def test_a_head_that_draws_nothing_gets_no_noise() -> None:
    for head in ("mlp", "path"):
        model, _ = tiny("llava", clip=CLIP, trajectory={"head": head, "steps": 4, "rate": 4.0, "options": {"hidden": 16}})
        assert PathNoise.of(model) is None
    assert PathNoise.of(tiny("llava")[0]) is None
