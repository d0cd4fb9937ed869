"""scripts/train_egohmr.py on a few synthetic rooms: stage 1 to stage 2 to a folder; a resumed run is the uninterrupted one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.ego_body_scenes import preprocess_stage1, preprocess_stage2
from data.synthetic.ego_body_writer import write_ego_body
from pose_tools.body_models import load_smpl
from pose_tools.egohmr.checkpoint import load_backbone
from pose_tools.egohmr.folder import InputSizes, load_folder, save_stage, write_statistics
from pose_tools.egohmr.stage1 import Stage1Config
from pose_tools.egohmr.stage2 import Stage2Config
from pose_tools.simhand.encoder import CheckpointError, EncoderSettings
from pose_tools.training import TrainingError, TrainingSettings
from scripts.train_egohmr import EgoHMRSettings, RoomSettings, bodies_of, fit, main, open_rooms, publish
from tests.pose_tools.egohmr.small import small_stage1, small_stage2
from vlm import settings as typed
from vlm.commands.console import CommandError

CONFIGS = Path(__file__).parents[1] / "scripts/configs"


@pytest.fixture(scope="module")
def rooms(tmp_path_factory) -> Path:
    """Six training and two validation pictures; s1 and s2 hold their scenes."""
    folder = tmp_path_factory.mktemp("rooms")
    for split, count in (("train", 6), ("val", 2)):
        list(write_ego_body(folder, split, 0, count))
        list(preprocess_stage1(folder, split, folder / "s1", target=120, spacing=5))
        list(preprocess_stage2(folder, split, folder / "s2", target=120))
    return folder


def config(rooms: Path, output: Path, stage: int, **training) -> EgoHMRSettings:
    steps = {"max_steps": 2, "warmup_steps": 1, "evaluate_every": 2, "save_every": 1, "log_every": 1}
    sizes = steps | {"output": str(output), "batch_size": 4, "micro_batch_size": 4}
    return EgoHMRSettings(
        stage, RoomSettings(str(rooms), str(rooms / f"s{stage}"), side=32, points=50, validate_every=1),
        TrainingSettings(**sizes | training, best_metric="accuracy"),
        encoder=EncoderSettings(depths=(1, 1), hidden_sizes=(8, 16), embedding_size=8, layer_type="basic"),
        stage1=Stage1Config(8, 8, 16, 2, 16, uncertainty=True), stage2=Stage2Config(8, 8, 8, 8, 16, 16, 2, 16),
        transl_noise=0.05, collision_from=0, asset=str(output.parent / "asset"),
    )  # fmt: skip


def test_both_stages_to_one_folder(rooms, tmp_path):
    first = config(rooms, tmp_path / "one", 1)
    fit(first)
    publish(first)
    assert (tmp_path / "one/labels.jpg").is_file()
    second = config(rooms, tmp_path / "two", 2)
    second = replace(second, encoder=EncoderSettings(start=str(tmp_path / "asset/stage1.safetensors")))
    fit(second)
    publish(second)
    found = load_folder(tmp_path / "asset", load_smpl())
    assert found.sizes == InputSizes(32, 50) and found.stage1.transl_log_std is not None
    for number, stage in ((1, found.stage1), (2, found.stage2)):
        best = load_file(tmp_path / ("one", "two")[number - 1] / "best.safetensors")
        trained = {name.removeprefix("stage."): value for name, value in best.items()}
        for name, value in stage.state_dict().items():
            torch.testing.assert_close(value, trained[name], rtol=1e-3, atol=1e-4)  # half precision
    poses = open_rooms(second, bodies_of(second), "train").poses()
    assert np.isclose(poses["body_pose"].shape, (6, 69)).all() and (found.stage2.std > 0).all()


@pytest.mark.parametrize("stage", [1, 2])
def test_resumed_is_uninterrupted(rooms, tmp_path, stage):
    fit(config(rooms, tmp_path / "whole", stage))
    cut = config(rooms, tmp_path / "cut", stage, max_minutes=0.0)  # stops after a step
    fit(cut)
    fit(replace(cut, training=replace(cut.training, max_minutes=None, resume=True)))
    whole, cut_weights = (load_file(tmp_path / name / "best.safetensors") for name in ("whole", "cut"))
    assert all(torch.equal(whole[name], cut_weights[name]) for name in whole)


def test_the_configs_load_and_say_what_they_lack(tmp_path):
    for stage in (1, 2):
        published = typed.load(EgoHMRSettings, CONFIGS / f"egohmr_stage{stage}.yaml", [])
        assert (published.stage, published.training.learning_rate, published.training.batch_size) == (stage, 1e-4, 16)
        assert published.stage1 == Stage1Config() and published.stage2 == Stage2Config() and published.data.side == 224
        assert typed.load(EgoHMRSettings, CONFIGS / f"egohmr_stage{stage}_small.yaml", []).stage == stage
        with pytest.raises(CommandError, match="is missing|no such|not found|No such"):
            main([str(CONFIGS / f"egohmr_stage{stage}.yaml"), "--set", f"data.folder={tmp_path}", "--set", "smpl=null"])
    with pytest.raises(TrainingError, match="train first"):
        publish(config(tmp_path, tmp_path / "none", 1))


def test_points_are_drawn_anew_each_epoch(rooms, tmp_path):
    people = open_rooms(config(rooms, tmp_path, 1), load_smpl(), "val")
    first, again, later = (people.item(0, epoch)["scene_pcd_verts_full"] for epoch in (0, 0, 1))
    assert first.shape == (50, 3) and np.array_equal(first, again) and not np.array_equal(first, later)


def test_folders_refuse_what_does_not_fit(tmp_path):
    save_stage(tmp_path, small_stage1(), InputSizes(64, 100))
    with pytest.raises(CheckpointError, match="preprocess_stats.npz"):
        load_folder(tmp_path, load_smpl())
    with pytest.raises(CheckpointError, match="both stages need the same sizes"):
        save_stage(tmp_path, small_stage2(), InputSizes(32, 100))
    save_stage(tmp_path, small_stage2(), InputSizes(64, 100))
    stage2 = load_folder(tmp_path, load_smpl()).stage2
    torch.testing.assert_close(stage2.mean, small_stage2().mean)
    assert load_backbone(tmp_path / "stage2.safetensors").width == load_backbone(tmp_path / "stage1.safetensors").width == 16
    (tmp_path / "stage1.safetensors").write_bytes((tmp_path / "stage2.safetensors").read_bytes())
    with pytest.raises(CheckpointError, match="stage 2, asked for stage 1"):
        load_folder(tmp_path, load_smpl())
    save_stage(tmp_path, small_stage1(), InputSizes(64, 100))
    write_statistics(tmp_path / "preprocess_stats.npz", torch.zeros(3), torch.zeros(3))
    with pytest.raises(CheckpointError, match="144 finite numbers"):
        load_folder(tmp_path, load_smpl())
    (tmp_path / "egohmr.json").write_text("[]")
    with pytest.raises(CheckpointError, match="expected"):
        load_folder(tmp_path, load_smpl())
