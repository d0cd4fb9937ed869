"""Training rows: functions of seed and position, pose tokens in and out, errors that name the sample."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.detections import cache_file, cached_detections
from data.groups import DatasetError, JsonLines, open_groups, picture_of
from data.hoi_qa import read_hoi_qa
from data.sample import Sample, SampleError, Source, assistant, user
from data.synthetic.hoi_qa_writer import write_hoi_qa
from pose_tools.detect import THRESHOLDS, detection_tokens
from pose_tools.image_io import read_image
from pose_tools.small_detector import load_small_detector
from tests.runs import make_detector, make_world
from tests.tiny import tiny
from vlm import training_data
from vlm.packing import IGNORED
from vlm.settings import SettingsError
from vlm.training_data import DatasetSettings, DataSettings, TrainingRows, show_row, texts, with_pose


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world") / "train", 6)


@pytest.fixture(scope="module")
def detector(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_detector(tmp_path_factory.mktemp("detector"))


@pytest.fixture(scope="module")
def processor():
    return tiny("small")[1]


def rows(world: Path, processor, length: int = 40, seed: int = 0, *, detector: Path | None = None, dropout: float = 0.5, **dataset):
    data = DataSettings([DatasetSettings("synthetic_referral", str(world), **dataset)], pose_dropout=dropout)
    data.detector = str(detector) if detector else None
    return TrainingRows(data, processor, seed=seed, length=length)


def plain(row: dict) -> tuple:
    poses = {name: [np.nan_to_num(p).tolist() for p in found] for name, found in row["encoded"].poses.items()}
    return row["input_ids"], row["labels"], row["position_ids"], row["branches"], poses


def test_a_row_is_a_function_of_seed_and_position(world, processor, detector) -> None:
    one = rows(world, processor, detector=detector, pose_tokens=True, questions=2)
    forward = [plain(one[i]) for i in range(20)]
    fresh = rows(world, processor, detector=detector, pose_tokens=True, questions=2)
    assert [plain(fresh[i]) for i in reversed(range(20))] == forward[::-1]
    other = rows(world, processor, seed=1, detector=detector, pose_tokens=True, questions=2)
    assert [plain(other[i]) for i in range(20)] != forward
    assert forward[:6] != forward[6:12]  # a second pass asks in other words


def test_samples_of_one_picture_share_its_tokens_and_are_limited(world, processor) -> None:
    few = rows(world, processor, questions=2)
    for position in range(6):
        samples, _, _ = few.draw(position)
        assert len(samples) == 2 and len({picture_of(sample) for sample in samples}) == 1
        row = few[position]
        assert row["input_ids"].count(processor.image_token_id) == processor.image_seq_length
        assert set(row["branches"]) == {0, 1, 2} and any(label != IGNORED for label in row["labels"])
    assert all(sample.targets["kind"] == "hands" for p in range(6) for sample in rows(world, processor, kinds=["hands"]).draw(p)[0])


def test_pose_tokens_are_the_detectors_and_come_as_often_as_asked(world, processor, detector) -> None:
    slot = processor.pose_token_ids["detection"]
    count = [
        sum(slot in rows(world, processor, detector=detector, dropout=dropout, pose_tokens=True)[i]["input_ids"] for i in range(40))
        for dropout in (0.0, 0.5, 1.0)
    ]
    assert count[0] == 40 and 8 < count[1] < 32 and count[2] == 0
    always = rows(world, processor, detector=detector, dropout=0.0, pose_tokens=True)
    samples, name, generator = always.draw(0)
    hands = load_small_detector(detector).detect_batch([read_image(picture_of(samples[0]))], least=0.5)[0]
    expected = processor.pack([with_pose(sample.messages, "detection", detection_tokens(hands)) for sample in samples])
    assert plain(always.pack(samples, name, generator)) == plain(expected)


def test_detections_are_made_once_and_extended(world, detector, tmp_path, monkeypatch) -> None:
    world = make_world(tmp_path / "train", 3)
    pictures = open_groups("synthetic_referral", world).pictures()
    first = cached_detections(world, pictures[:2], detector=detector)
    assert [p.name for p in world.glob("detections-*.npz")] and all(tokens.shape == (2, 11) for tokens in first.values())
    pictures[0].unlink()  # what is known is not looked at again
    both = cached_detections(world, pictures, detector=detector)
    assert list(both) == ["images/000/000000.jpg", "images/000/000001.jpg", "images/000/000002.jpg"]
    for name, tokens in first.items():
        np.testing.assert_array_equal(tokens, both[name])
    alone = load_small_detector(detector).detect_batch([read_image(pictures[2])], least=0.5)[0]
    np.testing.assert_allclose(both["images/000/000002.jpg"], detection_tokens(alone), atol=1e-3)


def test_every_data_set_of_a_mixture_is_looked_at_by_its_detector(processor, detector, tmp_path) -> None:
    world = make_world(tmp_path / "train", 3)
    kinds = [DatasetSettings(kind, str(world)) for kind in ("tool_dialogues", "trusted_detections")]
    TrainingRows(DataSettings(kinds, detector=str(detector)), processor, seed=0, length=4)
    assert [file.name for file in world.glob("detections-*.npz")] == [cache_file(world, "detections", detector, THRESHOLDS["small"]).name]


def test_another_picture_is_taken_for_one_in_a_hundred_that_cannot_be_read(processor, tmp_path, caplog) -> None:
    turns = [{"from": "human", "value": "<image>\nWhere is my left hand?"}, {"from": "gpt", "value": "none"}]
    for number in range(100):
        Image.new("RGB", (8, 6), (number, 0, 0)).save(tmp_path / f"{number}.png")
    (tmp_path / "set.json").write_text(json.dumps([{"image": f"{number}.png", "conversations": turns} for number in range(100)]))
    dataset = DatasetSettings("lita", str(tmp_path / "set.json"), options={"task": "imgqa", "media": str(tmp_path)})

    def opened() -> TrainingRows:
        return TrainingRows(DataSettings([dataset]), processor, seed=0, length=100)

    def pictures(found: TrainingRows) -> list[np.ndarray]:
        return [found[position]["encoded"].pixels.pictures[0].numpy() for position in range(100)]

    order = [opened().mixture[position].index for position in range(100)]
    before = pictures(opened())
    (tmp_path / f"{order[3]}.png").write_bytes(b"no picture")
    after = pictures(opened())
    behind = order.index((order[3] + 1) % 100)
    assert np.array_equal(after[3], before[behind]) and "another is taken in its place" in caplog.text
    assert all(np.array_equal(a, b) for position, (a, b) in enumerate(zip(after, before)) if position != 3)
    (tmp_path / f"{order[5]}.png").write_bytes(b"no picture")
    with pytest.raises(SampleError, match=f"{order[5]}.png.*2 of the 100 pictures and videos"):
        pictures(opened())


def test_a_bad_sample_is_named(world, processor) -> None:
    some = rows(world, processor)
    good = some.draw(0)[0][0]
    question = good.messages[:1]
    silent = Sample("silent-7", question, Source("d"))
    missing = {"type": "image", "image": str(world / "images" / "none.jpg")}
    unread = Sample("gone-8", [user(missing, "where?"), assistant("none")], Source("d"))
    generator = np.random.default_rng(0)
    with pytest.raises(SampleError, match="'silent-7' .*without an answer"):
        some.pack([good, silent], "synthetic_referral", generator)
    with pytest.raises(SampleError, match="'gone-8' .*none.jpg"):
        some.pack([unread], "synthetic_referral", generator)


def test_rows_that_are_too_long_lose_samples_but_never_a_part_of_one(world, processor) -> None:
    whole = rows(world, processor)[0]
    shorter = rows(world, processor)
    shorter.settings.max_tokens = len(whole["input_ids"]) - 1
    row = shorter[0]
    assert max(row["branches"]) < max(whole["branches"]) and row["input_ids"] == whole["input_ids"][: len(row["input_ids"])]
    shorter.settings.max_tokens = 20
    with pytest.raises(SampleError, match="max_tokens is 20"):
        shorter[0]


def test_pose_tokens_need_a_model_that_reads_them(world) -> None:
    with pytest.raises(SettingsError, match="no encoder 'detection' .*it has: none"):
        rows(world, tiny("llava")[1], pose_tokens=True)


def test_a_row_shown_is_the_row_read_back(world, processor) -> None:
    some = rows(world, processor, questions=3)
    row = some[0]
    shown = show_row(row, processor)
    slots = f"<image>×{processor.image_seq_length}"
    assert shown.count(slots) == 1 and shown.count("【") == shown.count("】") == 3
    tokens = list(zip(row["input_ids"], row["labels"], row["branches"]))
    learnt = [[token for token, label, b in tokens if b == branch and label != IGNORED] for branch in (1, 2, 3)]
    assert [part.split("】")[0] for part in shown.split("【")[1:]] == processor.tokenizer.batch_decode(learnt)
    assert any("hand" in text for text in texts(some, 3))
    assert any("polite answers" in text for text in texts(some, 3, "vicuna_v1")), "a tokenizer learns the template's words too"


def test_data_sets_that_cannot_be_read_say_so(world, tmp_path) -> None:
    with pytest.raises(DatasetError, match="kind 'hoiqa', expected one of synthetic_referral"):
        open_groups("hoiqa", world)
    with pytest.raises(DatasetError, match="split 'dev'"):
        open_groups("synthetic_referral", world, split="dev")
    (tmp_path / "scenes.jsonl").write_text('{"id": 1}\n{"id": \n{"id": 3}\n{"id"')
    lines = JsonLines(tmp_path / "scenes.jsonl")
    assert len(lines) == 3 and lines[2] == {"id": 3}
    with pytest.raises(DatasetError, match=r"scenes.jsonl: line 2 is not JSON"):
        lines[1]
    with pytest.raises(DatasetError, match=r"scenes.jsonl: no such file"):
        open_groups("synthetic_referral", tmp_path / "..")


@pytest.mark.parametrize("kind", ["synthetic_referral", "tool_dialogues"])
def test_packed_samples_are_learnt_as_if_each_stood_alone(kind, world, detector) -> None:
    model, processor = tiny("small")
    dataset = DatasetSettings(kind, str(world), pose_tokens=kind == "synthetic_referral")
    dataset.options = {"encoders": ["detection"]} if kind == "tool_dialogues" else {}
    some = TrainingRows(DataSettings([dataset], detector=str(detector), pose_dropout=0.0), processor, seed=0, length=2)
    samples, name, generator = some.draw(1)
    together = some.pack(samples, name, generator)
    alone = [some.pack([sample], name, generator) for sample in samples]
    assert together["input_ids"].count(processor.pose_token_ids["detection"]) == (2 if kind == "synthetic_referral" else 6)

    def loss(rows: list) -> float:
        batch = processor.collate_packed(rows)
        return float(model(**batch, num_items_in_batch=1).loss)

    assert loss([together]) == pytest.approx(sum(loss([row]) for row in alone), rel=1e-5)
    assert loss([together, *alone]) == pytest.approx(2 * loss([together]), rel=1e-5)


def test_different_pose_tokens_do_not_share_a_prefix(world, processor) -> None:
    samples, _, _ = rows(world, processor).draw(0)
    conversations = [with_pose(sample.messages, "detection", np.full((1, 11), k, np.float32)) for k, sample in enumerate(samples[:2])]
    with pytest.raises(SampleError, match="open with different detection tokens"):
        processor.pack(conversations)


def test_hoi_qa_goes_on_past_a_frame_without_a_header(tmp_path, monkeypatch, caplog) -> None:
    list(write_hoi_qa(tmp_path, "train", 1, 4))
    dataset = DatasetSettings("hoi_qa", str(tmp_path / "hoiqa_dataset" / "epic-kitchens-train.json"))
    some = TrainingRows(DataSettings([dataset]), None, seed=0, length=1)
    pictures = some.groups["hoi_qa"].pictures()
    pictures[0].write_bytes(b"half a pic")
    with pytest.raises(SampleError, match=f"{pictures[0].name}: not a picture .*1 of the 2 pictures"):
        [some.draw(position) for position in range(2)]
    monkeypatch.setattr(training_data, "UNREADABLE", 0.5)
    some = TrainingRows(DataSettings([dataset]), None, seed=0, length=1)
    assert {picture_of(some.draw(position)[0][0]) for position in range(4)} == {str(pictures[1])}
    assert caplog.text.count("another is taken in its place") == 1


def test_hoi_qa_is_grouped_by_frame(tmp_path) -> None:
    list(write_hoi_qa(tmp_path, "train", 1, 2))
    processor = tiny("minigpt")[1]
    dataset = DatasetSettings("hoi_qa", str(tmp_path / "hoiqa_dataset" / "epic-kitchens-train.json"))
    some = TrainingRows(DataSettings([dataset]), processor, seed=0, length=1)
    count = len(list(read_hoi_qa(dataset.path)))
    assert len(some.groups["hoi_qa"]) == 1 and len(some.draw(0)[0]) == count == max(some[0]["branches"]) > 1
    (tmp_path / "hoiqa_dataset" / "other.json").write_text("{]")
    with pytest.raises(DatasetError, match="other.json"):
        open_groups("hoi_qa", tmp_path / "hoiqa_dataset" / "other.json")
