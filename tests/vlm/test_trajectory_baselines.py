"""Forecasts without a vision-language model: where they start, what they learn, and that they do not see the future."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.sample import Sample, Source, user
from tests.vlm.test_trajectory_evaluation import questions, sample
from vlm.evaluation import trajectory_run
from vlm.evaluation.trajectory import ClipQuestion
from vlm.evaluation.trajectory_baselines import FORECASTS, MeanPath, answer_all, constant_velocity, last_position
from vlm.evaluation.trajectory_mlp import MLPSettings, features, train_mlp
from vlm.evaluation.trajectory_scoring import path_errors


def test_forecasts_start_where_the_hands_are_and_an_unseen_hand_is_put_in_the_middle() -> None:
    targets = sample(0, 0).targets | {"past": np.array([[[10, 10], [12, 10], [14, 10]], [[0, 0]] * 3], float)}
    targets["past_valid"] = np.array([[True] * 3, [False] * 3])
    q = ClipQuestion(Sample("x", [user("?")], Source("t"), targets))
    np.testing.assert_allclose(last_position(q)[0], [[14, 10]] * 4)
    np.testing.assert_allclose(constant_velocity(q)[0], [[16, 10], [18, 10], [20, 10], [22, 10]])
    assert abs(FORECASTS["Kalman"](q)[0, -1, 0] - 22) < 4
    for method in FORECASTS.values():
        np.testing.assert_allclose(method(q)[1], [[48, 32]] * 4)
    nowhere = ClipQuestion(Sample("y", [user("?")], Source("t"), {**targets, "past": None, "past_valid": None, "past_times": None}))
    np.testing.assert_allclose(last_position(nowhere), 2 * [4 * [[48, 32]]])


def test_where_one_moment_is_known_hands_stay_there_in_one_row(tmp_path: Path) -> None:
    now = {"past": np.array([[[14.0, 10.0]], [[0.0, 0.0]]]), "past_valid": np.array([[True], [False]]), "past_times": np.array([0.0])}
    q = ClipQuestion(Sample("x", [user("?")], Source("t"), sample(0, 0).targets | now))
    found = trajectory_run.baseline_replies([q], None, tmp_path)
    assert list(found) == ["last position"] and list(trajectory_run.baseline_replies(questions(1), None, tmp_path)) == list(FORECASTS)
    for method in FORECASTS.values():
        np.testing.assert_allclose(method(q), [[[14, 10]] * 4, [[48, 32]] * 4])


def test_the_mean_path_is_the_mean_displacement_of_valid_steps() -> None:
    asked = questions(30)
    mean = MeanPath(asked)
    moves = np.stack([q.future - last_position(q) for q in asked])
    np.testing.assert_allclose(mean(asked[3]) - last_position(asked[3]), np.nanmean(moves, axis=0))


def test_a_network_is_the_same_when_trained_again_and_when_read_from_its_file(tmp_path: Path) -> None:
    train, settings = questions(40), MLPSettings(goal=True, steps=60, width=32, check_every=20)
    first = train_mlp(train, settings, tmp_path)
    (file,) = tmp_path.glob("past_and_goal-*.safetensors")
    kept = file.read_bytes()
    read = train_mlp(train, settings, tmp_path)
    again = train_mlp(train, settings, tmp_path / "other")
    for model in (read, again):
        np.testing.assert_array_equal(model.answer(train[5], True), first.answer(train[5], True))
    assert file.read_bytes() == kept == next((tmp_path / "other").glob("*.safetensors")).read_bytes()
    train_mlp(train[:-1], settings, tmp_path)
    assert len(list(tmp_path.glob("*.safetensors"))) == 2  # other questions, another file


@pytest.mark.slow
def test_the_goal_point_tells_what_the_past_does_not(tmp_path: Path) -> None:
    train, test = questions(150), questions(180)[-50:]
    ade = {}
    for goal in (False, True):
        model = train_mlp(train, MLPSettings(goal=goal, steps=300, width=48, layers=3, batch_size=128, lr=4e-3, check_every=60), tmp_path)
        ade[goal] = np.nanmean(path_errors(test, answer_all(test, lambda q, m=model, g=goal: m.answer(q, g)), {}).ade)
    still = np.nanmean(path_errors(test, answer_all(test, last_position), {}).ade)
    assert ade[True] < 0.35 * still and ade[False] > 0.8 * still


def test_features_do_not_see_the_future() -> None:
    one = sample(0, 0)
    other = Sample("b", one.messages, one.source, {**one.targets, "future": one.targets["future"] + 9})
    a, b = (features([ClipQuestion(s)], False) for s in (one, other))
    np.testing.assert_array_equal(a, b)
