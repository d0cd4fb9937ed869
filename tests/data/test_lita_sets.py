"""LITA's five tasks from files of their published forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from data import lita_strings as strings
from data.groups import DatasetError, open_groups
from data.lita_sets import LitaError, LitaSet
from pose_tools.video import VideoError, write_video

CAPTIONS = {
    "v_a": {"duration": 20.0, "timestamps": [[0.0, 5.0], [4.0, 20.0]], "sentences": ["A man cuts an onion. ", "He eats."]},
    "v_b": {"duration": 9.9, "timestamps": [[1.0, 2.0]], "sentences": ["Rain falls."]},
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for video, count in (("v_a", 7), ("v_b", 2)):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for number in range(count):
            Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / "frames" / video / f"{number:04d}.png")
    Image.new("RGB", (8, 6)).save(tmp_path / "frames" / "0001.png")
    return tmp_path


def opened(folder: Path, content: Any, task: str, **options: Any) -> LitaSet:
    (folder / "set.json").write_text(json.dumps(content))
    return LitaSet(folder / "set.json", task=task, media=folder / "frames", **options)


def words(sample) -> list[str]:
    return ["".join(part["text"] for part in message["content"] if part["type"] == "text") for message in sample.messages]


def test_dense_captions(folder: Path):
    found = opened(folder, CAPTIONS, "dvc")
    asked = {words(found.samples(0, seed)[0])[0] for seed in range(100)}
    assert asked == {f"{describe} {times}" for describe in strings.DESCRIBE for times in strings.WITH_TIMES}
    (sample,) = found.samples(0, 0)
    assert words(sample)[1] == "<t0> <t25> A man cuts an onion. <t20> <t99> He eats."
    frames = [Path(path).name for path in sample.messages[0]["content"][0]["video"]]
    assert frames == [f"{number:04d}.png" for number in np.round(np.linspace(0, 6, 100)).astype(int)]


def test_events(folder: Path):
    found = opened(folder, CAPTIONS, "event_loc")
    pairs = {tuple(words(found.samples(0, seed)[0])) for seed in range(300)}
    events = {"a man cuts an onion": "<t0> <t25>", "he eats": "<t20> <t99>"}
    assert pairs == {(f"{when.format(e)} {only}", t) for e, t in events.items() for when in strings.WHEN for only in strings.ONLY_TIMES}


def test_reasoning_is_one_sample_a_question(folder: Path):
    asked = [{"q": "When does it rain? ", "a": "<1.0> <2.5> Because of clouds."}, {"q": "Why?", "a": "So."}]
    record = {"v_b": {"duration": 10, "QA": asked}}
    samples = opened(folder, record, "temporal_reasoning").samples(0, 0)
    assert [words(sample) for sample in samples] == [["When does it rain?", "<t10> <t25> Because of clouds."], ["Why?", "So."]]
    assert samples[0].targets["duration"] == 10


@pytest.mark.parametrize("name, mark, end", [("nextqa", "?", " Answer the question using a short phrase."), ("videochat", "", "")])
def test_video_questions_are_one_conversation(folder: Path, name: str, mark: str, end: str):
    record = [{"video": "v_b", "QA": [{"q": "Who?", "a": "he"}, {"q": "where is he ", "a": "here"}]}]
    (sample,) = opened(folder, record, "vidqa", name=name).samples(0, 0)
    assert words(sample) == [f"Who?{end}", "he", f"Where is he{mark}{end}", "here"]
    assert [part["type"] for part in sample.messages[0]["content"]] == ["video", "text"]


def test_a_video_may_be_a_file(folder: Path):
    colours = [np.full((6, 8, 3), 40 * number, np.uint8) for number in range(7)]
    write_video(folder / "frames" / "7.mp4", colours, 5.0)
    found = opened(folder, [{"video": "7.mp4", "QA": [{"q": "who", "a": "he"}]}], "vidqa", frames=13)
    (part, _) = found.samples(0, 0)[0].messages[0]["content"]
    shades = [int(frame.mean()) // 40 for frame in (frame + 8 for frame in part["video"])]
    assert shades == np.round(np.linspace(0, 6, 13)).astype(int).tolist()
    (folder / "frames" / "7.mp4").write_text("no video")
    (part, _) = opened(folder, [{"video": "7.mp4", "QA": [{"q": "who", "a": "he"}]}], "vidqa").samples(0, 0)[0].messages[0]["content"]
    with pytest.raises(VideoError, match="7.mp4"):
        part["video"][0]


def test_the_validation_file_of_temporal_reasoning_is_a_list_of_questions(folder: Path):
    row = {"vid": "b", "duration": 10, "question": "When does it rain? ", "answer": "<1.0> <2.5> Because of clouds."}
    found = opened(folder, [row | {"question_id": 0}, row | {"question": "And when not?"}], "temporal_reasoning")
    asked = found.questions(0, 0)
    assert [words(sample)[0] for sample in asked] == ["When does it rain?", "And when not?"]
    assert [sample.targets["events"] for sample in asked] == [[[1.0, 2.5]]] * 2 and asked[0].source.video_id == "v_b"
    with pytest.raises(LitaError, match="record 1: b lasts 11 s, but 10 s before"):
        opened(folder, [row, row | {"duration": 11}], "temporal_reasoning")
    with pytest.raises(LitaError, match="record 0 has no 'duration', 'answer'"):
        opened(folder, [{"vid": "b", "question": "When?"}], "temporal_reasoning")


def test_pictures(folder: Path):
    turns = [("human", "<image>\nWhat is it?"), ("gpt", "A cup."), ("human", "Whose?"), ("gpt", "Mine.")]
    record = [{"id": "7", "image": "0001.png", "conversations": [{"from": speaker, "value": value} for speaker, value in turns]}]
    (sample,) = opened(folder, record, "imgqa").samples(0, 0)
    assert words(sample) == ["What is it?", "A cup.", "Whose?", "Mine."]
    assert sample.messages[0]["content"][0] == {"type": "image", "image": str(folder / "frames" / "0001.png")}


def test_frames_are_spread_evenly(folder: Path):
    (sample,) = opened(folder, CAPTIONS, "dvc", frames=3).samples(0, 0)
    assert [Path(path).stem for path in sample.messages[0]["content"][0]["video"]] == ["0000", "0003", "0006"]
    with pytest.raises(LitaError, match="0 frames of a video"):
        opened(folder, CAPTIONS, "dvc", frames=0)


def test_frames_of_a_short_video_stand_for_their_moments(folder: Path):
    """Repeated side by side, not the video over and over: `<t50>` of 100 is the middle."""
    (sample,) = opened(folder, CAPTIONS, "dvc").samples(1, 0)
    assert [Path(path).stem for path in sample.messages[0]["content"][0]["video"]] == ["0000"] * 50 + ["0001"] * 50


def test_every_event_is_looked_at_when_the_file_is_opened(folder: Path):
    """Any of them may be drawn later, in the middle of a training run."""
    good = {"duration": 9.0, "timestamps": [[0.0, 1.0]] * 9, "sentences": ["It rains."] * 9}
    for broken in ([float("nan"), 2.0], [1.0], ["soon", "later"]):
        record = good | {"timestamps": [*good["timestamps"], broken], "sentences": [*good["sentences"], "It snows."]}
        with pytest.raises(LitaError, match="1 are not of the task's form"):
            opened(folder, {"v_a": record}, "event_loc")


def test_captions_of_no_words_no_length_or_past_the_end(folder: Path):
    record = {"duration": 10.0, "timestamps": [[3.0, 3.0], [0.0, 4.0], [9.0, 12.5]], "sentences": ["Snap.", " ", "Goes on."]}
    content = {"v_a": record}
    (dense,) = opened(folder, content, "dvc").samples(0, 0)
    assert words(dense)[1].split() == "<t30> <t30> Snap. <t0> <t40> <t89> <t99> Goes on.".split()
    asked = opened(folder, content, "event_loc")
    assert {words(asked.samples(0, seed)[0])[1] for seed in range(40)} == {"<t30> <t30>", "<t89> <t99>"}
    assert [q.targets["events"] for q in asked.questions(0, 0)] == [[[3.0, 3.0]], [[9.0, 12.5]]]


def test_groups_change_with_the_pass_only(folder: Path):
    (folder / "set.json").write_text(json.dumps(CAPTIONS))
    options = {"task": "dvc", "media": str(folder / "frames")}
    groups, again = (open_groups("lita", folder / "set.json", options=options) for _ in range(2))
    assert [words(groups.read(0, 1)[0])] == [words(again.read(0, 1)[0])]
    assert len({words(groups.read(0, epoch)[0])[0] for epoch in range(30)}) > 3


@pytest.mark.parametrize(
    "content, task, said",
    [
        (CAPTIONS, "captions", "expected one of dvc"),
        ([], "dvc", "expected an object by video"),
        ({}, "vidqa", "expected a list"),
        ([{"QA": []}], "vidqa", "record 0 has no 'video'"),
        ({}, "dvc", "the file is empty"),
        ({"v_c": CAPTIONS["v_a"]}, "dvc", "1 have no video, or one without frames"),
        ({"v_a": {"duration": 0, "timestamps": [[0, 1]], "sentences": ["x"]}}, "dvc", "1 are not of the task's form"),
        ({"v_a": {"duration": 5, "timestamps": [[0, 1]], "sentences": []}}, "dvc", "1 are not of the task's form"),
        ({"../v_a": CAPTIONS["v_a"]}, "dvc", "leaves the folder"),
        ([{"image": "0001.png", "conversations": [{"from": "gpt", "value": "x"}]}], "imgqa", "not of the task's form"),
        ([{"video": "v_a", "QA": []}], "vidqa", "1 have nothing to ask"),
        ([{"video": "v_a", "QA": [{"q": " ", "a": "he"}]}], "vidqa", "1 have nothing to ask"),
        (
            [{"image": "0001.png", "conversations": [{"from": "human", "value": "<image>\n"}, {"from": "gpt", "value": "x"}]}],
            "imgqa",
            "1 have nothing to ask",
        ),
    ],
)
def test_broken_files_are_named(folder: Path, content: Any, task: str, said: str):
    with pytest.raises(LitaError, match=said):
        opened(folder, content, task)
    with pytest.raises(DatasetError, match=said):
        open_groups("lita", folder / "set.json", options={"task": task, "media": str(folder / "frames")})


@pytest.mark.parametrize("task", ["dvc", "event_loc"])
@pytest.mark.parametrize("event", [[5.0, 1.0], [15.0, 20.0], [-3.0, -1.0]])
def test_events_that_are_not_in_their_clip_are_counted(folder: Path, task: str, event: list[float]):
    """Turned round or elsewhere: their tokens would teach another moment, and no answer about them could be right."""
    broken = {"duration": 10.0, "timestamps": [event], "sentences": ["He sings."]}
    with pytest.raises(LitaError, match=f"1 have events that are not in their clip, such as 'v_b': .* from {event[0]} to {event[1]} s"):
        opened(folder, {"v_a": CAPTIONS["v_a"], "v_b": broken}, task)
    assert len(opened(folder, {"v_a": CAPTIONS["v_a"], "v_b": broken}, task, tolerance=0.5)) == 1


def test_moments_that_are_cut_at_a_clips_end_are_said(folder: Path, caplog):
    opened(folder, {"v_a": {"duration": 10.0, "timestamps": [[5.0, 10.04]], "sentences": ["He sings."]}}, "dvc")
    assert "outside" not in caplog.text, "rounding"
    opened(folder, {"v_a": {"duration": 10.0, "QA": [{"q": "When?", "a": "From <9.0> to <25>."}]}}, "temporal_reasoning")
    assert "1 moments lie outside their clips" in caplog.text


def test_frames_without_leading_zeros_are_in_the_order_of_their_numbers(folder: Path):
    for number in range(7):
        (folder / "frames/v_a" / f"{number:04d}.png").rename(folder / "frames/v_a" / f"frame{number + 5}.png")
    (sample,) = opened(folder, CAPTIONS, "dvc", frames=7).samples(0, 0)
    assert [Path(path).stem for path in sample.messages[0]["content"][0]["video"]] == [f"frame{number}" for number in range(5, 12)]


def test_a_file_with_a_byte_order_mark_or_a_video_twice(folder: Path):
    (folder / "set.json").write_text(json.dumps(CAPTIONS), encoding="utf-8-sig")
    assert len(LitaSet(folder / "set.json", task="dvc", media=folder / "frames")) == 2
    (folder / "set.json").write_text('{"v_a": 1, "v_a": 2}')
    with pytest.raises(LitaError, match="'v_a' stands there twice"):
        LitaSet(folder / "set.json", task="dvc", media=folder / "frames")
