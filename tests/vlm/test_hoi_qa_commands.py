"""The commands around HOI-QA: a published checkpoint converted, asked, and its files scored in both ways."""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM

from data.sample import user
from data.synthetic.hoi_qa_writer import write_hoi_qa
from tests.two_processes import run_two
from tests.vlm import vlm4hoi_tiny as tiny
from vlm import HandVLM, HandVLMProcessor
from vlm.checkpoints.eva import PREFIX
from vlm.commands import convert_vlm4hoi, evaluate
from vlm.commands.console import CommandError
from vlm.commands.hoi_qa import as_published
from vlm.evaluation.compat import find_boxes, hoi_qa
from vlm.evaluation.hoi_qa import published_form, read_items


@pytest.fixture(scope="module")
def world(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("hoi-qa")
    assert list(write_hoi_qa(folder, "test", 0, 4))[-1] == 4
    return folder


@pytest.fixture(scope="module")
def sources(tmp_path_factory) -> Path:
    """The user's own files: the language model with its tokenizer, the tower, the published checkpoint."""
    folder = tmp_path_factory.mktemp("sources")
    llama = LlamaForCausalLM(tiny.LLAMA)
    llama.load_state_dict(tiny.language_model())
    llama.save_pretrained(folder / "llama")
    shutil.copy(tiny.TOKENIZER, folder / "llama" / "tokenizer.model")
    torch.save({k.removeprefix(PREFIX): v for k, v in tiny.tower().items() if k.startswith(PREFIX)}, folder / "eva.pth")
    torch.save({"model": tiny.trained(), "epoch": 55, "scaler": {"scale": 65536.0}}, folder / "checkpoint_55.pth")
    return folder


def convert(sources: Path, out: Path, *more: str) -> Path:
    parser = argparse.ArgumentParser()
    convert_vlm4hoi.add_arguments(parser)
    parts = ["--llm", str(sources / "llama"), "--vision", str(sources / "eva.pth"), "--image-size", "56", "--lora-alpha", str(tiny.ALPHA)]
    assert convert_vlm4hoi.main(parser.parse_args([str(sources / "checkpoint_55.pth"), *parts, "--out", str(out), *more])) == 0
    return out


@pytest.fixture(scope="module")
def model(sources, tmp_path_factory) -> Path:
    return convert(sources, tmp_path_factory.mktemp("model") / "vlm4hoi", "--template", "vlm4hoi_inference")


def test_merged_and_kept_answer_alike(sources, model, tmp_path):
    kept = convert(sources, tmp_path / "kept", "--keep-lora")
    reader, messages = HandVLMProcessor.from_pretrained(kept), [user("where is the left hand?")]
    assert reader.template == "vlm4hoi" and HandVLMProcessor.from_pretrained(model).template == "vlm4hoi_inference"
    whole, adapted = HandVLM.from_pretrained(model), HandVLM.from_pretrained(kept)
    torch.testing.assert_close(adapted(**reader(messages)).logits, whole(**reader(messages)).logits, atol=1e-5, rtol=0)
    with pytest.raises(CommandError, match="exists already"):
        convert(sources, model)


def run(*arguments) -> None:
    assert evaluate.main(["hoi-qa", *map(str, arguments)]) == 0


def test_asked_and_scored_both_ways(world, model, tmp_path, capsys):
    data, out = world / "hoiqa_dataset", tmp_path / "out"
    run("--data", data, "--model", model, "--out", out, "--batch-size", 8)
    table, files = capsys.readouterr().out, sorted(out.glob("predictions*.json"))
    assert "| all |" in table and len(files) == 3
    before = [file.read_bytes() for file in files]
    run("--data", data, "--model", model, "--out", out, "--batch-size", 8)  # goes on: nothing is asked again
    assert [file.read_bytes() for file in files] == before and capsys.readouterr().out == table
    run("--data", data, "--out", tmp_path / "again", "--predictions", files[0], "--against", files[0])
    again = capsys.readouterr().out
    assert table.split("written")[0].strip() in again and "| all | " in again.split("Second")[1] and "+0.000 [+0.000, +0.000]" in again
    run("--data", data, "--out", tmp_path / "compat", "--predictions", files[0], "--protocol", "compat")
    printed = capsys.readouterr().out.splitlines()
    assert printed[:-1] == hoi_qa(files[0], data, empty="nan")[1]
    shutil.copytree(data, tmp_path / "alone")
    with pytest.raises(CommandError, match="questions have no frame under"):
        run("--data", tmp_path / "alone", "--model", model, "--out", tmp_path / "none")


def test_two_runs_are_compared_from_their_files(world, tmp_path, capsys):
    """The second names every thing in a box of EPIC's, and says nothing else; the first says nothing at all."""
    data = world / "hoiqa_dataset"
    items = read_items(data)
    right = {item.id: item.text for item in items if item.file == "epic" and item.text is not None}
    for name, answers in (("first", {}), ("second", right)):
        (tmp_path / name).mkdir()
        for file, content in published_form(items, answers).items():
            part = "" if file == "epic" else f"_{file}"
            (tmp_path / name / f"predictions{part}.json").write_text(json.dumps(content))
    assert evaluate.main(["compare", str(tmp_path / "first"), str(tmp_path / "second"), "--data", str(data)]) == 0
    rows = {row.split(" | ")[0].strip("| "): row.split(" | ")[1:] for row in capsys.readouterr().out.splitlines() if row.startswith("|")}
    assert rows["all"][:3] == [str(len(items)), "0.000", f"{len(right) / len(items):.3f}"] and rows["all"][3].startswith("+")
    assert rows["handN2handBB"][1:3] == ["0.000", "0.000"]


@pytest.mark.parametrize("task", ["referral", "tools", "trajectory", "temporal", "hoi-qa"])
def test_every_language_model_is_evaluated_in_8_and_4_bits(task):
    needed = ["--kind", "dvc", "--media", "m"] if task == "temporal" else []
    for bits in ("8bit", "4bit"):
        assert evaluate.parser().parse_args([task, "--data", "d", "--out", "o", "--load-in", bits, *needed]).load_in == bits


@pytest.mark.slow
@pytest.mark.two_process
def test_two_processes_give_the_files_of_one(world, model, tmp_path, root):
    words = ["hoi-qa", "--data", world / "hoiqa_dataset", "--model", model, "--batch-size", "8"]
    run_two("scripts/evaluate.py", *words, "--out", tmp_path / "two")
    subprocess.run([sys.executable, root / "scripts/evaluate.py", *words, "--out", tmp_path / "one"], check=True)
    for name in ("predictions", "predictions_ego4d", "predictions_hoi"):
        assert (tmp_path / "one" / f"{name}.json").read_bytes() == (tmp_path / "two" / f"{name}.json").read_bytes()


def test_other_dialects_are_written_as_published():
    from pose_tools.views import letterbox, squash

    wide = letterbox((200, 100), 100)
    assert find_boxes(as_published("[100, 300, 500, 700]", wide, "norm1000")) == [[10.0, 10.0, 50.0, 90.0]]
    assert as_published("{<1><2><3><4>} x", squash((200, 100), 100), "minigpt") == "{<1><2><3><4>} x"
    assert as_published("none", wide, "norm1000") == "none" and as_published("[1, 2", wide, "norm1000") == "[1, 2"


def test_half_a_file_is_one_clear_error(world, tmp_path):
    from data.hoi_qa import HOIQAError

    shutil.copytree(world / "hoiqa_dataset", tmp_path / "data")
    file = tmp_path / "data" / "epic-test.json"
    file.write_text(json.dumps(json.loads(file.read_text()))[:-20])
    with pytest.raises(HOIQAError, match="epic-test.json: not whole json"):
        run("--data", tmp_path / "data", "--out", tmp_path / "out")
