"""Tool dialogues: the call that the question fixes, the tool's own words, an answer copied from them, and questions that need none."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from data.groups import open_groups
from data.sample import SampleError, user
from data.synthetic.questions import phrasings as ordinary_phrasings
from data.synthetic.scenes import read_scenes
from data.tool_dialogues import KINDS, OFFER, dialogues, phrasings, with_call, without_call
from pose_tools import tool
from pose_tools.detect import HandDetection, detection_tokens
from pose_tools.detect_tool import describe
from pose_tools.image_io import read_image
from pose_tools.small_detector import load_small_detector
from pose_tools.types import Media
from pose_tools.views import View
from tests.runs import make_detector, make_world
from vlm.answers import BoxAnswer, NoneAnswer, parse, write
from vlm.training_data import picture_of

HANDS = [HandDetection((10.3, 20.7, 50.2, 80.9), "left", 0.9), HandDetection((100, 30, 150.55, 90), "right", 0.8)]


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    folder = tmp_path_factory.mktemp("world")
    detector = make_detector(folder / "detector")
    config = json.loads((detector / "config.json").read_text())
    # The left hand is sure to be there, and what it holds; the right one never is.
    config["calibration"] = [[0, 3], [0, -3], [0, 3], [0, 3]]
    (detector / "config.json").write_text(json.dumps(config))
    return make_world(folder / "train", 6), str(detector)


def parts(message, kind):
    return [part for part in message["content"] if part["type"] == kind]


def test_wordings_are_many_and_held_out():
    for hand in ("left", "right", "both"):
        train, test = phrasings(hand, "train"), phrasings(hand, "test")
        assert len(set(train)) >= 10 and len(set(test)) >= 5 and not set(train) & set(test)
        assert phrasings(hand, "val") == test
        assert all(any(word in question.lower() for word in ("tool", "detect")) for question in train + test)
    for kind in ("hand_left", "hands", "held_left", "object", "contact"):  # nothing but these wordings tells that a call is wanted
        assert not any("tool" in q.lower() or "detect" in q.lower() for split in ("train", "test") for q in ordinary_phrasings(kind, split))


@pytest.mark.parametrize("hand", ["left", "right", "both"])
@pytest.mark.parametrize("found", [[], HANDS[:1], HANDS[1:], HANDS])
def test_the_answer_is_a_copy_of_the_result(hand, found):
    result = describe(found, (192, 192), hand=hand)
    _, call, reply, answer = with_call([user("where?")], result, hand)
    assert call["content"] == [{"type": "tool_call", "name": "detect_hands", "arguments": {"hand": hand}}]
    assert reply == {"role": "tool", "content": [{"type": "text", "text": result.text}]}
    view = View.identity((192, 192))
    told = {side: box for side, box in json.loads(result.text).items() if box}
    written = write(answer["content"], view, "norm1000")
    answers = parse(written, view, "norm1000")
    assert answers == [NoneAnswer()] if not told else [type(a) for a in answers] == [BoxAnswer] * len(told)
    assert [str(box) in written for box in told.values()] == [True] * len(told)
    assert written.count("hand") == (len(told) if hand == "both" else 0)


def test_the_call_runs_and_says_what_the_dialogue_says(world, monkeypatch):
    folder, detector = world
    monkeypatch.setattr("pose_tools.small_detector.DEFAULT_FOLDER", Path(detector))
    monkeypatch.setenv("HANDVLM_HANDS", "small")
    for record in read_scenes(folder)[:3]:
        media = Media(images=(read_image(folder / record["image"]),))
        for sample in dialogues(record, folder, split="train", seed=0, kinds=KINDS[:3], encoders=["detection"]):
            _, call, reply, _ = sample.messages
            (made,) = parts(call, "tool_call")
            result = tool.call(made["name"], media, made["arguments"], cache=None)
            assert parts(reply, "text")[0]["text"] == result.text
            np.testing.assert_array_equal(parts(reply, "pose")[0]["tokens"], result.tokens["detection"])


def test_dialogues_depend_on_seed_and_scene_alone(world):
    folder, detector = world
    records = read_scenes(folder)
    first = [dialogues(r, folder, split="train", seed=3, detector=detector) for r in records]
    assert first[::-1] == [dialogues(r, folder, split="train", seed=3, detector=detector) for r in records[::-1]]
    assert first != [dialogues(r, folder, split="train", seed=4, detector=detector) for r in records]
    for samples, record in zip(first, records):
        assert [s.targets["kind"] for s in samples[:3]] == ["tool_left", "tool_right", "tool_both"]
        assert len(samples) == 6 and all(s.tools == OFFER for s in samples)
        assert samples[2].targets["boxes"] == [hand["bbox_xyxy"] for hand in record["hands"]]
        assert all(not parts(m, "tool_call") for s in samples[3:] for m in s.messages)
        asked = [s.messages[0]["content"][1]["text"] for s in samples]
        assert [q in phrasings(hand, "train") for q, hand in zip(asked, ("left", "right", "both"))] == [True] * 3
        assert len({s.id for s in samples}) == 6


def test_kinds_and_the_reader(world):
    folder, detector = world
    record = read_scenes(folder)[0]
    (left,) = dialogues(record, folder, split="test", seed=0, kinds=["tool_left"], detector=detector)
    assert left.messages[0]["content"][1]["text"] in phrasings("left", "test")
    assert len(dialogues(record, folder, split="test", seed=0, kinds=["direct"], direct=2, detector="nowhere")) == 2
    with pytest.raises(ValueError, match=r"unknown dialogue kinds \['hands'\]"):
        dialogues(record, folder, split="test", seed=0, kinds=["hands"])
    groups = open_groups("tool_dialogues", folder, limit=2, kinds=["tool_both"], options={"detector": detector})
    assert [[s.id for s in groups.read(i, 0)] for i in range(2)] == [[f"{r['id']}/tool_both"] for r in read_scenes(folder)[:2]]


def test_cached_and_fresh_detections_make_the_same_dialogue(world):
    from data.detections import cached_detections
    from data.tool_dialogues import _known

    folder, detector = world
    records = read_scenes(folder)
    _known.cache_clear()
    fresh = [dialogues(r, folder, split="train", seed=0, detector=detector) for r in records]
    for samples in fresh:
        assert [len(parts(s.messages[-1], "box")) for s in samples[:3]] == [1, 0, 1]
    cached_detections(folder, [folder / r["image"] for r in records], detector=detector)
    _known.cache_clear()
    assert fresh == [dialogues(r, folder, split="train", seed=0, detector=detector) for r in records]
    tokens = _known(folder.absolute(), detector)[records[0]["image"]]
    hands = load_small_detector(detector).detect(read_image(folder / records[0]["image"]), least=0.5)
    np.testing.assert_allclose(tokens, detection_tokens(hands), rtol=1e-5)  # made in batches, so the last bit differs


@pytest.mark.parametrize("kind", ["tool_dialogues", "synthetic_referral", "trusted_detections"])
def test_pictures_behind_a_link_have_one_name(world, tmp_path, kind):
    """The caches of detections know them by it."""
    folder, detector = world
    (tmp_path / "linked").symlink_to(folder)
    groups = open_groups(kind, tmp_path / "linked", options={"detector": detector} if kind == "tool_dialogues" else {})
    shown = [picture_of(sample) for index in range(len(groups)) for sample in groups.read(index, 0)]
    there = [str(picture) for picture in groups.pictures()]
    assert there and all(picture in there for picture in shown if isinstance(picture, str))
    assert any(isinstance(picture, str) for picture in shown)


def test_an_ordinary_question_keeps_its_answer(world):
    folder, _ = world
    from data.synthetic.questions import questions

    for sample in questions(read_scenes(folder)[0], folder, split="train", seed=0):
        offered = without_call(sample)
        assert offered.messages == sample.messages and offered.tools == OFFER and sample.tools is None and offered.id != sample.id


def test_pictures_that_are_not_square_are_refused():
    with pytest.raises(SampleError, match="200x100"):
        with_call([user("where?")], describe(HANDS, (200, 100)), "both")
