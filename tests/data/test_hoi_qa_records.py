"""HOI-QA's files a record at a time: opening one keeps places and pictures, and what is read later is what reading all of it gives."""

from __future__ import annotations

import json
import tracemalloc
from itertools import groupby
from pathlib import Path

import pytest
from PIL import Image

from data.groups import DatasetError, open_groups, picture_of
from data.hoi_qa import FrameError, HOIQAError, HOIQASet, read_hoi_qa
from data.hoi_qa_records import read_record, scan
from data.synthetic.hoi_qa_writer import write_hoi_qa

FILES = ("epic-kitchens-train", "ego4d-train", "epic-test", "ego4d-test", "epic-visor-test")


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hoi-qa")
    for split in ("train", "test"):
        list(write_hoi_qa(folder, split, 0, 6))
    return folder


def mixed_up(world: Path, name: str, folder: Path) -> Path:
    """A file whose records about one picture do not stand together."""
    rows = json.loads((world / "hoiqa_dataset" / f"{name}.json").read_text())
    pairs = list(rows.items()) if isinstance(rows, dict) else rows
    pairs = pairs[::3] + pairs[1::3] + pairs[2::3]
    path = folder / f"{name}.json"
    path.write_text(json.dumps(dict(pairs) if isinstance(rows, dict) else pairs))
    return path


@pytest.mark.parametrize("kinds", [None, ["refer", "vqa"], ["identify"]])
@pytest.mark.parametrize("name", FILES)
def test_groups_are_all_samples_by_picture(world, tmp_path, name, kinds):
    path = mixed_up(world, name, tmp_path)
    samples = [s for s in read_hoi_qa(path, frames=world) if kinds is None or s.targets["kind"] in kinds]
    first = {picture: place for place, picture in reversed(list(enumerate(map(picture_of, samples))))}
    samples.sort(key=lambda sample: first[picture_of(sample)])
    expected = [(Path(picture), list(group)) for picture, group in groupby(samples, picture_of)]
    for limit in (None, 2):
        groups = open_groups("hoi_qa", path, kinds=kinds, limit=limit, options={"frames": str(world)})
        read = [(picture, groups.read(index, 0)) for index, picture in enumerate(groups.pictures())]
        assert len(groups) == len(read) and read == expected[:limit]


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("indent", [None, 1])
def test_a_record_is_found_again_at_its_place(tmp_path, indent, newline):
    rows = [{"a": "ü€😀\n", "b": [1, {"c": "],["}]}, {}, [], 3, "x"]
    text = "\n " + json.dumps([{"first": 1}, *rows], indent=indent, ensure_ascii=False) + "\n"
    path = tmp_path / "rows.json"
    path.write_bytes(text.replace("\n", newline).encode())
    places = [(start, end) for _, _, start, end in scan(path)]
    assert [read_record(path, *place) for place in places] == [row for _, row, _, _ in scan(path)] == [{"first": 1}, *rows]


@pytest.mark.parametrize("text", ["", "[", '[{"a": 1}', '[{"a": 1},]', '[{"a": 1} {"a": 1}]', '[{"a": 1}] x', '[{"a": 1}, {"a": }]'])
def test_broken_lists_are_told_as_json_tells_them(tmp_path, text):
    path = tmp_path / "rows.json"
    path.write_text(text)
    with pytest.raises(ValueError) as error:
        json.loads(text)
    with pytest.raises(HOIQAError) as told:
        list(scan(path))
    assert str(told.value) == f"{path}: not whole json ({error.value}); fetch or write the file again"


def test_pictures_are_opened_when_they_are_asked_about(world, tmp_path, monkeypatch):
    path = mixed_up(world, "ego4d-train", tmp_path)
    rows = json.loads(path.read_text())
    path.write_text(json.dumps([*rows, {**rows[0], "image_path": "words.jpg"}]))
    (world / "words.jpg").write_text("no picture")
    with monkeypatch.context() as patch:
        patch.setattr(Image, "open", lambda *_: pytest.fail("a picture was opened"))
        groups = open_groups("hoi_qa", path, options={"frames": str(world)})
    assert groups.read(0, 0)
    with pytest.raises(FrameError, match="words.jpg: not a picture"):
        groups.read(len(groups) - 1, 0)


def test_a_box_that_cannot_be_is_told_when_it_is_read(world, tmp_path):
    path = mixed_up(world, "epic-test", tmp_path)
    key, row = next(iter(json.loads(path.read_text()).items()))
    path.write_text(json.dumps({key: {**row, "bbox": [5, 5, 1, 9]}}))
    groups = open_groups("hoi_qa", path, options={"frames": str(world)})
    with pytest.raises(DatasetError, match=f"{key}.*x1 <= x2"):
        groups.read(0, 0)


def test_a_record_that_is_no_object_is_named(world, tmp_path):
    path = mixed_up(world, "ego4d-train", tmp_path)
    path.write_text(json.dumps([json.loads(path.read_text())[0], 3]))
    with pytest.raises(HOIQAError, match="record 1: neither 'image' nor 'image_path'"):
        HOIQASet(path, frames=world)


def test_an_open_training_file_keeps_few_bytes_of_a_record(world, tmp_path):
    rows = json.loads((world / "hoiqa_dataset/ego4d-train.json").read_text())
    path = tmp_path / "rows.json"
    path.write_text(json.dumps(rows * 200))
    tracemalloc.start()
    records = HOIQASet(path, frames=world)
    kept, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert len(records.pictures) == 3 and kept < 50 * len(rows) * 200
