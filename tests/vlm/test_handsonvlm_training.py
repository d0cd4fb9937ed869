"""HandsOnVLM's recipes: settings that load, and a mixed batch of the small one that trains every part."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data.epic_clips import EpicClips
from data.epic_kitchens import frame_path, observed_frames
from pose_tools.metrics import trajectory_errors
from tests.data.test_epic_conversations import folder as epic_folder  # noqa: F401, a fixture
from tests.vlm.test_handsonvlm_parity import converted
from vlm.commands.console import CommandError
from vlm.settings import load
from vlm.training import make_start
from vlm.training_data import DatasetSettings, TrainingRows
from vlm.training_settings import FinetuneSettings


@pytest.mark.parametrize("size", ["7b", "13b"])
def test_the_published_recipes_load_and_have_the_published_shares(root: Path, size: str):
    settings = load(FinetuneSettings, root / f"scripts/configs/handsonvlm_{size}.yaml", [f"deepspeed={root}/scripts/configs/zero3.json"])
    weights = {dataset.name: dataset.weight for dataset in settings.data.datasets}
    assert sum(weights.values()) == pytest.approx(10)
    assert weights["narration"] == weights["reasoning"] == 2.5
    assert weights["dvc_activitynet"] == pytest.approx(5 * weights["dvc_youcook2"], rel=1e-3)
    assert settings.batch_size * 8 * settings.steps == pytest.approx(40 * 48296, rel=0.005)
    assert size in settings.build.language_model and size in settings.build.projector_weights
    assert settings.parts.vision_tower.mode == "freeze" and settings.optimizer.clip == 0
    incomplete = {dataset.name for dataset in settings.data.datasets if dataset.options.get("tolerance") == 1.0}
    assert incomplete == {"narration", "reasoning", "dvc_youcook2", "event_youcook2"}, "of these, what is there is taken"


def test_the_lora_recipe_keeps_the_head(root: Path):
    overrides = [f"model={root}/demos/assets/vlm_small", f"deepspeed={root}/scripts/configs/zero2.json"]
    settings = load(FinetuneSettings, root / "scripts/configs/handsonvlm_lora.yaml", overrides)
    assert settings.parts.heads.mode == "train" and settings.parts.uses_lora and (settings.lora.rank, settings.lora.alpha) == (64, 16)


def test_a_mixed_batch_of_the_small_recipe_reaches_every_part(root: Path, epic_folder: Path):  # noqa: F811
    settings = load(FinetuneSettings, root / "scripts/configs/handsonvlm_small.yaml", [f"model={root}/demos/assets/vlm_small"])
    frames = next(path for path in epic_folder.rglob("P01_01") if path.is_dir())
    (epic_folder / "qa.json").write_text(json.dumps([{"video": frames.name, "QA": [{"q": "What is cut?", "a": "an onion"}]}]))
    clips = replace(settings.data.datasets[0], path=str(epic_folder), weight=0.5)
    words = DatasetSettings(
        "lita", str(epic_folder / "qa.json"), weight=0.5, options={"task": "vidqa", "media": str(frames.parent), "frames": 6}
    )
    data = replace(settings.data, datasets=[clips, words])
    model, processor = make_start(replace(settings, data=data, tokenizer_rows=20))
    rows = TrainingRows(data, processor, seed=0, length=6)
    batch = processor.collate_packed([rows[number] for number in range(6)])
    paths = len(batch["trajectories"])
    assert 0 < paths < 6 and batch["media_frames"].unique().tolist() == [6, 10]
    model.train()
    output = model(**{name: value for name, value in batch.items() if name != "views"})
    output.loss.backward()
    assert torch.isfinite(output.loss) and output.trajectories.shape == (paths, 2, 4, 2)
    assert not [name for name, value in model.named_parameters() if value.grad is None and "vision_tower" not in name]


@pytest.mark.parametrize("asked_as", ["vhp", "rbhp"])
def test_evaluation_in_published_words_and_numbers(root: Path, epic_folder: Path, tmp_path: Path, asked_as: str):  # noqa: F811
    """A model that writes no path is scored, as published, as if it had said the picture's corner."""
    from scripts import evaluate

    model, processor = converted()
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    last = frame_path("P01", "P01_01", observed_frames(601)[-1])
    (epic_folder / "questions.json").write_text(json.dumps({last: '"Where next?"'}))
    command = ["trajectory", "--data", str(epic_folder), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--sheet", "0",
               "--protocol", "compat", "--asked-as", asked_as, "--conditions", "as shipped"]  # fmt: skip
    if asked_as == "rbhp":
        with pytest.raises(CommandError, match="come together"):
            evaluate.main(command)
        command += ["--questions", str(epic_folder / "questions.json")]
    evaluate.main(command)
    samples = EpicClips(epic_folder).samples(1, split="test", seed=0)
    if asked_as == "vhp":
        samples = [*EpicClips(epic_folder).samples(0, split="test", seed=0), *samples]
    truth = np.stack([sample.targets["future"] for sample in samples]) / (456, 256)
    valid = np.stack([sample.targets["valid"] for sample in samples])
    expected = trajectory_errors(np.zeros((len(truth), 1, 2, 4, 2)), truth, valid, compat="handsonvlm")
    table = (tmp_path / "out" / "table.md").read_text()
    line = next(line for line in table.split("As HandsOnVLM's")[1].splitlines() if line.startswith("| as shipped"))
    assert [float(cell) for cell in line.split("|")[2:8]] == pytest.approx(
        [expected[name] for name in ("ade", "ade_std", "fde", "fde_std", "wde", "wde_std")], abs=1e-4
    )
