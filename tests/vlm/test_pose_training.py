"""What the scripts that train the specialists share: one batch to look at, what --publish needs, and a clean end."""

from __future__ import annotations

import ast

import pytest
import torch

from pose_tools.training import TrainingError
from pose_tools.user_error import UserError
from tests.pose_tools.tiny_training import TinyTask, network, settings
from vlm.commands.console import CommandError
from vlm.commands.pose_training import best_of_run, fit_or_check, training_command


def test_a_check_prints_the_means_of_one_batch_and_trains_nothing(tmp_path, capsys):
    task, model = TinyTask(), network()
    fit_or_check(model, task, settings(tmp_path / "run"), check_only=True)
    printed = ast.literal_eval(capsys.readouterr().out)
    batch = task.collate([task.sample(i, 0) for i in range(8)])
    with torch.no_grad():
        output = model(batch["inputs"])
    fit = (output - batch["targets"]).square()[batch["valid"] > 0].mean()
    size = output.square().sum(1).mean()
    assert printed == pytest.approx({"fit": float(fit), "size": float(size), "total": float(fit + 0.1 * size)}, abs=1e-4)
    assert not (tmp_path / "run").exists() and all(torch.equal(a, b) for a, b in zip(model.parameters(), network().parameters()))


def test_what_is_published_is_the_best_of_the_run(tmp_path, capsys):
    training = settings(tmp_path / "run")
    for asset, message in ((None, "needs `asset`"), ("a", "best.safetensors is missing: train first")):
        with pytest.raises(TrainingError, match=message):
            best_of_run(training, asset)
    fit_or_check(network(), TinyTask(), training)
    asset, weights, scores = best_of_run(training, "a")
    model = network()
    model.load_state_dict(weights)
    with torch.no_grad():
        assert asset == "a" and TinyTask().evaluate(model) == pytest.approx({"goodness": scores["goodness"]})
    assert f"step 12, best: step {scores['step']}, goodness {scores['goodness']:.3f}\n" in capsys.readouterr().out
    with pytest.raises(TrainingError, match="lengths.json is missing: train first"):
        best_of_run(training, "a", "lengths.json")


def test_what_a_person_can_mend_is_one_line():
    with pytest.raises(CommandError, match="no room"), training_command(KeyError):
        raise KeyError("no room")
    with pytest.raises(UserError, match="no room"), training_command():
        raise TrainingError("no room")
    with pytest.raises(KeyError), training_command():
        raise KeyError("ours")
