"""HOI-QA pairs from the data sets' own annotations: every type, side and contact, in a form that the reader reads back."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.hoi_qa import HOIQAError, read_hoi_qa, summarise
from data.hoi_qa_generate import conversations, pairs, read_ego4d, read_frame_mapping, read_visor, split_of


def square(x: float, y: float, side: float = 192) -> list:
    return [[[x, y], [x + side, y], [x + side, y + side / 2]], [[x, y + side]]]


def visor(left: str | None, right: str | None, **more) -> dict:
    rows = [
        {"id": "a", "name": "left hand", "segments": square(192, 108), "in_contact_object": left},
        {"id": "b", "name": "right hand", "segments": square(960, 108), "in_contact_object": right},
        {"id": "k", "name": "knife", "segments": square(384, 540)},
        {"id": "p1", "name": "plate", "segments": square(0, 0)},
        {"id": "p2", "name": "plate", "segments": square(1000, 800)},
        {"id": "e", "name": "pan", "segments": []},
    ]
    rows = [row for row in rows if row.get("in_contact_object", "") is not None]
    image = {"name": "P01_01_frame_0000000140.jpg", "video": "P01_01", "image_path": "P01/P01_01_frame_0000000140.jpg"}
    return {"video_annotations": [{"image": image, "annotations": rows, **more}]}


EGO4D = {
    "videos": [
        {
            "video_uid": "abc", "video_metadata": {"width": 1440, "height": 1080},
            "annotated_intervals": [{"narrated_actions": [{"narration_text": "#C C cuts the onion with the knife", "frames": [
                {"frame_number": 77, "boxes": [
                    {"object_type": "right_hand", "structured_noun": None, "bbox": {"x": 144, "y": 108, "width": 144, "height": 108}},
                    {"object_type": "object_of_change", "structured_noun": "onion_(red)",
                     "bbox": {"x": 720, "y": 540, "width": 72, "height": 54}},
                ]}, {"frame_number": 78, "boxes": []}]}]}],
        }
    ]
}  # fmt: skip


def frame_of(tmp_path: Path, content: dict, read=read_visor):
    (tmp_path / "a.json").write_text(json.dumps(content))
    [frame] = read(tmp_path / "a.json")
    return frame


def answers(frame) -> dict[str, str]:
    return {question.split("] ", 1)[1]: answer for _, question, answer in pairs(frame)}


def test_visor_masks_sides_and_contact(tmp_path):
    frame = frame_of(tmp_path, visor("k", "hand-not-in-contact"))
    assert (frame.image_path, frame.video) == ("EPIC_Kitchens/frames/P01_01/frame_0000000140.jpg", "P01_01")
    said = answers(frame)
    assert said["Where can the left hand be seen?"] == "{<10><10><20><27>}" and said["{<10><10><20><27>}"] == "left hand"
    assert said["Where is the thing that the left hand holds?"] == said["Where can the knife be seen?"] == "{<20><50><30><67>}"
    assert (said["What is held in the left hand?"], said["What is held in the right hand?"]) == ("knife", "none")
    assert said["Where is the thing that the right hand holds?"] == "none" and said["Which hand holds the knife?"] == "left hand"
    assert said["Does the right hand touch something?"].startswith("No") and said["Does the left hand touch something?"].startswith("Yes")
    assert said["knife"] == "<p>knife</p> {<20><50><30><67>}" and "Where can the plate be seen?" not in said
    assert {kind for kind, _, _ in pairs(frame)} == {f"Q{n}" for n in range(1, 9)}


def test_both_none_and_unknown(tmp_path):
    assert answers(frame_of(tmp_path, visor("k", "k")))["Which hand holds the knife?"] == "both hands"
    alone = answers(frame_of(tmp_path, visor("k", None)))
    assert alone["Where can the right hand be seen?"] == "none" and "What is held in the right hand?" not in alone
    unknown = answers(frame_of(tmp_path, visor("k", "inconclusive")))
    assert "What is held in the right hand?" not in unknown and "Which hand holds the knife?" not in unknown


def gloved(*, hand: bool, on: object, touched: str | None) -> dict:
    """The left hand's frame with a rubber glove, as VISOR labels it: the hand touches the glove, the glove what it holds."""
    content = visor("g", "hand-not-in-contact")
    rows = content["video_annotations"][0]["annotations"]
    rows.append({"id": "g", "name": "rubber glove", "segments": square(96, 108), "on_which_hand": on, "in_contact_object": touched})
    return content if hand else {"video_annotations": [content["video_annotations"][0] | {"annotations": rows[1:]}]}


@pytest.mark.parametrize("hand, box", [(True, "{<5><10><20><27>}"), (False, "{<5><10><15><27>}")])
def test_a_glove_on_a_hand_is_that_hand(hand, box, tmp_path):
    said = answers(frame_of(tmp_path, gloved(hand=hand, on=["left hand"], touched="k")))
    assert said["Where can the left hand be seen?"] == box and "Where can the rubber glove be seen?" not in said
    assert said["What is held in the left hand?"] == "knife" and said["Which hand holds the knife?"] == "left hand"
    said = answers(frame_of(tmp_path, gloved(hand=hand, on=["left hand"], touched="glove-not-in-contact")))
    assert said["What is held in the left hand?"] == "none"


@pytest.mark.parametrize("on", [None, "inconclusive", ["left hand", "right hand"]])
def test_a_glove_on_no_hand_or_both_is_a_thing(on, tmp_path):
    content = gloved(hand=True, on=on, touched=None)
    said = answers(frame_of(tmp_path, content))
    assert said["What is held in the left hand?"] == "rubber glove" and said["Where can the rubber glove be seen?"] == "{<5><10><15><27>}"
    content["video_annotations"][0]["annotations"][-1]["name"] = "left glove"
    assert answers(frame_of(tmp_path, content))["Where can the left hand be seen?"] == "{<10><10><20><27>}"


def test_visor_s_frames_by_epic_s_numbers(tmp_path):
    """VISOR extracted its frames anew: the same picture has another number among EPIC-KITCHENS' released frames."""
    (tmp_path / "a.json").write_text(json.dumps(visor("k", "k")))
    (tmp_path / "frame_mapping.json").write_text(json.dumps({"P01_01": {"P01_01_frame_0000000140.jpg": "frame_0000000133.jpg"}}))
    mapping = read_frame_mapping(tmp_path / "frame_mapping.json")
    [frame] = read_visor(tmp_path / "a.json", mapping)
    assert frame.image_path == "EPIC_Kitchens/frames/P01_01/frame_0000000133.jpg"
    with pytest.raises(HOIQAError, match="a.json, record 0: the frame mapping has no frame 140 of P01_01"):
        list(read_visor(tmp_path / "a.json", {"P01_02": {}}))
    for content in ({"P01_01": {"a": "b"}}, ["P01_01"], {"P01_01": {"frame_1.jpg": 3}}):
        (tmp_path / "bad.json").write_text(json.dumps(content))
        with pytest.raises(HOIQAError, match="not VISOR's frame_mapping.json"):
            read_frame_mapping(tmp_path / "bad.json")


def test_a_plate_in_each_hand_is_not_asked_for_by_name(tmp_path):
    questions = [question for _, question, _ in pairs(frame_of(tmp_path, visor("p1", "p2")))]
    assert len(set(questions)) == len(questions) and "[vqa] Which hand holds the plate?" not in questions
    assert "[vqa] What is held in the right hand?" in questions


def test_ego4d_boxes_and_narration(tmp_path):
    frame = frame_of(tmp_path, EGO4D, read_ego4d)
    said = answers(frame)
    assert said["Where can the right hand be seen?"] == "{<10><10><20><20>}" and said["Where can the left hand be seen?"] == "none"
    assert said["What is the person doing here?"] == "The person cuts the onion with the knife."
    grounded = next(answer for kind, _, answer in pairs(frame) if kind == "Q7")
    assert grounded == "The person cuts the <p>onion</p> {<50><50><55><55>} with the knife."
    assert {kind for kind, _, _ in pairs(frame)} == {"Q1", "Q2", "Q6", "Q7", "Q8"}


@pytest.mark.parametrize("content, read, size", [(visor("k", "k"), read_visor, (480, 270)), (EGO4D, read_ego4d, (360, 270))])
def test_the_reader_reads_what_is_generated(tmp_path, content, read, size):
    frame = frame_of(tmp_path, content, read)
    file = tmp_path / frame.image_path
    file.parent.mkdir(parents=True)
    Image.fromarray(np.zeros((size[1], size[0], 3), np.uint8)).save(file)
    records = conversations(frame)
    (tmp_path / "train.json").write_text(json.dumps(records))
    samples = list(read_hoi_qa(tmp_path / "train.json", frames=tmp_path))
    assert [s.id for s in samples] == [r["id"] for r in records] and len({s.id for s in samples}) == len(samples)
    assert {s.source.video_id for s in samples} == {frame.video}
    boxes = {s.messages[0]["content"][1]["text"]: s.targets["boxes"] for s in samples}
    assert len(boxes["[refer] Where can the right hand be seen?"]) == 1
    assert {r["type"] for r in conversations(frame, ("Q1", "Q6"))} == {"Q1", "Q6"}


def test_counts_and_missing_frames_are_reported(tmp_path):
    frame = frame_of(tmp_path, visor("k", "k"))
    records = conversations(frame)
    (tmp_path / "train.json").write_text(json.dumps(records))
    found = summarise(tmp_path / "train.json", frames=tmp_path)
    assert (found.records, found.videos, found.pictures) == (len(records), 1, 1)
    tags = [question.split("]")[0].removeprefix("[") for _, question, _ in pairs(frame)]
    assert found.questions == {tag: tags.count(tag) for tag in tags}
    assert found.missing == (frame.image_path,)
    (tmp_path / frame.image_path).parent.mkdir(parents=True)
    (tmp_path / frame.image_path).touch()
    assert summarise(tmp_path / "train.json", frames=tmp_path).missing == ()
    (tmp_path / "test.json").write_text(json.dumps({"k": {"image_path": frame.image_path, "noun": "pan", "bbox": [0, 0, 1, 1]}}))
    assert summarise(tmp_path / "test.json", frames=tmp_path).questions == {"refer": 1, "identify": 1}


def test_a_video_is_in_one_split():
    videos = [f"P{n:02d}" for n in range(2000)]
    val = {video for video in videos if split_of(video) == "val"}
    assert 60 < len(val) < 140 and val == {video for video in reversed(videos) if split_of(video) == "val"}
    assert val != {video for video in videos if split_of(video, seed=1) == "val"}


def test_files_of_another_form_are_refused(tmp_path):
    for content, read in (({"videos": []}, read_visor), (visor("k", "k"), read_ego4d), ([], read_visor)):
        (tmp_path / "a.json").write_text(json.dumps(content))
        with pytest.raises(HOIQAError, match="expected an object with a list under"):
            list(read(tmp_path / "a.json"))
    bad = visor("k", "k")
    bad["video_annotations"][0]["image"]["name"] = "x"
    with pytest.raises(HOIQAError, match="record 0: image has name 'x'"):
        frame_of(tmp_path, bad)
