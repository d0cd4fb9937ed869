"""HOI-QA files from annotations: whole videos to one split, nothing lost on the way, what is missing or broken is named."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.hoi_qa import read_hoi_qa, summarise
from data.hoi_qa_files import write_files
from data.hoi_qa_generate import conversations, read_ego4d, read_visor
from scripts.make_hoi_qa import main
from tests.data.test_hoi_qa_generate import EGO4D, visor

VIDEOS = [f"P{number:02d}_01" for number in range(12)]


@pytest.fixture
def annotations(tmp_path: Path) -> list[Path]:
    """A VISOR file of one frame for each of twelve videos, and Ego4D's."""
    text = json.dumps(visor("k", "hand-not-in-contact"))
    for video in VIDEOS:
        (tmp_path / f"{video}.json").write_text(text.replace("P01_01", video))
    (tmp_path / "fho_main.json").write_text(json.dumps(EGO4D))
    return [tmp_path / f"{video}.json" for video in VIDEOS]


def test_every_question_of_every_video_is_in_one_file(annotations: list[Path], tmp_path: Path) -> None:
    fho = tmp_path / "fho_main.json"
    found = write_files(tmp_path / "out", visor=annotations, ego4d=[fho], val_share=0.4)
    rows = {name: json.loads((tmp_path / "out" / name).read_text()) for name in found}
    train, val = (found[f"epic-kitchens-{split}.json"] for split in ("train", "val"))
    assert train.videos and val.videos and not train.videos & val.videos and train.videos | val.videos == set(VIDEOS)
    whole = [c for path in annotations for f in read_visor(path) for c in conversations(f)]
    whole += [c for f in read_ego4d(fho) for c in conversations(f)]
    key = lambda row: row["id"]  # noqa: E731
    assert sorted((row for content in rows.values() for row in content), key=key) == sorted(whole, key=key)
    for name, content in rows.items():
        assert found[name].types.total() == len(content)
        if content:
            assert summarise(tmp_path / "out" / name).videos == len(found[name].videos)


def test_missing_frames_and_tests_videos_are_left_out(annotations: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    there, tested = VIDEOS[:3], VIDEOS[2]
    for video in there:
        frame = tmp_path / f"EPIC_Kitchens/frames/{video}/frame_0000000140.jpg"
        frame.parent.mkdir(parents=True)
        Image.fromarray(np.zeros((270, 480, 3), np.uint8)).save(frame)
    (tmp_path / "test.json").write_text(json.dumps([{"image_path": f"EPIC_Kitchens/frames/{tested}/frame_1.jpg"}]))
    words = ["--out", tmp_path / "out", "--frames", tmp_path, "--val-share", "0", "--not-videos-of", tmp_path / "test.json"]
    assert main([*map(str, ["--visor", *annotations, *words, "--types", "Q1", "Q6"])]) == 0
    printed = capsys.readouterr().out
    assert "2 pictures, 2 videos; Q1 6, Q6 6\n  9 frames are missing, such as" in printed
    samples = list(read_hoi_qa(tmp_path / "out/epic-kitchens-train.json", frames=tmp_path, max_missing=0))
    assert {sample.source.video_id for sample in samples} == set(there) - {tested} and len(samples) == 12


def test_a_clip_of_the_tests_leaves_out_its_whole_video(tmp_path: Path) -> None:
    """HOI-QA's folders of Ego4D frames have the uids of clips, fho_main.json those of the videos that they were cut from."""
    [video] = EGO4D["videos"]
    [interval] = video["annotated_intervals"]
    intervals = [{**interval, "clip_uid": "clip-1"}, {**interval, "clip_uid": "clip-2"}, {**interval, "clip_uid": None}]
    (tmp_path / "fho_main.json").write_text(json.dumps({"videos": [{**video, "annotated_intervals": intervals}]}))
    (tmp_path / "ego4d-test.json").write_text(json.dumps({"k": {"image_path": "Ego4D/v2/frames/clip-2/frame_1.jpg"}}))
    words = ["--ego4d", tmp_path / "fho_main.json", "--out", tmp_path / "out", "--val-share", 0]
    for more, expected in (([], {"abc"}), (["--not-videos-of", tmp_path / "ego4d-test.json"], set())):
        assert main([*map(str, words + more)]) == 0
        rows = json.loads((tmp_path / "out" / "ego4d-train.json").read_text())
        assert {Path(row["image_path"]).parent.name for row in rows} == expected


@pytest.mark.parametrize(
    "damage, message",
    [
        (lambda rows: rows[0].pop("id"), r"a.json, record 0: .*'id'"),
        (lambda rows: rows[0].update(segments=[[["x", 1]]]), "a.json, record 0"),
        (lambda rows: rows[0].update(segments=[[]]), "a.json, record 0"),
    ],
)
def test_a_broken_record_is_named_and_nothing_is_written(damage, message, tmp_path: Path, capsys: pytest.CaptureFixture) -> None:
    content = visor("k", "k")
    damage(content["video_annotations"][0]["annotations"])
    (tmp_path / "a.json").write_text(json.dumps(content))
    assert main(["--visor", str(tmp_path / "a.json"), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    assert re.search(message, said) and not (tmp_path / "out").exists()
