"""HandsOnVLM's conversations: every form in its published strings, and an EPIC-KITCHENS folder asked with them."""

from __future__ import annotations

import csv
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import handsonvlm_strings as strings
from data.epic_clips import EpicClips
from data.epic_conversations import narration_turns, read_paraphrases, with_path
from data.epic_kitchens import Action, EpicError, frame_path, observed_frames
from data.groups import open_groups
from data.sample import validate_messages

ACTION = Action(3, "P01", "P01_01", 121, 180, "cut the onion", "cut", "onion")
VIDEO = {"type": "video", "video": ["a.jpg"]}
PATH = {"type": "trajectory", "points": np.zeros((2, 4, 2)), "valid": np.ones((2, 4), bool)}


def texts(message: dict) -> str:
    """A message as published prompts write it: the path as `{}`."""
    return "".join(part["text"] if part["type"] == "text" else "{}" for part in message["content"] if part["type"] != "video")


@pytest.mark.parametrize("form", range(4))
def test_forms_are_the_published_ones(form: int):
    def filled(templates: tuple[str, ...], *words: str) -> set[str]:
        return {template.replace("{}", words[0], 1) if words else template for template in templates}

    narration = ACTION.narration
    predictions = {template.format(action=narration, noun="onion") for template in strings.PREDICTION_ANSWERS}
    predicted = [set(strings.PREDICTION_QUESTIONS), predictions]
    expected = {
        0: [filled(strings.ACTION_QUESTIONS, narration), filled(strings.ACTION_ANSWERS, narration)],
        1: [set(strings.GENERAL_QUESTIONS), set(strings.PATH_ANSWERS)],
        2: [*predicted, set(strings.DO_THIS_QUESTIONS), set(strings.PATH_ANSWERS)],
        3: [set(strings.GENERAL_QUESTIONS), set(strings.PATH_ANSWERS), *predicted],
    }[form]
    seen = [set() for _ in expected]
    for seed in range(60):
        turns = narration_turns(ACTION, VIDEO, PATH, np.random.default_rng(seed), form)
        validate_messages(turns)
        assert [turn["role"] for turn in turns] == ["user", "assistant"] * (len(expected) // 2)
        assert turns[0]["content"][0]["type"] == "video" and sum(part["type"] == "trajectory" for t in turns for part in t["content"]) == 1
        for place, turn in enumerate(turns):
            seen[place].add(texts(turn))
    assert seen == expected


def test_forms_are_drawn_evenly():
    lengths = [len(narration_turns(ACTION, VIDEO, PATH, np.random.default_rng(seed))) for seed in range(400)]
    assert 140 < lengths.count(4) < 260


def test_a_path_stands_where_the_template_has_it():
    assert with_path("So: {}.", PATH) == ("So: ", PATH, ".") and with_path("{}", PATH) == (PATH,)


def test_paraphrases_and_their_aliases(tmp_path: Path):
    file = tmp_path / "rephrase.json"
    file.write_text(json.dumps({"cut onion": ["slice the onion"], "chop onion": "cut onion"}))
    assert read_paraphrases(file) == {"cut onion": ("slice the onion",), "chop onion": ("slice the onion",)}
    for broken in ({"a": "a"}, {"a": "b", "b": "a"}, {"a": "c"}, {"a": []}, {"a": [3]}, []):
        file.write_text(json.dumps(broken))
        with pytest.raises(EpicError, match="rephrase.json"):
            read_paraphrases(file)
    with pytest.raises(EpicError, match="no json file"):
        read_paraphrases(tmp_path / "none.json")


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two actions of one video; the second one's left hand has no label, and its right hand leaves the frame."""
    row = {"participant_id": "P01", "video_id": "P01_01", "narration": "cut onion", "verb": "cut", "noun": "onion"}
    rows = [row | {"start_frame": start, "stop_frame": start + 60} for start in (301, 601)]
    with (tmp_path / "EPIC_100_train.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    path = np.stack([400 + 4 * np.arange(21.0), np.full(21, 100.0)], -1)
    (tmp_path / "labels").mkdir()
    for uid, hands in enumerate(({"LEFT": path - (300, 0), "RIGHT": path}, {"RIGHT": path})):
        content = {"hand_trajs": {side: {"traj": traj} for side, traj in hands.items()}}
        (tmp_path / "labels" / f"label_{uid}.pkl").write_bytes(pickle.dumps(content))
    for one in rows:
        for number in observed_frames(one["start_frame"]):
            frame = tmp_path / frame_path("P01", "P01_01", number)
            frame.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", (456, 256)).save(frame)
    return tmp_path


def part_of(sample) -> dict:
    return next(part for message in sample.messages for part in message["content"] if part["type"] == "trajectory")


def test_paths_count_hand_by_hand_and_keep_steps_outside_the_frame(folder: Path):
    clips = EpicClips(folder, wording="action", paraphrases=None)
    (both,), (right,) = (clips.samples(index, split="train", seed=0) for index in range(2))
    assert part_of(both)["valid"].all() and part_of(right)["valid"].tolist() == [[False] * 4, [True] * 4]
    np.testing.assert_allclose(part_of(right)["points"][1, :, 0], [420, 440, 460, 480], rtol=1e-6)
    assert both.messages[0]["content"][1]["text"] in {question.format("cut onion") for question in strings.ACTION_QUESTIONS}
    ours = part_of(EpicClips(folder).samples(1, split="train", seed=0)[0])
    assert ours["valid"].tolist() == [[False] * 4, [True, True, False, False]]


def test_reasoning_asks_what_the_file_asks_about_the_last_frame(folder: Path):
    last = frame_path("P01", "P01_01", observed_frames(601)[-1])
    (folder / "questions.json").write_text(json.dumps({last: '"Where next?"\n"And how?"', "P02/x": '"Other?"'}))
    clips = EpicClips(folder, wording="reasoning", questions=folder / "questions.json")
    assert [clip.name for clip in clips.clips] == [last]
    asked = {clips.samples(0, split="train", seed=seed)[0].messages[0]["content"][1]["text"] for seed in range(12)}
    assert asked == {"Where next?", "And how?"}
    for wording, questions in (("reasoning", None), ("action", folder / "questions.json"), ("other", None)):
        with pytest.raises(EpicError, match="wording"):
            EpicClips(folder, wording=wording, questions=questions)


def test_the_published_list_of_labels_says_which_actions_count(folder: Path):
    listed = folder / "video_info.json"
    for uids in ([1], [0, 1, 7]):
        listed.write_text(json.dumps(uids))
        assert [action.action.uid for clip in EpicClips(folder, wording="action").clips for action in clip.actions] == uids[:2]
    for content, said in (("[5]", "names none of the actions 0 to 1; first_uid"), ('["1"]', "expected a list of uids"), ("[", "not whole")):
        listed.write_text(content)
        with pytest.raises(EpicError, match=f"video_info.json: {said}"):
            EpicClips(folder, wording="action")


def test_groups_ask_in_any_wording_and_paraphrase(folder: Path):
    (folder / "rephrase.json").write_text(json.dumps({"cut onion": ["slice the onion"]}))
    options = {"wording": "narration", "paraphrases": str(folder / "rephrase.json"), "paraphrase_rate": 1.0}
    groups = open_groups("clip_trajectory", folder, options=options)
    said = " ".join(texts(m) for epoch in range(20) for index in range(2) for s in groups.read(index, epoch) for m in s.messages)
    assert "slice the onion" in said and "cut onion" not in said
    again = open_groups("clip_trajectory", folder, options=options)
    assert [texts(m) for m in again.read(1, 3)[0].messages] == [texts(m) for m in groups.read(1, 3)[0].messages]
