"""The clips of `make run`: what is picked is read back as it was, and answered and drawn like any other."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from data.groups import DatasetError
from data.sample import Sample, Source, user
from scripts import pick_demo_pictures as pick
from vlm.agent import Turn
from vlm.answers import NoneAnswer, TrajectoryAnswer
from vlm.commands.demo_questions import path_error_text, truth_text
from vlm.examples import ExamplesError, read_examples
from vlm.show import drawn


def sample(folder: Path, goal: str, side: str = "left", action: str = "reach", valid: bool = True) -> Sample:
    frames = [str(folder / f"frame_{k}.jpg") for k in range(3)]
    targets = {
        "action": action,
        "side": side,
        "goal": goal,
        "future": np.arange(16, dtype=float).reshape(2, 4, 2) + len(goal),
        "valid": np.array([[valid] * 4, [False] * 4]),
        "future_times": np.arange(1, 5) / 4,
    }
    question = user({"type": "video", "video": frames, "times": [-0.5, -0.25, 0.0]}, f"Where does it go to take the {goal}?")
    return Sample(f"P01-{goal}", [question], Source("synthetic clips"), targets)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for k in range(3):
        Image.new("RGB", (64, 48), (80 * k, 90, 100)).save(tmp_path / f"frame_{k}.jpg")
    return tmp_path


def picked(monkeypatch: pytest.MonkeyPatch, groups: list[list[Sample]], out: Path) -> list:
    out.mkdir()
    opened = SimpleNamespace(size=len(groups), read=lambda index, epoch: groups[index])
    monkeypatch.setattr(pick, "open_groups", lambda *_, **__: opened)
    return pick.pick_clips(Path("clips"), out)


def test_the_first_clip_with_two_goals_of_one_hand_is_picked_and_read_back(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    one_goal = [sample(folder, "red cup"), sample(folder, "red cup")]
    two_hands = [sample(folder, "red cup"), sample(folder, "blue bowl", side="right")]
    misses = [sample(folder, "red cup"), sample(folder, "blue bowl", action="miss")]
    good = [sample(folder, "blue bowl", action="pause"), sample(folder, "red cup"), sample(folder, "green box")]
    out = folder / "out"
    questions = picked(monkeypatch, [one_goal, two_hands, misses, good], out)
    (out / "questions.json").write_text(json.dumps(questions))
    first, second = read_examples(out)
    assert "red cup" in first.ask and "green box" in second.ask and first.files == second.files and not first.boxes
    medium = first.open()
    assert medium.is_clip and medium.times == (-0.5, -0.25, 0.0) and medium.size == (64, 48)
    assert first.paths is not None and second.paths is not None and first.paths.valid is not None
    np.testing.assert_allclose(first.paths.points[0], good[1].targets["future"][0])
    np.testing.assert_array_equal(first.paths.valid, good[1].targets["valid"])
    assert "left hand goes to" in truth_text(first) and "right hand" not in truth_text(first)
    off = TrajectoryAnswer(first.paths.points + [3.0, 4.0])
    assert path_error_text(Turn([off], ""), first.paths) == "path: 5 pixels off on average (ADE), 5 at its end (FDE)"
    assert path_error_text(Turn([NoneAnswer()], ""), first.paths).startswith("wrong")
    assert drawn(medium, [], true_paths=first.paths).shape[2] == 3


def test_too_few_clips_and_a_broken_list_are_one_clear_line(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out = folder / "out"
    with pytest.raises(DatasetError, match="0 of 1 clips with two goals"):
        picked(monkeypatch, [[sample(folder, "red cup")]], out)
    no_times = {"name": "a", "ask": "?", "tool": False, "clip": ["0.jpg"], "times": [], "future": [], "valid": [], "future_times": [1]}
    for broken in ("{", '[{"name": "a"}]', json.dumps([no_times])):
        (out / "questions.json").write_text(broken)
        with pytest.raises(ExamplesError, match="questions.json"):
            read_examples(out)
    with pytest.raises(ExamplesError, match="clone"):
        read_examples(folder / "nowhere")
