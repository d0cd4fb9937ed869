"""Clips on disk: what the writer wrote is what the reader reads; an interrupted run is a whole one; broken folders say what is broken."""

from __future__ import annotations

import json
import logging
import os
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.epic_clips import EpicClips, FrameError, read_clips
from data.epic_kitchens import EpicError, observed_frames, read_actions, read_label
from data.groups import DatasetError, open_groups
from data.synthetic import clip_questions, epic_writer, factors
from data.synthetic.epic_writer import START_FRAME, ClipSettings, annotation_rows, make_clips, read_clip_records
from pose_tools.body_models.read import UnsafePickleError

SIZE = 96
COUNT = 5


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def make(folder: Path, count: int = COUNT, workers: int = 1) -> Path:
    list(make_clips(folder, ClipSettings("train", 4, SIZE), count, workers))
    return folder


@pytest.fixture(scope="module")
def written(tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("clips") / "train")


@pytest.fixture
def folder(written: Path, tmp_path: Path) -> Path:
    """A copy to break."""
    return Path(shutil.copytree(written, tmp_path / "train"))


def test_the_layout_is_the_published_one(written: Path):
    rows = read_actions(written / "EPIC_100_train.csv")
    records = read_clip_records(written)
    assert [row.uid for row in rows] == list(range(len(rows))) == [a["uid"] for r in records for a in r["actions"]]
    assert [row.narration for row in rows] == [a["narration"] for r in records for a in r["actions"]]
    assert sorted(p.name for p in (written / "labels").iterdir()) == sorted(f"label_{row.uid}.pkl" for row in rows)
    frames = sorted(str(p.relative_to(written)) for p in written.rglob("*.jpg"))
    assert frames == sorted(name for record in records for name in record["frames"]) and len(set(frames)) == 10 * COUNT
    numbers = observed_frames(START_FRAME)
    assert [int(name[-14:-4]) for name in records[0]["frames"]] == numbers and len(set(numbers)) == 10
    assert {row.verb for row in rows} <= set(epic_writer.VERBS) and {row.noun for row in rows} <= {*factors.NAMES, ""}


def test_what_was_written_is_read(written: Path):
    reader = EpicClips(written)
    records = read_clip_records(written)
    assert len(reader) == len(records) == COUNT and not reader.skipped
    for index, (clip, record) in enumerate(zip(reader.clips, records, strict=True)):
        assert [str(path.relative_to(written)) for path in clip.frames] == record["frames"]
        samples = reader.samples(index, split="train", seed=0)
        assert len(samples) == len(record["actions"]) and len({s.targets["start"] for s in samples}) == 1
        for sample, action in zip(samples, record["actions"], strict=True):
            targets = sample.targets
            assert (targets["narration"], targets["side"], targets["action"]) == (action["narration"], action["side"], action["kind"])
            assert targets["size"] == (SIZE, SIZE) and targets["future_times"].tolist() == [0.25, 0.5, 0.75, 1.0]
            for hand in range(2):
                np.testing.assert_array_equal(targets["past_valid"][hand], record["past_valid"][hand])
                if action["future"][hand] is None:
                    assert not targets["valid"][hand].any()
                    continue
                np.testing.assert_allclose(targets["future"][hand], np.array(action["future"][hand])[5::5], atol=1e-3)
                np.testing.assert_array_equal(targets["valid"][hand], np.array(action["future_valid"][hand])[5::5])
                np.testing.assert_array_equal(targets["past"][hand], record["past"][hand])
            (part,) = sample.messages[1]["content"]
            np.testing.assert_array_equal(part["points"][part["valid"]], targets["future"][targets["valid"]])


def test_labels_hold_the_homographies(written: Path):
    record = read_clip_records(written)[0]
    np.testing.assert_array_equal(read_label(written / "labels/label_0.pkl")["homography"], record["homographies"])


def test_stopped_and_continued_is_uninterrupted(written: Path, tmp_path: Path):
    steps = make_clips(tmp_path / "train", ClipSettings("train", 4, SIZE), COUNT)
    assert [next(steps) for _ in range(3)] == [0, 1, 2]
    steps.close()
    assert len(EpicClips(tmp_path / "train")) == 2, "a folder that was stopped can be read"
    make(tmp_path / "train")
    assert contents(tmp_path / "train") == contents(written)


@pytest.mark.slow
@pytest.mark.two_process
def test_one_worker_is_two(written: Path, tmp_path: Path):
    assert contents(make(tmp_path / "train", workers=2)) == contents(written)


def test_a_real_folder_has_no_journal(folder: Path):
    plain = [s.targets for s in read_clips(folder)]
    (folder / "clips.jsonl").unlink()
    samples = list(read_clips(folder))
    for sample, known in zip(samples, plain, strict=True):
        np.testing.assert_array_equal(sample.targets["future"], known["future"])
        assert sample.targets["goal"] is None and sample.source.dataset == "epic_kitchens"
        # a label tells the last observed moment, and no other
        assert sample.targets["past_times"].tolist() == known["past_times"][-1:].tolist() == [0.0]
        there = known["past_valid"][:, -1]
        assert sample.targets["past_valid"][:, 0].tolist() == there.tolist() and there.any()
        np.testing.assert_allclose(sample.targets["past"][there, 0], known["past"][there, -1], atol=2e-3)
        assert sample.targets["narration"] in sample.messages[0]["content"][1]["text"].replace("?", "")


def test_other_frames_and_horizons(written: Path):
    reader = EpicClips(written, steps=5, step_rate=5.0)
    sample = reader.samples(0, split="train", seed=0)[0]
    record = read_clip_records(written)[0]["actions"][0]
    hand = next(h for h in range(2) if record["future"][h] is not None)
    np.testing.assert_allclose(sample.targets["future"][hand], np.array(record["future"][hand])[4::4], atol=1e-3)
    with pytest.raises(EpicError, match="beyond the second"):
        EpicClips(written, steps=8)


def test_missing_frames_are_counted_and_too_many_are_an_error(folder: Path, caplog):
    record = read_clip_records(folder)[1]
    (folder / record["frames"][4]).unlink()
    with caplog.at_level(logging.WARNING):
        reader = EpicClips(folder, tolerance=0.5)
    assert len(reader) == COUNT - 1 and "1 have missing frames" in caplog.text
    with pytest.raises(EpicError, match=r"have missing frames, such as action \d+: 1 of 10 .*jpg.*Complete the folder"):
        EpicClips(folder)
    with pytest.raises(DatasetError, match="missing frames"):
        open_groups("clip_trajectory", folder)


def spoil(folder: Path, **paths: np.ndarray) -> None:
    content = {"hand_trajs": {side: {"traj": path} for side, path in paths.items()}, "homography": np.eye(3)}
    (folder / "labels/label_0.pkl").write_bytes(pickle.dumps(content))


def test_labels_of_nan_or_without_hands_are_left_out(folder: Path):
    actions = len(read_actions(folder / "EPIC_100_train.csv"))
    for paths, reason in (({"LEFT": np.full((21, 2), np.nan)}, "broken"), ({}, "without hands")):
        spoil(folder, **paths)
        reader = EpicClips(folder, tolerance=0.5)
        assert sum(reader.skipped.values()) == 1 and reason in next(iter(reader.skipped))
        assert sum(len(clip.actions) for clip in reader.clips) == actions - 1
    assert not EpicClips(folder, wording="narration").skipped, "the published set has them, with neither hand valid"
    (folder / "labels/label_0.pkl").unlink()
    assert EpicClips(folder, tolerance=0.5).skipped == {"have no label, or a broken one": 1}


@pytest.mark.parametrize("content", [b"", b"no picture", None])
def test_a_frame_that_is_no_picture_is_named(folder: Path, content: bytes | None):
    last = folder / read_clip_records(folder)[0]["frames"][-1]
    last.write_bytes(last.read_bytes()[:300] if content is None else content)
    with pytest.raises(FrameError, match=f"{last.name}: not a picture"):  # training goes on past a few
        EpicClips(folder).samples(0, split="train", seed=0)


def test_a_file_of_questions_without_any_is_refused(folder: Path):
    frame = read_clip_records(folder)[0]["frames"][-1]
    (folder / "questions.json").write_text(json.dumps({frame: "Where would I begin?"}))
    with pytest.raises(EpicError, match="no clip can be used"):
        EpicClips(folder, wording="reasoning", questions=folder / "questions.json")


def test_points_outside_the_frame_are_not_valid(folder: Path):
    path = np.stack([np.linspace(90, 130, 21), np.full(21, 50.0)], -1)
    spoil(folder, LEFT=path)
    targets = EpicClips(folder).samples(0, split="train", seed=0)[0].targets
    assert targets["valid"].tolist() == [[False] * 4, [False] * 4]
    np.testing.assert_allclose(targets["future"][0], path[5::5])


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_label_with_code_is_refused(folder: Path):
    (folder / "labels/label_0.pkl").write_bytes(pickle.dumps({"hand_trajs": Code()}))
    with pytest.raises(UnsafePickleError, match="label_0.pkl"):
        EpicClips(folder, tolerance=1.0)
    with pytest.raises(DatasetError, match="label_0.pkl: the file asks for .*nothing was run"):
        open_groups("clip_trajectory", folder, options={"tolerance": 1.0})


def test_folders_that_are_none(tmp_path: Path):
    with pytest.raises(EpicError, match="no annotation files"):
        EpicClips(tmp_path)
    for name in ("EPIC_100_train.csv", "EPIC_100_validation.csv"):
        (tmp_path / name).write_text(annotation_rows([]))
    with pytest.raises(EpicError, match="several annotation files"):
        EpicClips(tmp_path)
    with pytest.raises(EpicError, match="no clip can be used"):
        EpicClips(tmp_path, annotations=tmp_path / "EPIC_100_train.csv")


def test_held_out_wordings_are_made_of_trained_words():
    trained, held_out = clip_questions.ways("train"), clip_questions.ways("test")
    assert not set(trained) & set(held_out) and clip_questions.ways("val") == held_out

    def words(texts: tuple[str, ...]) -> set[str]:
        return {word.strip("?.,").lower() for text in texts for word in text.split()}

    assert words(held_out) <= words(trained)


def test_a_hand_that_is_not_the_nearest_is_named():
    for seed in range(20):
        rng = np.random.default_rng(seed)
        assert "left hand" in clip_questions.question("take the red cup", rng, "test", "left", name_side=True)
        both = clip_questions.question("turn the red bowl to the left", rng, "test", None, plural=True)
        assert "hands" in both and "does" not in both
    with pytest.raises(ValueError, match="split"):
        clip_questions.question("wait", np.random.default_rng(0), "other")


def test_words_change_with_the_seed_only(written: Path):
    reader = EpicClips(written)

    def asked(seed: int) -> list[str]:
        return [s.messages[0]["content"][1]["text"] for i in range(COUNT) for s in reader.samples(i, split="train", seed=seed)]

    assert asked(0) == asked(0) != asked(1)


def test_what_the_published_numbers_take_for_granted_is_said(folder: Path, caplog):
    """Labels in pixels of 456 x 256, and uids of validation that go on from training's."""
    train, validation = folder / "EPIC_100_train.csv", folder / "EPIC_100_validation.csv"
    EpicClips(folder)
    assert "456" not in caplog.text, "a synthetic folder counts in pixels of its own frames"
    (folder / "clips.jsonl").unlink()
    EpicClips(folder)
    assert f"its frames are {SIZE} x {SIZE}" in caplog.text and "first_uid" not in caplog.text
    shutil.copy(train, validation)
    EpicClips(folder, annotations=validation)
    assert f"first_uid={len(read_actions(train))}" in caplog.text


def test_questions_about_frames_of_no_action_are_counted(folder: Path, caplog):
    asked = read_clip_records(folder)[0]["frames"][-1]
    file = folder / "q.json"
    file.write_text(json.dumps({asked: '"Where?"', "P09/rgb_frames/P09_01/frame_0000000001.jpg": '"Where?"'}))
    assert len(EpicClips(folder, wording="reasoning", questions=file)) == 1
    assert "1 of 2 frames with questions are the last observed one of no action here, such as P09/" in caplog.text
    file.write_text(json.dumps({asked.replace("/", "\\"): '"Where?"'}))
    with pytest.raises(EpicError, match="no clip can be used: of .* none is asked about"):
        EpicClips(folder, wording="reasoning", questions=file)


@pytest.mark.parametrize("options", [{"steps": 0}, {"step_rate": 0}, {"paraphrase_rate": 3}, {"fps": 0}, {"count": 0}])
def test_options_that_mean_nothing_are_refused(written: Path, options):
    with pytest.raises(EpicError, match="expected positive numbers"):
        EpicClips(written, **options)
