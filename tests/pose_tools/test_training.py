from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pose_tools import training
from pose_tools.files import exclusive
from pose_tools.training import TrainingError, TrainingSettings, learning_rate, step_indices, train
from tests.pose_tools.tiny_training import TinyTask, network, settings
from tests.two_processes import run_two


def checkpoint(folder: Path) -> dict:
    return torch.load(folder / "checkpoint.pt", weights_only=True)


def assert_same(a, b) -> None:
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b)
    elif isinstance(a, dict):
        assert a.keys() == b.keys()
        for key in a:
            assert_same(a[key], b[key])
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b)
        for x, y in zip(a, b, strict=True):
            assert_same(x, y)
    else:
        assert a == b


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, precision, monkeypatch):
    whole = train(network(0.3), TinyTask(), settings(tmp_path / "whole", precision=precision))
    # stopped in the middle of an epoch, between evaluations, by the clock: its schedule is that of the whole run
    ticks = iter(range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)) * 60)
    first = train(network(0.3), TinyTask(), settings(tmp_path / "parts", precision=precision, max_minutes=9.0))
    monkeypatch.undo()
    assert 0 < first.step < whole.step == 12
    torch.manual_seed(99)
    second = train(network(0.3), TinyTask(), settings(tmp_path / "parts", precision=precision, resume=True))
    assert_same(checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "parts"))
    assert second.best == whole.best
    assert_same(load_file(tmp_path / "whole/best.safetensors"), load_file(tmp_path / "parts/best.safetensors"))


def test_the_network_learns_and_best_is_the_best(tmp_path):
    task = TinyTask()
    task.valid[:], task.weights = 1, {"fit": 1.0, "size": 0.0}
    result = train(network(), task, settings(tmp_path, max_steps=300, evaluate_every=20, log_every=20, ema_decay=0.9))
    lines = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    evaluations = [line for line in lines if "goodness" in line]
    assert result.best["goodness"] == max(line["goodness"] for line in evaluations) > -0.05 > evaluations[0]["goodness"]
    losses = [line["loss"] for line in lines if "loss" in line]
    assert losses[-1] < 0.5 * losses[0]
    model = network()
    model.load_state_dict(load_file(tmp_path / "best.safetensors"))
    with torch.no_grad():
        assert task.evaluate(model) == pytest.approx({"goodness": result.best["goodness"]})


def test_micro_batches_equal_one_batch(tmp_path):
    train(network(), TinyTask(), settings(tmp_path / "one"))
    train(network(), TinyTask(), settings(tmp_path / "four", micro_batch_size=2))
    one, four = (checkpoint(tmp_path / name)["model"] for name in ("one", "four"))
    for name in one:
        torch.testing.assert_close(one[name], four[name], rtol=1e-4, atol=1e-5)


@pytest.mark.two_process
def test_two_processes_equal_one(tmp_path):
    train(network(), TinyTask(), settings(tmp_path / "one"))
    run_two("tests/pose_tools/tiny_training.py", tmp_path / "two", "micro_batch_size=2")
    one, two = checkpoint(tmp_path / "one"), checkpoint(tmp_path / "two")
    assert len(two["rng"]) == 2
    for name in one["model"]:
        torch.testing.assert_close(one["model"][name], two["model"][name], rtol=1e-4, atol=1e-5)
    logs = [[json.loads(line) for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("one", "two")]
    for a, b in zip(*logs, strict=True):
        a.pop("samples_per_second", None), b.pop("samples_per_second", None)
        assert a == pytest.approx(b, rel=1e-4)


def test_every_epoch_sees_every_sample_once():
    length, batch = 22, 5
    for epoch in range(3):
        seen = [step_indices(epoch * 4 + i, length, batch, seed=3) for i in range(4)]
        assert {e for e, _ in seen} == {epoch}
        indices = np.concatenate([i for _, i in seen])
        assert len(set(indices.tolist())) == 20 and indices.max() < length
    assert step_indices(0, length, batch, 3)[1].tolist() != step_indices(4, length, batch, 3)[1].tolist()


def test_learning_rate_rises_stays_and_falls():
    s = TrainingSettings(output="x", max_steps=100, warmup_steps=10, decay_fraction=0.4, final_factor=0.1, learning_rate=2.0)
    rates = [learning_rate(step, s) for step in range(101)]
    assert rates[0] == pytest.approx(0.2) and rates[9:61] == pytest.approx([2.0] * 52) and rates[100] == pytest.approx(0.2)
    assert all(a > b for a, b in zip(rates[60:100], rates[61:], strict=True))


def test_refusals_name_the_remedy(tmp_path):
    with pytest.raises(TrainingError, match="multiple of micro_batch_size 3"):
        train(network(), TinyTask(), settings(tmp_path / "a", micro_batch_size=3))
    with pytest.raises(TrainingError, match="5 samples do not fill one batch of 8"):
        train(network(), TinyTask(5), settings(tmp_path / "b"))
    with pytest.raises(TrainingError, match="best_metric is 'accuracy', the evaluation gave goodness"):
        train(network(), TinyTask(), settings(tmp_path / "c", best_metric="accuracy"))
    train(network(), TinyTask(), settings(tmp_path / "d", max_steps=2, evaluate_every=2))
    before = (tmp_path / "d/checkpoint.pt").read_bytes()
    with pytest.raises(TrainingError, match="already holds a run.*resume=true"):
        train(network(), TinyTask(), settings(tmp_path / "d"))
    assert (tmp_path / "d/checkpoint.pt").read_bytes() == before


def test_a_log_line_cut_in_half_and_a_damaged_checkpoint(tmp_path):
    train(network(), TinyTask(), settings(tmp_path, max_steps=6))
    log, lines = tmp_path / "log.jsonl", (tmp_path / "log.jsonl").read_text().splitlines()
    log.write_text("\n".join([*lines, '{"step": 6, "lo']))
    train(network(), TinyTask(), settings(tmp_path, resume=True))
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines()]
    assert log.read_text().splitlines()[: len(lines)] == lines and steps == sorted(steps) and steps[-1] == 12
    whole = (tmp_path / "checkpoint.pt").read_bytes()
    (tmp_path / "checkpoint.pt").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(TrainingError, match=r"checkpoint\.pt: not a whole checkpoint .*choose another output"):
        train(network(), TinyTask(), settings(tmp_path, resume=True))


def test_a_full_disk_leaves_the_last_checkpoint(tmp_path, monkeypatch):
    train(network(), TinyTask(), settings(tmp_path, max_steps=5))
    before = (tmp_path / "checkpoint.pt").read_bytes()

    def full(state, file):
        Path(file).write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        train(network(), TinyTask(), settings(tmp_path, max_steps=10, resume=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before and not list(tmp_path.glob(".*.tmp"))


def test_two_runs_of_one_output(tmp_path):
    with exclusive(tmp_path), pytest.raises(TrainingError, match="another process is writing .*choose another output"):
        train(network(), TinyTask(), settings(tmp_path))
    assert not (tmp_path / "log.jsonl").exists()
    train(network(), TinyTask(), settings(tmp_path, max_steps=1))


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_checkpoint(tmp_path):
    base = settings(tmp_path, max_steps=5)
    train(network(), TinyTask(), base)
    before = (tmp_path / "checkpoint.pt").read_bytes()
    broken = TinyTask()
    broken.targets[:] = float("inf")
    with pytest.raises(TrainingError, match="at step 5 .*lower learning_rate"):
        train(network(), broken, replace(base, max_steps=12, resume=True))
    assert (tmp_path / "checkpoint.pt").read_bytes() == before


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboard")
    train(network(), TinyTask(), settings(tmp_path, max_steps=3, tensorboard=True))
    assert list((tmp_path / "tensorboard").glob("events*"))
