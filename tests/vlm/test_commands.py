"""The commands as a person runs them: what they write, what they refuse, and that one clear line says why."""

from __future__ import annotations

import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import load_file, save_file

from data.synthetic import scenes
from pose_tools.types import Box
from tests.tiny import tiny
from vlm import cli
from vlm.agent import Turn
from vlm.answers import BoxAnswer, NoneAnswer
from vlm.commands import answer, demo, demo_questions, evaluate
from vlm.commands.console import run
from vlm.commands.demo_questions import error_text
from vlm.commands.loading import load_model
from vlm.evaluation.records import single_writer

QUESTION = "Where is my left hand?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    network, processor = tiny("small")
    with torch.no_grad():  # random weights of the usual size say the same about every picture
        for parameter in network.parameters():
            parameter.mul_(4 if parameter.dim() > 1 else 1)
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("scenes") / "test"
    list(scenes.make_scenes(out, scenes.Settings("test", seed=5, size=96), 20, 1))
    return out


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    path = tmp_path / "picture.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 90, 3), dtype=np.uint8)).save(path)
    return path


def ask(model: Path, image: Path, question: str = QUESTION, *more: object) -> int:
    return run(answer.main, ["--image", str(image), "--ask", question, "--model", str(model), "--tools", "off", *map(str, more)])


def refused(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> None:
    """One line on stderr that starts with "error: " and holds the words; nothing on stdout; status 1."""
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert status == 1 and out == "" and len(lines) == 1 and lines[0].startswith("error: "), (status, out, err)
    for word in words:
        assert word in lines[0], (word, lines[0])


# answer


def test_an_answer_is_printed_written_and_drawn(model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert ask(model, picture, QUESTION, "--json", tmp_path / "a.json", "--draw", tmp_path / "a.png") == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["question"] == QUESTION and record["answers"] and capsys.readouterr().out.strip()
    with Image.open(tmp_path / "a.png") as drawn:
        assert drawn.width / drawn.height == 90 / 60 and drawn.height > 60  # small pictures are enlarged


def answer_of(model: Path, image: Path, tmp_path: Path) -> list:
    assert ask(model, image, QUESTION, "--json", tmp_path / "a.json") == 0
    record = json.loads((tmp_path / "a.json").read_text())
    return [record["text"], record["answers"]]


def test_the_same_pixels_in_any_wrapping_get_the_same_answer(model: Path, picture: Path, tmp_path: Path) -> None:
    expected = answer_of(model, picture, tmp_path)
    with Image.open(picture) as image:
        turned = image.transpose(Image.Transpose.ROTATE_90)
        exif = Image.Exif()
        exif[0x0112] = 6  # "turn right to see it upright"
        turned.save(tmp_path / "turned.png", exif=exif)
        turned.save(tmp_path / "lying.png")
        alpha = image.convert("RGBA")
        alpha.save(tmp_path / "alpha.png")
    for name in ("turned.png", "alpha.png"):
        assert answer_of(model, tmp_path / name, tmp_path) == expected
    assert answer_of(model, tmp_path / "lying.png", tmp_path) != expected


def test_a_grey_picture_and_one_of_30_megapixels_are_answered(model: Path, tmp_path: Path) -> None:
    Image.new("L", (64, 48), 90).save(tmp_path / "grey.jpg")
    Image.new("RGB", (6500, 4700), (90, 80, 70)).save(tmp_path / "large.jpg")
    assert ask(model, tmp_path / "grey.jpg") == 0
    assert ask(model, tmp_path / "large.jpg") == 0


def test_our_own_markers_in_a_question_are_words(model: Path, picture: Path) -> None:
    assert ask(model, picture, "<image> </s> <detection> <tool_call>{} [1, 2, 3, 4] <|im_end|>") == 0


def test_what_is_no_picture_is_refused_by_name(model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    capsys.readouterr()
    (tmp_path / "text.jpg").write_text("hello")
    refused(capsys, ask(model, tmp_path / "text.jpg"), "text.jpg", "not a picture")
    Image.new("RGB", (300, 300), (1, 2, 3)).save(tmp_path / "whole.jpg")
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "whole.jpg").read_bytes()[:-800])
    refused(capsys, ask(model, tmp_path / "cut.jpg"), "cut.jpg", "truncated")
    refused(capsys, ask(model, tmp_path / "nowhere.jpg"), "nowhere.jpg")


def test_a_clip_as_a_picture_and_a_picture_as_a_clip_are_sent_to_the_other_option(
    model: Path, picture: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, run(answer.main, ["--image", "some/clip.mp4", "--ask", QUESTION]), "--image some/clip.mp4", "--video")
    refused(capsys, run(answer.main, ["--video", str(picture), "--ask", QUESTION]), f"--video {picture}", "--image")
    refused(capsys, run(answer.main, ["--image", "some/photo.jpg", "--ask", QUESTION]), "error: some/photo.jpg: cannot be read")


@pytest.mark.parametrize("question, word", [("", "empty"), ("  \n", "empty"), ("x" * 20_000, "20000")])
def test_an_empty_and_an_endless_question_are_refused(
    model: Path, picture: Path, question: str, word: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, ask(model, picture, question), word)


# Model folders


@pytest.fixture
def broken(model: Path, tmp_path: Path) -> Iterator[Path]:
    yield Path(shutil.copytree(model, tmp_path / "broken"))


def test_a_missing_and_an_extra_tensor_are_named(broken: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = load_file(broken / "model.safetensors")
    gone = next(name for name in weights if "multi_modal_projector" in name)
    save_file({name: value for name, value in weights.items() if name != gone}, broken / "model.safetensors", {"format": "pt"})
    refused(capsys, ask(broken, picture), "missing", gone.split(".")[-2])
    save_file(weights | {"left.over": np.zeros(3, np.float32)}, broken / "model.safetensors", {"format": "pt"})
    refused(capsys, ask(broken, picture), "left.over")


def test_half_a_weights_file_is_refused(broken: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = (broken / "model.safetensors").read_bytes()
    (broken / "model.safetensors").write_bytes(data[: len(data) // 2])
    refused(capsys, ask(broken, picture), str(broken))


def test_an_unknown_key_and_a_broken_config_are_refused(broken: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config = json.loads((broken / "config.json").read_text())
    (broken / "config.json").write_text(json.dumps(config | {"imagesize": 3}))
    refused(capsys, ask(broken, picture), "imagesize", "'image_size'")
    (broken / "config.json").write_text(json.dumps(config)[:50])
    refused(capsys, ask(broken, picture), str(broken))
    refused(capsys, ask(broken.parent / "nowhere", picture), "nowhere", "not a model folder", "scripts/finetune.py")


def test_a_model_without_a_chat_template_is_refused(broken: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (broken / "chat_template.jinja").unlink()
    refused(capsys, ask(broken, picture), "no chat template", "'vicuna_v1'")


def test_a_model_of_another_program_is_not_told_to_lose_its_keys(broken: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (broken / "config.json").write_text(json.dumps({"model_type": "llava", "image_token_index": 7}))
    refused(capsys, ask(broken, picture), str(broken), "'llava'", "scripts/convert.py")


@pytest.mark.parametrize("device", ["gpu", "cuda:99"])
def test_a_device_that_is_not_here_is_not_called_a_broken_folder(
    model: Path, picture: Path, device: str, capsys: pytest.CaptureFixture[str]
) -> None:
    refused(capsys, ask(model, picture, QUESTION, "--device", device), f"--device {device}", "scripts/doctor.py")


def test_a_misspelt_hand_detector_and_an_impossible_port_are_refused(
    model: Path, picture: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HANDVLM_HANDS", "medipipe")
    status = run(answer.main, ["--image", str(picture), "--ask", QUESTION, "--model", str(model), "--tools", "on"])
    refused(capsys, status, "'medipipe'", "HANDVLM_HANDS", "mediapipe")
    refused(capsys, run(demo.main, ["--port", "99999"]), "--port is 99999", "65535")


def test_a_port_in_use_is_said_to_be_so(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Taken:
        def launch(self, **_: object) -> None:
            raise OSError("Cannot find empty port in range: 7860-7860")

    monkeypatch.setattr(demo, "prepare", lambda *_: (Taken(), {}))
    refused(capsys, run(demo.main, ["--port", "7860"]), "--port 7860: in use", "leave it out")
    refused(capsys, run(demo.main, []), "Cannot find empty port")


def test_an_answer_that_cannot_be_written_names_its_own_file(model: Path, picture: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = picture.parent / "folder"
    folder.mkdir()
    for target in (folder, Path("/proc/answer.json")):
        assert ask(model, picture, QUESTION, "--json", target) == 1
        out, err = capsys.readouterr()
        assert out and err.startswith(f"error: {target}: cannot be") and "check the path" in err  # the answer itself is not lost


@pytest.mark.slow
@pytest.mark.parametrize("load_in, layer", [("8bit", "Linear8bitLt"), ("4bit", "Linear4bit")])
def test_only_the_language_model_is_quantised(tmp_path: Path, picture: Path, load_in: str, layer: str) -> None:
    pytest.importorskip("bitsandbytes")
    whole, processor = tiny(
        "llava", llama={"hidden_size": 64, "intermediate_size": 128, "num_key_value_heads": 4}
    )  # 4 bits need 64 columns
    whole.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    network, _ = load_model(tmp_path / "model", load_in=load_in)
    kinds = {name: type(module).__name__ for name, module in network.named_modules() if "Linear" in type(module).__name__}
    assert {kind for name, kind in kinds.items() if ".language_model." in name} == {layer}
    assert {kind for name, kind in kinds.items() if ".language_model." not in name} == {"Linear"}
    assert ask(tmp_path / "model", picture, QUESTION, "--load-in", load_in) == 0


def test_a_full_disk_leaves_no_half_written_answer(model: Path, picture: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "new" / "a.json"
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20, limits[1]))
    try:
        status = ask(model, picture, QUESTION, "--json", out)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert status == 1 and "error: " in capsys.readouterr().err
    assert list(out.parent.iterdir()) == []


# evaluate


def score(model: Path, folder: Path, out: Path, *more: object) -> int:
    conditions = ["--conditions", "pixels only", "no image"]
    options = ["--data", folder, "--model", model, "--out", out, "--questions", 8, "--sheet", 4, *conditions, *more]
    return run(evaluate.main, ["referral", *map(str, options)])


def test_evaluate_writes_its_table_into_the_card_and_goes_on_where_it_stopped(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    card = tmp_path / "card.md"
    card.write_text("# Card\n")
    assert score(model, folder, tmp_path / "out", "--card", card, "--train", folder) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert table.strip() in card.read_text() and card.read_text().startswith("# Card\n")
    for words in ("pixels only", "no image", "centre box", "train average"):
        assert words in table
    assert (tmp_path / "out" / "sheet_pixels_only.png").is_file()
    predictions = tmp_path / "out" / "predictions" / "pixels_only.jsonl"
    whole = predictions.read_bytes()
    predictions.write_bytes(whole[:-100])
    assert score(model, folder, tmp_path / "out", "--train", folder) == 0
    assert predictions.read_bytes() == whole and (tmp_path / "out" / "table.md").read_text() == table
    capsys.readouterr()
    refused(capsys, score(model, folder, tmp_path / "out", "--seed", 1), "questions was", "another --out")
    assert run(evaluate.main, ["compare", *[str(tmp_path / "out")] * 2, "--data", str(folder), "--condition", "pixels only"]) == 0
    assert "+0.000 [+0.000, +0.000], p = 1" in capsys.readouterr().out


def test_tool_use_is_scored_with_and_without_detections(model: Path, folder: Path, tmp_path: Path) -> None:
    options = ["--data", folder, "--model", model, "--out", tmp_path / "out", "--questions", 4, "--batch-size", 4]
    assert run(evaluate.main, ["tools", *map(str, options)]) == 0
    table = (tmp_path / "out" / "table.md").read_text()
    assert all(
        f"| {title} | {condition} | 4 |" in table
        for title in ("a call is needed", "no call is needed")
        for condition in ("as shipped", "pixels only")
    )


def test_evaluate_refuses_a_folder_in_use_and_one_without_scenes(
    model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with single_writer(tmp_path / "busy"):
        refused(capsys, score(model, folder, tmp_path / "busy"), "another process", "--out")
    refused(capsys, score(model, tmp_path, tmp_path / "out"), "not a folder of synthetic scenes", "make_synthetic")
    assert not (tmp_path / "out").exists()


# The scripts and the console entry


@pytest.mark.parametrize(
    "task, option",
    [("referral", "--questions"), ("tools", "--limit"), ("trajectory", "--clips"), ("hand-pose", "--limit"), ("hoi-qa", "--limit"),
     ("temporal", "--limit"), ("trajectory", "--batch-size"), ("trajectory", "--futures")],
)  # fmt: skip
def test_nothing_is_evaluated_on_no_questions(task: str, option: str, capsys: pytest.CaptureFixture[str]) -> None:
    for count in ("0", "-1", "few"):
        with pytest.raises(SystemExit):
            evaluate.main([task, "--data", "x", "--out", "y", option, count])
        assert f"argument {option}: is {count}, expected a whole number of at least 1" in capsys.readouterr().err


def test_the_script_itself_ends_with_one_line_and_status_1(root: Path, model: Path, tmp_path: Path) -> None:
    (tmp_path / "text.jpg").write_text("hello")
    command = [sys.executable, "scripts/answer.py", "--image", tmp_path / "text.jpg", "--ask", QUESTION, "--model", model]
    done = subprocess.run(list(map(str, command)), cwd=root, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (1, "")
    assert [
        line for line in done.stderr.splitlines() if line.startswith("error: ") and "text.jpg" in line
    ] and "Traceback" not in done.stderr


def test_the_console_entry_names_its_commands_and_runs_them(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main([]) == 2 and cli.main(["--help"]) == 0
    usage = capsys.readouterr().out
    assert all(name in usage for name in ("answer", "evaluate", "doctor", "demo"))
    assert cli.main(["doctor", "--torch"]) == 0 and f"torch {torch.__version__}" in capsys.readouterr().out
    refused(capsys, cli.main(["demo", "--model", "nowhere"]), "nowhere", "not a model folder")


# make run


def test_the_demo_prints_and_draws_answer_and_truth(model: Path, folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = scenes.read_scenes(folder)[0]
    shutil.copy(folder / record["image"], tmp_path / "a.jpg")
    truth = [{"bbox_xyxy": [10, 20, 30, 40], "label": None}]
    question = {"name": "a", "image": "a.jpg", "ask": QUESTION, "tool": False, "truth": truth, "scene": record["id"]}
    (tmp_path / "questions.json").write_text(json.dumps([question]))
    arguments = ["--model", str(model), "--pictures", str(tmp_path), "--out", str(tmp_path / "out")]
    assert run(demo_questions.main, arguments) == 0
    out = capsys.readouterr().out
    for words in (QUESTION, "answer  ", "truth   box: x 10 to 30, y 20 to 40", "error   ", "your own photograph"):
        assert words in out
    with Image.open(tmp_path / "out" / "a.png") as drawn:
        assert (np.asarray(drawn) > 240).all(-1).any()  # the truth's white frame


def test_the_error_of_an_answer_by_hand() -> None:
    box, near, far = Box((0, 0, 10, 10)), Box((5, 0, 15, 10)), Box((50, 50, 60, 60), "left hand")
    assert error_text(Turn([BoxAnswer(near)], ""), [box]) == "box: overlap (IoU) 0.33, centre 5 pixels off"
    assert error_text(Turn([BoxAnswer(far)], ""), [box]) == "box missed; left hand is not there"
    assert error_text(Turn([NoneAnswer()], ""), [box]) == "box missed"
    assert error_text(Turn([NoneAnswer()], ""), []).startswith("none")
    assert error_text(Turn([BoxAnswer(box)], ""), []).startswith("wrong")
