"""`answer --video`: what is written and drawn for a clip, and one clear line for every clip that cannot be answered."""

from __future__ import annotations

import json
import shutil
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pose_tools.detect import HandDetection
from pose_tools.render_path import CLIP_FPS
from pose_tools.video import read_frames, write_video
from tests.tiny import tiny_clips
from vlm import HandVLMConfig
from vlm.answers import TimeAnswer
from vlm.commands import answer
from vlm.commands.console import run
from vlm.medium import Limits, Medium, MediumError, frames_of_whole, open_clip, open_medium
from vlm.show import as_json, describe

QUESTION = "Where will my left hand go?"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that always answers with a path."""
    folder = tmp_path_factory.mktemp("model")
    network, processor = tiny_clips("path")
    network.save_pretrained(folder)
    processor.save_pretrained(folder)
    return folder


@pytest.fixture(autouse=True)
def says_a_path(monkeypatch: pytest.MonkeyPatch) -> None:
    """Random weights write anything; here they are made to write a path, whose points are still their own and
    whose hands are there."""
    from transformers import LogitsProcessor, LogitsProcessorList

    from vlm.model import HandVLM

    class FourPathTokens(LogitsProcessor):
        def __init__(self, token: int, end: int, start: int) -> None:
            self.token, self.end, self.start = token, end, start

        def __call__(self, input_ids, scores):
            forced = scores.new_full(scores.shape, float("-inf"))
            forced[:, self.token if input_ids.shape[1] - self.start < 4 else self.end] = 0
            return forced

    generate = HandVLM.generate

    def with_path(self, input_ids, **kwargs):
        rule = FourPathTokens(self.config.trajectory_token_id, self.generation_config.eos_token_id, input_ids.shape[1])
        output = generate(self, input_ids=input_ids, logits_processor=LogitsProcessorList([rule]), **kwargs)
        output.trajectory_presence[:] = 0.9
        return output

    monkeypatch.setattr(HandVLM, "generate", with_path)


@pytest.fixture
def hands(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The sides that the detector sees, in every frame; change the list to change them."""
    sides = ["left", "right"]

    def detect(frames, *_, **__):
        boxes = {"left": (10.0, 20.0, 26.0, 36.0), "right": (40.0, 20.0, 56.0, 36.0)}
        return [[HandDetection(boxes[side], side, 0.9) for side in sides] for _ in frames]

    monkeypatch.setattr("pose_tools.track.detect_frames", detect)
    return sides


def frames(count: int, size: tuple[int, int] = (80, 60)) -> list[np.ndarray]:
    ramp = np.linspace(0, 255, size[0], dtype=np.uint8)
    return [np.repeat(np.tile(np.roll(ramp, 5 * i), (size[1], 1))[..., None], 3, 2) for i in range(count)]


def clip(path: Path, count: int = 12, size: tuple[int, int] = (80, 60)) -> Path:
    write_video(path, frames(count, size), 4.0)
    return path


def ask(model: Path, video: Path, *more: object) -> int:
    return run(answer.main, ["--video", str(video), "--ask", QUESTION, "--model", str(model), *map(str, more)])


def refused(capsys: pytest.CaptureFixture[str], status: int, *words: str) -> None:
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if line]
    assert status == 1 and out == "" and len(lines) == 1 and lines[0].startswith("error: "), (status, out, err)
    assert all(word in lines[0] for word in words), lines[0]


def test_a_path_is_printed_written_and_drawn_on_the_last_frame_and_as_a_clip(
    model: Path, hands: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = clip(tmp_path / "a.mp4")
    assert ask(model, video, "--json", tmp_path / "a.json", "--draw", tmp_path / "a.png", "--futures", 3) == 0
    out = capsys.readouterr().out
    assert "left hand goes to" in out and "right hand goes to" in out
    record = json.loads((tmp_path / "a.json").read_text())
    (said,) = record["answers"]
    assert record["size"] == [80, 60] and record["times"] == pytest.approx(np.arange(-9, 1) / 4)
    assert said["type"] == "trajectory" and said["hands"] == ["left", "right"]
    assert np.shape(said["points"]) == (2, 4, 2) and np.shape(said["spread"]) == (2, 4) and np.shape(said["samples"]) == (2, 2, 4, 2)
    assert ask(model, video, "--draw", tmp_path / "a.mp4") == 0
    drawn = read_frames(tmp_path / "a.mp4", indices=[0, 45, 45 + CLIP_FPS])
    assert drawn.fps == pytest.approx(CLIP_FPS) and drawn.frames[0].shape[0] == 512
    assert np.abs(drawn.frames[2].astype(int) - drawn.frames[1]).max() > 60  # the path has grown


def test_the_answer_is_the_same_alone_and_as_the_first_of_several_futures(model: Path, hands: list[str], tmp_path: Path) -> None:
    video = clip(tmp_path / "a.mp4")
    for futures in (1, 4):
        assert ask(model, video, "--json", tmp_path / f"{futures}.json", "--futures", futures) == 0
    one, four = (json.loads((tmp_path / f"{n}.json").read_text())["answers"][0] for n in (1, 4))
    np.testing.assert_allclose(one["points"], four["points"], atol=1e-4)
    assert one["samples"] is None and len(four["samples"]) == 3


def test_the_seed_alone_draws_the_futures(model: Path, hands: list[str], tmp_path: Path) -> None:
    video, samples = clip(tmp_path / "a.mp4"), []
    for seed in (0, 0, 1):
        assert ask(model, video, "--json", tmp_path / "a.json", "--futures", 3, "--seed", seed) == 0
        samples.append(json.loads((tmp_path / "a.json").read_text())["answers"][0]["samples"])
    assert samples[0] == samples[1] != samples[2]


def test_a_clip_without_hands_says_so_and_a_one_handed_one_tells_of_one(
    model: Path, hands: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    video = clip(tmp_path / "a.mp4")
    hands.remove("right")
    assert ask(model, video, "--json", tmp_path / "a.json") == 0
    out = capsys.readouterr().out
    assert "left hand goes to" in out and "right hand" not in out
    assert not np.any(json.loads((tmp_path / "a.json").read_text())["answers"][0]["valid"][1])
    hands.clear()
    assert ask(model, video, "--draw", tmp_path / "a.png") == 0
    assert "no hand that is seen" in capsys.readouterr().out


@pytest.mark.parametrize("count, words", [(1, "9 moments"), (5, "5 moments")])
def test_a_clip_of_one_frame_and_a_short_one_are_answered_with_a_note(
    model: Path, hands: list[str], tmp_path: Path, count: int, words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert ask(model, clip(tmp_path / "a.mp4", count)) == 0
    assert words in capsys.readouterr().out


@pytest.mark.slow
def test_a_4k_clip_answers_in_its_own_pixels(model: Path, hands: list[str], tmp_path: Path) -> None:
    assert ask(model, clip(tmp_path / "a.mp4", 3, (3840, 2160)), "--json", tmp_path / "a.json", "--draw", tmp_path / "b.mp4") == 0
    record = json.loads((tmp_path / "a.json").read_text())
    assert record["size"] == [3840, 2160] and np.max(record["answers"][0]["points"]) > 400
    assert max(read_frames(tmp_path / "b.mp4", indices=[0]).frames[0].shape) <= 960


def test_what_is_no_clip_is_refused_by_name(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty.mp4").write_bytes(b"")
    refused(capsys, ask(model, tmp_path / "empty.mp4"), "empty.mp4", "0 bytes")
    (tmp_path / "text.mp4").write_text("hello" * 100)
    refused(capsys, ask(model, tmp_path / "text.mp4"), "text.mp4", "not a video")
    sound(tmp_path / "song.mp4")
    refused(capsys, ask(model, tmp_path / "song.mp4"), "song.mp4", "no picture track")
    refused(capsys, ask(model, tmp_path / "nowhere.mp4"), "nowhere.mp4")
    refused(capsys, ask(model, tmp_path / "empty.mp4", "--futures", 21), "--futures", "1 to 20")
    refused(capsys, ask(model, clip(tmp_path / "a.mp4"), "--draw", tmp_path / "a.webm"), "a.webm", "use .jpg or .png")
    arguments = ["--image", "a.jpg", "--ask", QUESTION, "--draw", "a.mp4"]
    refused(capsys, run(answer.main, arguments), "a.mp4", ".png")


def test_a_folder_of_parts_that_do_not_belong_together_is_refused(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    video = clip(tmp_path / "a.mp4")
    for name, words in {"processor_config.json": "no processor_config.json", "model.safetensors": "cannot be loaded"}.items():
        folder = shutil.copytree(model, tmp_path / name)
        (folder / name).unlink()
        refused(capsys, ask(folder, video), str(folder), words, "Copy the folder again")
    (tmp_path / "published").mkdir()
    (tmp_path / "published/config.json").write_text('{"model_type": "handsonvlm"}')
    refused(capsys, ask(tmp_path / "published", video), "model_type 'handsonvlm'", "scripts/convert.py")
    folder = shutil.copytree(model, tmp_path / "ids")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"image_token_id": config["image_token_id"] + 1}))
    refused(capsys, ask(folder, video), str(folder), "the tokenizer is not this model's", f"expected {config['image_token_id'] + 1}")
    folder = shutil.copytree(model, tmp_path / "template")
    about = json.loads((folder / "processor_config.json").read_text())
    (folder / "processor_config.json").write_text(json.dumps(about | {"template": "vicuna_v2"}))
    refused(capsys, ask(folder, video), "template is 'vicuna_v2'", "vicuna_v1")


def sound(path: Path) -> None:
    import av

    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=16000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 4096), np.float32), format="fltp", layout="mono")
        frame.sample_rate, frame.time_base, frame.pts = 16000, Fraction(1, 16000), 0
        container.mux(stream.encode(frame))
        container.mux(stream.encode(None))


def test_a_whole_video_is_looked_at_from_end_to_end(tmp_path: Path) -> None:
    whole = open_medium(clip(tmp_path / "a.mp4"), whole=3)
    last = open_clip(tmp_path / "a.mp4")
    assert np.array_equal(whole.last, last.last) and len(whole.frames) == 3 and whole.seconds > last.seconds
    assert whole.times == pytest.approx((-whole.seconds, -whole.seconds / 2, 0), abs=0.2)
    many = open_clip(tmp_path / "a.mp4", whole=100)  # more than there are
    assert len(many.part["video"]) == len(many.part["times"]) == 100 and many.rate > whole.rate and many.seconds == whole.seconds
    assert describe(TimeAnswer(1 / 3), many) == f"at {many.seconds / 3:.1f} s, 33 % of the clip"
    assert as_json(TimeAnswer(0.5), many)["seconds"] == many.seconds / 2
    with pytest.raises(MediumError, match="at most 0.0005 megapixels"):
        open_clip(tmp_path / "a.mp4", Limits(pixels=5000), whole=100)


def test_what_forecasts_looks_at_the_end_and_what_does_not_at_all_of_it(model: Path, hands: list[str], tmp_path: Path, capsys) -> None:
    config = HandVLMConfig.from_pretrained(model)
    assert frames_of_whole(config) is None
    config.trajectory = config.trajectory_token_id = None
    config.clip = config.clip | {"frames": 100}
    assert frames_of_whole(config) == 100
    command = ["--model", str(model), "--ask", "Where will my left hand go?", "--json", str(tmp_path / "a.json")]
    assert run(answer.main, ["--video", str(clip(tmp_path / "a.mp4")), *command, "--whole"]) == 0
    times = json.loads((tmp_path / "a.json").read_text())["times"]
    assert len(times) == 10 and times[0] == pytest.approx(-open_clip(tmp_path / "a.mp4", whole=2).seconds)
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    assert run(answer.main, ["--image", str(tmp_path / "a.png"), *command, "--whole"]) == 1 and "give --video" in capsys.readouterr().err


def test_a_medium_is_what_was_in_the_file(tmp_path: Path) -> None:
    medium = open_medium(clip(tmp_path / "a.mp4"))
    assert medium.is_clip and medium.size == (80, 60) and medium.rate == pytest.approx(4) and len(medium.media.frames) == 10
    assert medium.part["times"] == pytest.approx(np.arange(-9, 1) / 4)
    with pytest.raises(MediumError, match="at most 1 are taken"):
        open_clip(tmp_path / "a.mp4", Limits(seconds=1))
    with pytest.raises(MediumError, match="80x60"):
        open_clip(tmp_path / "a.mp4", Limits(pixels=1000))
    nobody_looks = Medium(medium.frames, medium.times, look=False)
    assert nobody_looks.hands is None and nobody_looks.seen.all() and np.isnan(nobody_looks.now).all()
