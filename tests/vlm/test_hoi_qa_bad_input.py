"""Broken files, frames, weights and answers around HOI-QA: one clear sentence each, or counted as wrong."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from data.hoi_qa import HOIQAError, read_hoi_qa
from data.synthetic.hoi_qa_writer import write_hoi_qa
from tests.tiny import tiny
from vlm.checkpoints.reading import CheckpointError
from vlm.commands import evaluate
from vlm.commands.console import CommandError
from vlm.evaluation.hoi_qa import published_form, read_items

BOX = "{<10><10><20><20>}"


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hoi-qa")
    for split in ("train", "test"):
        list(write_hoi_qa(folder, split, 0, 4))
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for part in tiny("minigpt", template="vlm4hoi"):
        part.save_pretrained(folder)
    return folder


def run(data: Path, out: Path, *more: object) -> None:
    assert evaluate.main(["hoi-qa", "--data", str(data), "--out", str(out), *map(str, more)]) == 0


def test_one_per_cent_of_frames_may_be_missing_and_half_may_not(world, tmp_path, caplog):
    row = json.loads((world / "hoiqa_dataset/ego4d-train.json").read_text())[0]
    gone = {**row, "image_path": row["image_path"].replace("frame_", "frame_9")}
    path = tmp_path / "hoiqa_dataset/rows.json"
    path.parent.mkdir()

    def read(missing: int) -> int:
        path.write_text(json.dumps([gone] * missing + [row] * (100 - missing)))
        return len(list(read_hoi_qa(path, frames=world)))

    assert read(1) == 99 and "1 of 100 records left out" in caplog.text
    for missing in (2, 50):
        with pytest.raises(HOIQAError, match=r"is missing, the 2\. of 2 records so far \(at most 1% of 100 may be\)"):
            read(missing)


def test_questions_without_a_frame_are_wrong_or_refused(world, model, tmp_path, capsys):
    shutil.copytree(world, tmp_path / "world")
    data = tmp_path / "world" / "hoiqa_dataset"
    frames = sorted({item.image_path for item in read_items(data)})
    (tmp_path / "world" / frames[0]).unlink()
    with pytest.raises(CommandError, match=r"questions have no frame under .*frame_0+\d?\.jpg \(at most 1% may be missing\)"):
        run(data, tmp_path / "out", "--model", model)
    run(data, tmp_path / "out", "--model", model, "--max-missing", 0.9, "--limit", 4)
    assert f"| all | {len(read_items(data))} |" in capsys.readouterr().out  # none is left out
    said = json.loads((tmp_path / "out" / "predictions.json").read_text())
    assert said.keys() == json.loads((data / "epic-test.json").read_text()).keys()


INVERTED, FAR, BEFORE = [5, 5, 1, 9], [2000, 5, 2100, 9], [-9, 5, -1, 9]


@pytest.mark.parametrize(
    "box, message", [(INVERTED, "x1 <= x2"), (FAR, "outside its frame of 1920x1080"), (BEFORE, "outside"), ("5 5 9 9", "the box is")]
)
def test_a_box_that_cannot_be_is_refused_where_it_is_read(box, message, world, tmp_path):
    shutil.copytree(world / "hoiqa_dataset", tmp_path / "data")
    file = tmp_path / "data" / "epic-test.json"
    rows = json.loads(file.read_text())
    key = next(iter(rows))
    rows[key]["bbox"] = box
    file.write_text(json.dumps(rows))
    for read in (lambda: list(read_hoi_qa(file, frames=world)), lambda: read_items(tmp_path / "data")):
        with pytest.raises(HOIQAError, match=f"{key}.*{message}"):
            read()


def test_compat_takes_the_tests_boxes_as_they_are(world, model, tmp_path, capsys):
    """The published scorer neither looks whether a true box is upright nor where it lies: its number of questions is that of the file."""
    shutil.copytree(world, tmp_path / "world")
    file = tmp_path / "world" / "hoiqa_dataset" / "epic-test.json"
    rows = json.loads(file.read_text())
    for row, box in zip(rows.values(), (INVERTED, FAR, BEFORE)):
        row["bbox"] = box
    file.write_text(json.dumps(rows))
    run(file.parent, tmp_path / "out", "--model", model, "--protocol", "compat", "--limit", 2)
    run(file.parent, tmp_path / "again", "--predictions", tmp_path / "out" / "predictions.json", "--protocol", "compat")
    assert capsys.readouterr().out.count(f"/{len(rows)}\nMean IoU Score") == 2
    with pytest.raises(HOIQAError, match="x1 <= x2"):
        run(file.parent, tmp_path / "strict", "--predictions", tmp_path / "out" / "predictions.json")


def test_a_training_answer_with_no_real_box_stays_text(world):
    from data.hoi_qa import answer_parts

    for answer in ("{<10><10><5><20>}", "{<10><10><150><20>}", "{<-1><0><5><20>}", "{<٣><1><5><20>}"):
        assert answer_parts(answer, (200, 100)) == [{"type": "text", "text": answer}]


@pytest.mark.parametrize("protocol", ["strict", "compat"])
@pytest.mark.parametrize("answer", [BOX * 10_000, "{<١٠><١٠><٢٠><٢٠>}", "{<10><10><20>", ""])
def test_strange_answers_are_scored_as_wrong_or_not_at_all(answer, protocol, world, tmp_path, capsys):
    items = read_items(world / "hoiqa_dataset")
    for name, content in published_form(items, {item.id: answer for item in items}).items():
        (tmp_path / f"said{'' if name == 'epic' else f'_{name}'}.json").write_text(json.dumps(content))
    run(world / "hoiqa_dataset", tmp_path / "out", "--predictions", tmp_path / "said.json", "--protocol", protocol)
    printed = capsys.readouterr().out
    assert f"| all | {len(items)} | 0.000 | 0.000" in printed if protocol == "strict" else "Final" in printed


def test_half_a_predictions_file_is_one_clear_error(world, tmp_path):
    for name in ("said", "said_ego4d", "said_hoi"):
        (tmp_path / f"{name}.json").write_text('{"a": {"question": "wh')
    with pytest.raises(HOIQAError, match=r"said.*\.json: not whole json"):
        run(world / "hoiqa_dataset", tmp_path / "out", "--predictions", tmp_path / "said.json")


def test_weights_that_are_not_numbers_are_refused_by_name(world, model, tmp_path):
    shutil.copytree(model, tmp_path / "model")
    file = tmp_path / "model" / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"][3, 5] = torch.nan
    save_file(tensors, file, {"format": "pt"})
    with pytest.raises(CheckpointError, match=r"the weights are damaged. not finite: lm_head.weight \(1\). Copy the folder again"):
        run(world / "hoiqa_dataset", tmp_path / "out", "--model", tmp_path / "model")


def test_the_page_takes_load_in(model, tmp_path):
    from vlm.commands import demo
    from vlm.commands.loading import load_model

    for load_in, layer in (("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")):
        options = demo.parser().parse_args(["--model", str(model), "--load-in", load_in])
        assert f"language model in {load_in}" in demo.about(options)
        loaded, _ = load_model(options.model, device=options.device, load_in=options.load_in)
        assert type(loaded.model.language_model.layers[0].self_attn.q_proj).__name__ == layer
        assert type(loaded.lm_head).__name__ == "Linear"
