"""A conversation on the terminal: earlier answers go along, their paths too; words appear as they are written."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import LogitsProcessor, LogitsProcessorList

from pose_tools.image_io import read_image
from pose_tools.views import letterbox
from tests.vlm.test_answer_video import clip, hands, model, says_a_path  # noqa: F401, fixtures
from vlm import HandVLMProcessor
from vlm.agent import _as_parts
from vlm.answers import Paths, parse, write
from vlm.commands import answer
from vlm.commands.console import run
from vlm.generation import PathGeneration
from vlm.model import HandVLM


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, says_a_path) -> list[dict]:  # noqa: F811
    """What the model is given, call by call, with the paths it wrote."""
    calls: list[dict] = []
    generate = HandVLM.generate

    def watched(self, input_ids, **kwargs):
        output = generate(self, input_ids=input_ids, **kwargs)
        calls.append({"given": kwargs.get("trajectories"), "length": input_ids.shape[1], "wrote": output.trajectories})
        return output

    monkeypatch.setattr(HandVLM, "generate", watched)
    return calls


@pytest.fixture
def command(model: Path, hands: list[str], tmp_path: Path) -> list[str]:  # noqa: F811
    return ["--video", str(clip(tmp_path / "a.mp4")), "--model", str(model), "--json", str(tmp_path / "a.json")]


def test_questions_go_along_with_the_paths_before_them(command: list[str], asked: list[dict], tmp_path: Path, capsys):
    where = ["--ask", "Where will my left hand go?", "--ask", "And then?", "--ask", "And at last?", "--draw", str(tmp_path / "a.png")]
    assert run(answer.main, [*command, *where]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert [turn["question"] for turn in record["turns"]] == ["Where will my left hand go?", "And then?", "And at last?"]
    assert record["size"] == [80, 60] and "question" not in record
    assert [None if call["given"] is None else len(call["given"]) for call in asked] == [None, 1, 2]
    for number, call in enumerate(asked[1:], start=1):
        wrote = torch.cat([earlier["wrote"][0] for earlier in asked[:number]])
        torch.testing.assert_close(call["given"].reshape(wrote.shape), wrote, atol=2e-5, rtol=0)
        assert call["length"] > asked[number - 1]["length"]
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if line.startswith("> ")] == ["> Where will my left hand go?", "> And then?", "> And at last?"]
    assert sum("left hand goes to" in line for line in lines) == 3 and read_image(tmp_path / "a.png").shape[0] > 0


def test_one_question_is_as_before(command: list[str], asked: list[dict], tmp_path: Path):
    assert run(answer.main, [*command, "--ask", "Where will my left hand go?"]) == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["question"] == "Where will my left hand go?" and "turns" not in record and len(asked) == 1


def test_questions_are_read_until_an_empty_line(command: list[str], asked: list[dict], tmp_path: Path, monkeypatch, capsys):
    too_long = "where " * 900
    monkeypatch.setattr("sys.stdin", io.StringIO(f"Where will my hands go?\n{too_long}\nAnd then?\n\nnot asked\n"))
    assert run(answer.main, [*command, "--chat", "--ask", "Where is my left hand?"]) == 0
    said = [turn["question"] for turn in json.loads((tmp_path / "a.json").read_text())["turns"]]
    assert said == ["Where is my left hand?", "Where will my hands go?", "And then?"] and len(asked[2]["given"]) == 2
    assert "at most 4000 are read" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", io.StringIO("And then?"))
    assert run(answer.main, [*command, "--chat"]) == 0


def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    screen = Terminal()
    monkeypatch.setattr("sys.stdout", screen)
    monkeypatch.setattr("sys.stdin", io.StringIO(""))
    return screen


def test_words_that_a_terminal_has_seen_are_not_said_again(command: list[str], hands: list[str], model: Path, monkeypatch):  # noqa: F811
    class Words(LogitsProcessor):
        def __init__(self, words: list[int], start: int) -> None:
            self.words, self.start = words, start

        def __call__(self, input_ids, scores):
            forced = scores.new_full(scores.shape, float("-inf"))
            forced[:, self.words[min(input_ids.shape[1] - self.start, len(self.words) - 1)]] = 0
            return forced

    words = HandVLMProcessor.from_pretrained(model).tokenizer("left hand", add_special_tokens=False)["input_ids"]

    def says(self, input_ids, **kwargs):
        rule = Words([*words, self.generation_config.eos_token_id], input_ids.shape[1])
        return PathGeneration.generate(self, input_ids=input_ids, logits_processor=LogitsProcessorList([rule]), **kwargs)

    monkeypatch.setattr(HandVLM, "generate", says)
    screen = terminal(monkeypatch)
    assert run(answer.main, [*command, "--chat", "--ask", "What is it?"]) == 0
    assert screen.getvalue().split("\n") == ["> What is it?", "left hand", "", ""]


def test_a_terminal_sees_the_words_come(command: list[str], asked: list[dict], monkeypatch):
    screen = terminal(monkeypatch)
    assert run(answer.main, [*command, "--chat", "--ask", "Where will my left hand go?"]) == 0
    first = screen.getvalue().splitlines()
    assert first[0] == "> Where will my left hand go?" and first[1].split() == ["·"] * 4 and first[2].startswith("left hand goes to")


def test_something_must_be_asked(command: list[str], capsys):
    assert run(answer.main, command) == 1 and "--ask" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["[100, 300, 300, 400] <hand_traj><hand_traj>", "none", "red cup [100, 300, 300, 400]"])
def test_an_answer_of_parts_is_the_answer_as_it_was_written(text: str):
    """A place said before a path does not cost the path its points."""
    view = letterbox((640, 360), 512)
    answers = parse(text, view, "norm1000", Paths(np.full((2, 2, 2), 0.5), steps=2))
    parts = _as_parts(answers, text)
    assert [part["type"] for part in parts] == ["box"] * ("[" in text) + ["trajectory"] * ("<" in text) + ["none"] * (text == "none")
    assert write(parts, view, "norm1000").replace(" <", "<") == text.replace(" <", "<")
