"""HOI-QA: what the writer puts into the published files, the reader gets out, in pixels of the frame as stored."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from data.groups import open_groups
from data.hoi_qa import NOMINAL_FRAMES, HOIQAError, answer_parts, read_hoi_qa
from data.synthetic.hoi_qa_writer import FRAME_SIZES, WORDINGS, write_hoi_qa
from data.synthetic.journal import read_lines
from pose_tools.grounding import parse_boxes

COUNT = 6


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    """An HOI-QA folder of six frames of each split."""
    folder = tmp_path_factory.mktemp("hoi-qa")
    for split in ("train", "val", "test"):
        assert list(write_hoi_qa(folder, split, 0, COUNT))[-1] == COUNT
    return folder


def records(world: Path, split: str) -> dict[str, dict]:
    return {r["image"]: r for r in read_lines(world / f"frames-{split}.jsonl", "")}


def frame_of(world: Path, sample) -> str:
    return str(Path(sample.messages[0]["content"][0]["image"]).relative_to(world.resolve()))


def test_frames_have_the_published_shapes_and_places(world):
    for image, record in records(world, "train").items():
        size = Image.open(world / image).size
        assert size == FRAME_SIZES[record["source"]] == (record["width"], record["height"])
        nominal = NOMINAL_FRAMES[record["source"]]
        assert size[0] / size[1] == nominal[0] / nominal[1]


@pytest.mark.parametrize("name", ["epic-kitchens-train", "ego4d-train", "epic-kitchens-val", "ego4d-val"])
def test_conversations_round_trip(world, name):
    path = world / "hoiqa_dataset" / f"{name}.json"
    rows, samples = json.loads(path.read_text()), list(read_hoi_qa(path))
    truth = records(world, name.rsplit("-", 1)[1])
    assert [s.id for s in samples] == [row["id"] for row in rows]
    boxes = 0
    for row, sample in zip(rows, samples, strict=True):
        turns = [turn["value"].replace("<image>\n", "") for turn in row["conversations"]]
        record = truth[frame_of(world, sample)]
        true_boxes = [thing["bbox_xyxy"] for thing in (*record["hands"], *record["objects"])]
        assert [m["content"][-1]["text"] for m in sample.messages[::2]] == turns[::2]
        for message, turn in zip(sample.messages[1::2], turns[1::2], strict=True):
            assert "".join(p.get("gap", "") + p.get("verbatim", p.get("text")) for p in message["content"]) == turn
            for part in message["content"]:
                if part["type"] == "box":
                    boxes += 1
                    off = min(np.abs(np.array(part["bbox_xyxy"]) - box).max() for box in true_boxes)
                    assert off <= 0.01 * record["width"], "a box's hundredths are truncated, never more than one off"
    assert boxes > 3


def test_only_the_first_question_loses_its_marks(world, tmp_path):
    row = json.loads((world / "hoiqa_dataset/ego4d-train.json").read_text())[0]
    values = (" <image>\nwhere\nis it ", "here", "and\n<image> now", "there")
    (tmp_path / "rows.json").write_text(json.dumps([{**row, "conversations": [{"value": value} for value in values]}]))
    [sample] = read_hoi_qa(tmp_path / "rows.json", frames=world)
    assert [message["content"][-1]["text"] for message in sample.messages] == ["whereis it", "here", "and\n<image> now", "there"]


@pytest.mark.parametrize("name", ["epic-test", "ego4d-test"])
def test_referrals_round_trip(world, name):
    samples = list(read_hoi_qa(world / "hoiqa_dataset" / f"{name}.json"))
    truth = records(world, "test")
    assert len(samples) > 8 and len(samples) % 2 == 0
    for refer, identify in zip(samples[::2], samples[1::2], strict=True):
        record = truth[frame_of(world, refer)]
        noun, box = identify.targets["text"], refer.targets["boxes"][0]
        named = {f"{h['side']} hand": h["bbox_xyxy"] for h in record["hands"]} | {o["name"]: o["bbox_xyxy"] for o in record["objects"]}
        assert refer.messages[0]["content"][1]["text"] == f"Where is the {noun}"
        assert np.abs(np.array(box) - named[noun]).max() < 1e-3
        (asked,) = parse_boxes(identify.messages[0]["content"][1]["text"], (record["width"], record["height"]), "minigpt")
        assert np.abs(np.array(asked.bbox_xyxy) - box).max() <= 0.01 * record["width"]


def test_interactions_round_trip(world):
    samples = list(read_hoi_qa(world / "hoiqa_dataset" / "epic-visor-test.json"))
    truth = records(world, "test")
    both = 0
    for sample in samples:
        record, question = truth[frame_of(world, sample)], sample.messages[0]["content"][1]["text"]
        hands = {h["side"]: h for h in record["hands"]}
        if "hands of the person" in question:
            assert np.allclose(sample.targets["boxes"], [hands[s]["bbox_xyxy"] for s in ("left", "right")], atol=1e-3)
            both += 1
        elif question.startswith("[refer] Where is the"):
            side = "left" if "left" in question else "right"
            assert np.allclose(sample.targets["boxes"], [hands[side]["bbox_xyxy"]], atol=1e-3)
        elif question.startswith("[vqa] What is the object in the"):
            side = "left" if "left" in question else "right"
            assert sample.targets["text"] == record["objects"][hands[side]["held"]]["name"]
    assert samples and both
    trained = {re.sub(r"\{\w+\}", "…", words) for kind, several in WORDINGS.items() if kind != "refer" for words in several}
    asked = {re.sub("left|right|cup|bottle|bowl|plate|box|ball|knife|spoon", "…", s.messages[0]["content"][1]["text"]) for s in samples}
    assert len(asked) > 3 and not trained & asked


def test_as_a_training_set(world):
    groups = open_groups("hoi_qa", world / "hoiqa_dataset" / "epic-kitchens-train.json")
    assert len(groups) == COUNT // 2
    first = groups.read(0, 0)
    assert len({s.messages[0]["content"][0]["image"] for s in first}) == 1
    some = open_groups("hoi_qa", world / "hoiqa_dataset" / "epic-kitchens-train.json", limit=2)
    assert [str(p) for p in some.pictures()] == [some.read(i, 0)[0].messages[0]["content"][0]["image"] for i in range(len(some))]


def copy(world: Path, tmp_path: Path, name: str) -> Path:
    shutil.copytree(world, tmp_path / "copy")
    return tmp_path / "copy" / "hoiqa_dataset" / name


def test_missing_frames(world, tmp_path):
    path = copy(world, tmp_path, "epic-kitchens-train.json")
    rows = json.loads(path.read_text())
    gone = rows[0]["image"]
    (tmp_path / "copy" / f"{gone}.jpg").unlink()
    with pytest.raises(HOIQAError, match="missing.*frames="):
        list(read_hoi_qa(path))
    kept = list(read_hoi_qa(path, max_missing=1.0))
    assert [s.id for s in kept] == [row["id"] for row in rows if row["image"] != gone]
    assert [s.id for s in read_hoi_qa(path, frames=world)] == [row["id"] for row in rows]


def test_published_training_pictures_start_under_epics_frames(world, tmp_path):
    """The published loader joins EPIC's `image` to `…/EPIC_Kitchens/frames`, the tests' `image_path` to nothing."""
    path = copy(world, tmp_path, "epic-kitchens-train.json")
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([{**row, "image": row["image"].removeprefix("EPIC_Kitchens/frames/")} for row in rows]))
    pictures = [sample.messages[0]["content"][0]["image"] for sample in read_hoi_qa(path, max_missing=0)]
    assert pictures == [str((tmp_path / "copy").resolve() / f"{row['image']}.jpg") for row in rows]


def test_bad_files_are_one_clear_error_each(world, tmp_path):
    path = copy(world, tmp_path, "ego4d-test.json")
    rows = json.loads(path.read_text())
    key = next(iter(rows))

    def refuse(content: str | dict | list, match: str, name: str = "bad.json") -> None:
        bad = path.with_name(name)
        bad.write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(HOIQAError, match=match):
            list(read_hoi_qa(bad))

    refuse(path.read_text()[:200], "not whole json")
    refuse([], "expected a json list or object of records")
    refuse({"a": {"something": 1}}, "the first record has")
    refuse({key: {**rows[key], "image_path": "../../../etc/passwd.jpg"}}, "leaves the frames' folder")
    refuse({key: {**rows[key], "bbox": [5, 5, 1, 9]}}, "x1 <= x2")
    refuse({key: {**rows[key], "bbox": [5, 5, float("nan"), 9]}}, "the box is .*nan")
    refuse({key: {**rows[key], "image_path": 3}}, "neither 'image' nor 'image_path'")
    refuse([{"id": "x", "image_path": rows[key]["image_path"], "conversations": [{"value": "one turn"}]}], "pairs")
    refuse("", "pickle", "bad.pkl")
    Image.new("RGB", (300, 300)).save(path.parent.parent / "square.jpg")
    refuse({key: {**rows[key], "image_path": "square.jpg"}}, "is 300x300")
    (path.parent.parent / "text.jpg").write_text("no picture")
    refuse({key: {**rows[key], "image_path": "text.jpg"}}, "not a picture")
    with pytest.raises(HOIQAError, match="no such file"):
        list(read_hoi_qa(path.with_name("nothing.json")))


hundredths = st.lists(st.integers(0, 100), min_size=4, max_size=4).map(
    lambda v: [min(v[0], v[2]), min(v[1], v[3]), max(v[0], v[2]), max(v[1], v[3])]
)


@given(st.lists(st.tuples(st.sampled_from(["", "cup", "left hand"]), hundredths), min_size=1, max_size=4), st.text("abc ,.", max_size=8))
def test_answers_keep_every_box_and_word(boxes, words):
    """Boxes in a sentence come out in order with their numbers and labels, and no letter is lost."""
    pieces = ["{" + "".join(f"<{v}>" for v in box) + "}" for _, box in boxes]
    sentence = (
        words
        + " ".join(f"<p>{label}</p> {piece}" if label else f" {piece}" for (label, _), piece in zip(boxes, pieces, strict=True))
        + words
    )
    parts = answer_parts(sentence, (200, 100))
    found = [p for p in parts if p["type"] == "box"]
    assert np.allclose([p["bbox_xyxy"] for p in found], [[b[0] * 2, b[1], b[2] * 2, b[3]] for _, b in boxes])
    assert [p.get("label", "") for p in found] == [label for label, _ in boxes]
    assert "".join(p.get("gap", "") + p.get("verbatim", p.get("text", "")) for p in parts) == sentence.rstrip()


@given(st.text(max_size=60))
def test_any_answer_is_readable(answer):
    parts = answer_parts(answer, (10, 10))
    assert parts and all(p["type"] in ("text", "box") for p in parts)
