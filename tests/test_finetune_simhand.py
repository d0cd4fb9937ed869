"""scripts/finetune_simhand.py: from each data set to a network that evaluate.py scores, with the paper's own metric beside the others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml

from data.synthetic.assembly_hands_writer import write_assembly_hands
from data.synthetic.dexycb_writer import write_dexycb
from data.synthetic.freihand_writer import write_freihand
from scripts import finetune_simhand
from vlm import settings as typed
from vlm.commands import evaluate
from vlm.commands.console import CommandError

CONFIGS = Path(__file__).parents[1] / "scripts/configs"
ENCODER = {"depths": [1, 1, 1, 1], "hidden_sizes": [8, 8, 8, 16], "embedding_size": 8, "layer_type": "basic"}


def config(path: Path, data: dict, **changes) -> str:
    training = {"output": str(path / "run"), "max_steps": 2, "batch_size": 4, "micro_batch_size": 4, "warmup_steps": 1, "log_every": 1,
                "evaluate_every": 2, "save_every": 1, "best_metric": "goodness"}  # fmt: skip
    whole = {"data": [{"inside_mask": 0.0, **data}], "network": {"image_size": 48}, "encoder": ENCODER, "training": training}
    (path / "config.yaml").write_text(yaml.safe_dump(whole | changes))
    return str(path / "config.yaml")


@pytest.fixture(scope="module")
def freihand(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("freihand")
    list(write_freihand(folder, "train", 0, 4))
    list(write_freihand(folder, "test", 0, 2))
    return folder


@pytest.mark.slow
def test_from_freihand_to_the_papers_metric(tmp_path, freihand, capsys):
    path = config(tmp_path, {"folder": str(freihand), "validation": 0.5}, asset=str(tmp_path / "model"))
    assert finetune_simhand.main([path]) == 0 and (tmp_path / "run/labels.jpg").is_file()
    assert finetune_simhand.main([path, "--publish"]) == 0
    arguments = ["hand-pose", "--data", str(freihand), "--model", str(tmp_path / "model"), "--out", str(tmp_path / "out"), "--sheet", "0"]
    capsys.readouterr()
    assert evaluate.main(arguments) == 0
    text, scores = capsys.readouterr().out, json.loads((tmp_path / "out/scores.json").read_text())
    assert "root- and scale-aligned MPJPE (SiMHand's own), mm" in text and "PA-MPJPE, mm" in text and "AUC 20–50 mm" in text
    assert set(scores["simhand_paper"]["model"]) == {"mean", "median", "auc_20_50"} and scores["rows"]["model"]["pa_mpjpe"] > 0
    with pytest.raises(CommandError, match="already holds a run"):
        finetune_simhand.main([path])


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["dexycb", "assembly_hands"])
def test_the_other_data_sets_are_learnt_from(tmp_path, kind, capsys):
    for split in ("train", "val"):
        write, count = (write_dexycb, 1) if kind == "dexycb" else (write_assembly_hands, 2)
        list(write(tmp_path / "data", split, 0, count, size=(160, 120)))
    options = {"setup": "s1"} if kind == "dexycb" else {}
    path = config(tmp_path, {"folder": str(tmp_path / "data"), "kind": kind, "validation": 0.1, "options": options})
    assert finetune_simhand.main([path, "--check"]) == 0
    assert "'root_depth':" in capsys.readouterr().out
    detnet = ["--set", "network.kind=detnet", "--set", "network.image_size=128"]
    assert finetune_simhand.main([path, "--check", *detnet]) == 0
    assert "'heat_map':" in capsys.readouterr().out


def test_published_configs_load_and_refusals_say_what_to_do(tmp_path):
    for name in ("simhand_finetune_small", "simhand_finetune_detnet"):
        found = typed.load(finetune_simhand.FinetuningSettings, CONFIGS / f"{name}.yaml", [])
        assert found.encoder.start and found.data
    path = config(tmp_path, {"folder": str(tmp_path / "nowhere")})
    for words, message in ((["--publish"], "--publish needs `asset`"), ([], "nowhere: no such folder; unpack freihand there"),
                           (["--publish", "--set", f"asset={tmp_path / 'a'}"], "best.safetensors is missing: train first"),
                           (["--set", "network.kind=detnet", "--set", "network.image_size=64"], "pictures have 128 pixels"),
                           (["--set", "training.micro_batch_size=1"], "micro_batch_size is 1: batch norm needs at least 2 hands"),
                           (["--set", "network.pixels=raw"], "expected imagenet or half|pixels")):  # fmt: skip
        with pytest.raises(CommandError, match=message):
            finetune_simhand.main([path, *words])


def test_an_encoder_that_is_none_is_refused_with_the_list(tmp_path):
    import torch

    torch.save({"layer1.0.conv9.weight": torch.zeros(1)}, tmp_path / "e.pt")
    settings = typed.load(finetune_simhand.FinetuningSettings, config(tmp_path, {"folder": "x"}), [f"encoder.start={tmp_path / 'e.pt'}"])
    with pytest.raises(ValueError, match="not a whole ResNet|missing|unexpected"):
        finetune_simhand.build(settings)
