"""Training on pictures and clips together: how a step is cut up, and who does it, changes nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from data.synthetic.epic_writer import ClipSettings, make_clips
from tests.runs import assert_close, losses, make_detector, make_world, settings, weights
from tests.tiny import TRACK, tiny
from tests.two_processes import run_two
from vlm import HandVLM, HandVLMProcessor
from vlm import settings as settings_io
from vlm.settings import SettingsError
from vlm.training import finetune
from vlm.training_settings import FinetuneSettings

ENCODER = {"track": {**TRACK["track"], "n_tokens": 20}}
EXTEND = {
    "clip": {"frames": 3, "slow_frames": 1, "slow": "last", "pool": 2},
    "trajectory": {"head": "path", "steps": 4, "rate": 4.0, "position_code": "fourier", "feedback_noise": 0.05,
                   "options": {"hidden": 16}},  # fmt: skip
    "pose_encoders": ENCODER,
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Four scenes, two clips, a detector and a model that has never seen a clip."""
    top = tmp_path_factory.mktemp("clips")
    list(make_clips(top / "clips", ClipSettings("train", seed=3), 2))
    model, processor = tiny("llava")  # batch statistics would tell how a batch is cut up
    model.save_pretrained(top / "base")
    processor.save_pretrained(top / "base")
    return {
        "clips": top / "clips",
        "world": make_world(top / "world", 4),
        "base": top / "base",
        "detector": make_detector(top / "detector"),
    }


def mixture(folders: dict[str, Path], output: Path, **changes) -> FinetuneSettings:
    """Four steps of two rows, pictures and clips in turn."""
    data = {
        "datasets": [
            {"kind": "synthetic_referral", "path": str(folders["world"]), "questions": 2, "weight": 0.5},
            {"kind": "clip_trajectory", "path": str(folders["clips"]), "pose_tokens": True, "weight": 0.5},
        ],
        "detector": str(folders["detector"]),
        "pose_dropout": 0.3,
    }
    return settings(output, folders["base"], folders["world"], data, extend=EXTEND, **changes)


@pytest.fixture(scope="module")
def run(folders: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    return finetune(mixture(folders, tmp_path_factory.mktemp("run") / "out"))


def test_everything_new_has_learnt(run: Path) -> None:
    before, after = weights(run / "start"), weights(run)
    for name in ("trajectory_head.layers.4.weight", "model.trajectory_code.linear.weight", "model.pose_projectors.track.gate.weight"):
        assert not before[name].equal(after[name]), name
    model, processor = HandVLM.from_pretrained(run), HandVLMProcessor.from_pretrained(run)
    assert processor.trajectory_steps == model.config.trajectory["steps"] == 4


def test_accumulated_rows_equal_a_batch(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    other = finetune(mixture(folders, tmp_path / "out", batch_size=1, accumulate=2))
    assert_close(run, other, atol=2e-5)
    assert losses(other) == pytest.approx(losses(run), abs=2e-5)


def test_resumed_equals_uninterrupted(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    cut = tmp_path / "cut"
    shutil.copytree(run, cut)
    for entry in cut.iterdir():
        if entry.name not in ("start", "checkpoint-2", "settings.yaml", "log.jsonl"):
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
    finetune(mixture(folders, cut), resume=True)
    assert (run / "model.safetensors").read_bytes() == (cut / "model.safetensors").read_bytes()


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_equal_one(run: Path, folders: dict[str, Path], tmp_path: Path) -> None:
    """In some steps one process has a clip and the other none: nobody waits, and nothing else is learnt."""
    config = tmp_path / "run.yaml"
    settings_io.save(mixture(folders, tmp_path / "out", batch_size=1), config)
    run_two("scripts/finetune.py", config)
    assert_close(run, tmp_path / "out", atol=2e-5)
    assert losses(tmp_path / "out") == pytest.approx(losses(run), abs=2e-5)


def test_clips_need_their_encoder_and_extending_needs_a_model(folders: dict[str, Path], tmp_path: Path) -> None:
    lacking = mixture(folders, tmp_path / "out")
    lacking.extend.pose_encoders = {}
    with pytest.raises(SettingsError, match="no encoder 'track'"):
        finetune(lacking)
    with pytest.raises(ValueError, match="'extend' adds to a 'model'"):
        FinetuneSettings(output="x", data=lacking.data, build=object(), extend=lacking.extend, steps=1)
