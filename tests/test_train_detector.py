"""scripts/train_detector.py from end to end, tiny: a run, its published folder with card, its scores, and its refusals in one line."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from pose_tools.small_detector import load_small_detector
from scripts import train_detector
from tests.runs import make_world
from vlm.commands.console import run


@pytest.fixture(scope="module")
def config(tmp_path_factory) -> Path:
    """The config of three steps on six scenes."""
    folder = tmp_path_factory.mktemp("detector")
    for split in ("train", "val", "test"):
        make_world(folder / "scenes" / split, 6)
    settings = {
        "data": str(folder / "scenes"),
        "asset": str(folder / "asset"),
        "network": {"image_size": 64, "embedding_size": 8, "hidden_sizes": [8, 8, 8], "depths": [1, 1, 1]},
        "training": {"output": str(folder / "run"), "max_steps": 3, "batch_size": 4, "micro_batch_size": 2, "evaluate_every": 3},
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(settings | {"val_limit": 4}))
    return folder / "config.yaml"


def command(*words: object) -> int:
    return run(train_detector.main, [str(word) for word in words])


def test_trained_published_and_scored(config, capsys):
    folder = config.parent
    assert command(config, "--publish") == 1
    assert "holds no best.safetensors: train first" in capsys.readouterr().err and not (folder / "asset").exists()
    assert command(config) == 0
    assert command(config, "--publish", "--note", "a line of mine") == 0
    card = (folder / "asset" / "README.md").read_text()
    assert "best of 3 steps of 4 pictures" in card and "- a line of mine\n" in card
    model = load_small_detector(folder / "asset")
    assert model.config.image_size == 64 and model.config.calibration != ((1.0, 0.0),) * 4
    capsys.readouterr()
    assert command("--evaluate", folder / "asset", "--data", folder / "scenes", "--split", "test") == 0
    scores = json.loads(capsys.readouterr().out)
    assert scores.pop("split") == "test"
    in_card = dict(line.strip("| ").split(" | ") for line in card.splitlines() if line.startswith("| "))
    assert {name: float(in_card[name]) for name in scores} == pytest.approx(scores, abs=1e-3, nan_ok=True)


def test_refusals_are_one_line(config, tmp_path, capsys):
    elsewhere = ["--set", f"training.output={tmp_path / 'run'}"]
    for words, expected in (
        ([tmp_path / "none.yaml"], "none.yaml"),
        ([config, *elsewhere, "--set", "training.steps=3"], "steps"),
        (
            [config, *elsewhere, "--set", f"data={tmp_path}"],
            "scenes.jsonl does not exist: write the folder first with scripts/make_synthetic.py",
        ),
        ([config, *elsewhere, "--set", "training.batch_size=3"], "no multiple of micro_batch_size"),
        (["--evaluate", tmp_path, "--data", config.parent / "scenes"], "config.json is missing"),
    ):
        assert command(*words) == 1
        error = capsys.readouterr().err.splitlines()
        assert expected in error[-1] and error[-1].startswith("error: ") and not any("Traceback" in line for line in error)
    assert not (tmp_path / "run").exists()
    with pytest.raises(SystemExit):
        command("--publish")
