"""The page through gradio_client, endpoint by endpoint. A model that answers by rote stands in for the weights, with the real processor,
tools, video decoder and server; every client is a visitor of its own."""

from __future__ import annotations

import html
import json
import re
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("gradio", reason="needs the extra [demo]")

from gradio_client import Client, handle_file  # noqa: E402

from pose_tools.video import write_video  # noqa: E402
from tests.runs import make_detector  # noqa: E402
from tests.tiny import tiny_clips  # noqa: E402
from vlm.medium import Limits, Medium  # noqa: E402
from vlm.page import view  # noqa: E402
from vlm.page.conversation import Reply, Session, Settings, reply  # noqa: E402

CALL = '<tool_call>{"name": "detect_hands", "arguments": {"hand": "left"}}</tool_call>'
PATH = "<hand_traj>" * 4
LEFT, HANDS, MUDDLE = "Where is my left hand?", "Use the tool to locate both hands.", "What colour is the sky?"


class ByRote:
    """Answers by what stands in the last question; `prompts` keeps what it was asked."""

    device = torch.device("cpu")
    config = SimpleNamespace(text_config=SimpleNamespace(max_position_embeddings=2048), trajectory={"head": "path"})

    def __init__(self, processor: Any) -> None:
        self.tokenizer, self.prompts = processor.tokenizer, []

    def answer(self, prompt: str) -> str:
        if "boom" in prompt:
            raise RuntimeError("a fault of ours")
        asked = prompt[max(prompt.rfind(word) for word in (LEFT, HANDS, MUDDLE, "go?")) :]
        if asked.startswith(HANDS):
            return "left hand [0, 0, 500, 500]" if "[" in asked[len(HANDS) :] or "null" in asked else CALL
        if asked.startswith(MUDDLE):
            return "none" if prompt.count("?") == 1 else "[555, , , 765]"
        return PATH if asked.startswith("go?") else "[250, 250, 750, 500]"

    def generate(self, input_ids: torch.Tensor, streamer: Any = None, num_trajectories: int = 1, **_: Any) -> SimpleNamespace:
        prompt = self.tokenizer.decode(input_ids[0])
        self.prompts.append(prompt)
        written = [*self.tokenizer.encode(self.answer(prompt), add_special_tokens=False), self.tokenizer.eos_token_id]
        for token in [input_ids, *(torch.tensor([token]) for token in written)] if streamer is not None else ():
            streamer.put(token)
        if streamer is not None:
            streamer.end()
        points = torch.linspace(0.3, 0.6, 4)[None, None, None, :, None].expand(1, num_trajectories, 2, 4, 2)
        return SimpleNamespace(
            sequences=torch.cat([input_ids, torch.tensor([written])], dim=1),
            trajectories=points,
            trajectory_spread=torch.full_like(points, 0.05),
            trajectory_presence=torch.ones(points.shape[:-1]),
        )


@pytest.fixture(scope="module")
def answers() -> tuple[ByRote, Any]:
    _, processor = tiny_clips("path")
    return ByRote(processor), processor


@pytest.fixture(scope="module", autouse=True)
def detector(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """A small detector that is sure of a left hand and of no right one."""
    folder = make_detector(tmp_path_factory.mktemp("detector"))
    config = json.loads((folder / "config.json").read_text())
    config["calibration"] = [[0, 3], [0, -3], [0, 3], [0, 3]]
    (folder / "config.json").write_text(json.dumps(config))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pose_tools.small_detector.DEFAULT_FOLDER", Path(folder))
        patch.setenv("HANDVLM_HANDS", "small")
        yield


@pytest.fixture(scope="module")
def address(answers: tuple[ByRote, Any], tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The page as `demo` launches it, but for the weights and lower limits."""
    from vlm.commands import demo
    from vlm.page import layout

    options = demo.parser().parse_args([])
    folder = tmp_path_factory.mktemp("page")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(demo, "load_model", lambda *_, **__: answers)
        patch.setenv("GRADIO_TEMP_DIR", str(folder))
        blocks, settings = demo.prepare(options, folder)
        patch.setattr(layout, "LIMITS", Limits(pixels=400_000, seconds=5, megabytes=1))
        _, url, _ = blocks.launch(**settings, prevent_thread_lock=True, quiet=True)
        yield url
        blocks.close()


@pytest.fixture
def visitor(address: str, tmp_path: Path) -> Iterator[Callable[[], Client]]:
    opened: list[Client] = []

    def visit() -> Client:
        opened.append(Client(address, verbose=False, analytics_enabled=False, download_files=str(tmp_path / f"visitor{len(opened)}")))
        return opened[-1]

    yield visit
    for client in opened:
        client.close()


def picture(path: Path, width: int = 80, height: int = 60, seed: int = 0) -> Path:
    Image.fromarray(np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)).save(path)
    return path


def clip(path: Path, frames: int = 14, size: tuple[int, int] = (80, 60), fps: float = 4.0) -> Path:
    ramp = np.linspace(0, 255, size[0], dtype=np.uint8)
    write_video(path, [np.repeat(np.tile(np.roll(ramp, 3 * i), (size[1], 1))[..., None], 3, 2) for i in range(frames)], fps)
    return path


def show(client: Client, path: Path) -> dict[str, Any]:
    """Opens a file; the endpoint's outputs by name."""
    names = ("stage", "clip", "chat", "details", "file", "note")
    return dict(zip(names, client.predict(handle_file(path), api_name="/open")))


def ask(client: Client, question: str, tools: bool = True, futures: int = 1, history: bool = True) -> dict[str, Any]:
    """The last outputs of an answer, by name; `text` is the chat's last message."""
    found = dict(zip(("chat", "stage", "clip", "details"), client.predict(question, tools, futures, history, [], api_name="/ask")))
    return found | {"text": found["chat"][-1]["content"][0]["text"]}


def test_a_question_about_a_picture_gives_its_box_and_the_picture_with_it(visitor: Callable[[], Client], tmp_path: Path) -> None:
    client = visitor()
    opened = show(client, picture(tmp_path / "mine.png"))
    assert "mine.png" in opened["note"] and "80 × 60" in opened["note"]
    found = ask(client, LEFT)
    # A letterbox adds 10 rows above and below 60 rows of 80 columns: a half of the grid is 40 pixels.
    assert found["details"]["answers"] == [{"type": "box", "bbox_xyxy": pytest.approx([20, 10, 60, 30], abs=0.1), "label": None}]
    assert "x 20–60, y 10–30" in found["text"]
    with Image.open(found["stage"]) as drawn, Image.open(opened["stage"]) as plain:
        assert drawn.size == plain.size and np.abs(np.asarray(drawn, int) - np.asarray(plain, int)).max() > 50


@pytest.mark.slow
def test_a_question_about_a_clip_gives_a_path_and_a_clip_that_browsers_play(visitor: Callable[[], Client], tmp_path: Path) -> None:
    import av

    client = visitor()
    opened = show(client, clip(tmp_path / "mine.mp4"))
    assert "last of 10 frames that are looked at" in opened["note"]
    found = ask(client, "Where will it go?", futures=3)
    (answer,) = found["details"]["answers"]
    assert answer["type"] == "trajectory" and np.shape(answer["points"]) == (2, 4, 2) and np.shape(answer["samples"]) == (2, 2, 4, 2)
    np.testing.assert_allclose(answer["points"][0], np.stack([np.linspace(24, 48, 4), np.linspace(14, 38, 4)], -1), atol=0.01)
    assert answer["spread"][0] == pytest.approx([4.0] * 4)
    assert answer["valid"] == [[True] * 4, [False] * 4]  # the tracker sees no right hand
    assert "Left hand" in found["text"] and "Right hand" not in found["text"]
    with av.open(found["clip"]) as video:
        assert video.streams.video[0].codec_context.name == "h264" and video.streams.video[0].pix_fmt == "yuv420p"


@pytest.mark.slow
def test_a_tool_call_shows_with_result_and_overlay(visitor: Callable[[], Client], tmp_path: Path) -> None:
    client = visitor()
    show(client, picture(tmp_path / "a.png"))
    found = ask(client, HANDS)
    _, call, said = found["chat"]
    assert call["metadata"]["title"] == "Tool: detect_hands(hand='left')" and call["metadata"]["duration"] >= 0
    assert call["content"][0]["file"].endswith(".jpg") and '"left": [' in call["metadata"]["log"]
    assert "Left hand" in said["content"][0]["text"]
    assert [step.get("tool") for step in found["details"]["trace"]] == [None, "detect_hands", None]
    alone = ask(client, LEFT, tools=False)
    assert [step["kind"] for step in alone["details"]["trace"]] == ["model"]


def test_what_cannot_be_opened_is_told_in_one_sentence_and_the_old_picture_stays(visitor: Callable[[], Client], tmp_path: Path) -> None:
    client = visitor()
    show(client, picture(tmp_path / "good.png"))
    (tmp_path / "text.jpg").write_text("hello")
    (tmp_path / "empty.mp4").write_bytes(b"")
    (tmp_path / "noise.mp4").write_bytes(b"\x07" * 5000)
    for name, word in (("text.jpg", "not a picture"), ("empty.mp4", "empty"), ("noise.mp4", "not a video")):
        note = show(client, tmp_path / name)["note"]
        assert note.startswith(f"⚠️ {name}: ") and word in note and "Traceback" not in note and "\n" not in note
    assert ask(client, LEFT)["details"]["medium"]["name"] == "good.png"


@pytest.mark.slow
def test_what_is_too_large_or_long_is_refused(visitor: Callable[[], Client], tmp_path: Path) -> None:
    client = visitor()
    Image.new("RGB", (900, 600), (9, 9, 9)).save(tmp_path / "wide.png")
    assert "more than 0" in show(client, tmp_path / "wide.png")["note"]
    assert "at most 5" in show(client, clip(tmp_path / "long.mp4", frames=30))["note"]
    picture(tmp_path / "heavy.bmp", 700, 500)
    assert "at most 1 MB" in show(client, tmp_path / "heavy.bmp")["note"]
    assert "choose a picture or a clip first" in ask(client, LEFT)["text"]


@pytest.mark.slow
def test_visitors_do_not_see_each_other(visitor: Callable[[], Client], tmp_path: Path, answers: tuple[ByRote, Any]) -> None:
    one, two = visitor(), visitor()
    show(one, picture(tmp_path / "one.png", 80, 60))
    show(two, picture(tmp_path / "two.png", 160, 120))
    jobs = [client.submit(LEFT, True, 1, True, [], api_name="/ask") for client in (one, two, one, two)]
    boxes = [job.result()[3]["answers"][0]["bbox_xyxy"] for job in jobs]
    small, large = pytest.approx([20, 10, 60, 30], abs=0.1), pytest.approx([40, 20, 120, 60], abs=0.2)
    assert boxes == [small, large, small, large]
    three = visitor()
    assert "first" in ask(three, LEFT)["text"]
    show(three, tmp_path / "one.png")
    ask(three, LEFT)
    assert answers[0].prompts[-1].count(LEFT) == 1


@pytest.mark.slow
def test_earlier_turns_go_along_until_they_are_cleared_or_switched_off(
    visitor: Callable[[], Client], tmp_path: Path, answers: tuple[ByRote, Any]
) -> None:
    client = visitor()
    show(client, picture(tmp_path / "a.png"))
    ask(client, LEFT)
    ask(client, LEFT)
    assert answers[0].prompts[-1].count(LEFT) == 2
    ask(client, LEFT, history=False)
    assert answers[0].prompts[-1].count(LEFT) == 1
    client.predict(api_name="/clear")
    ask(client, LEFT)
    assert answers[0].prompts[-1].count(LEFT) == 1


@pytest.mark.slow
def test_the_answer_streams(visitor: Callable[[], Client], tmp_path: Path) -> None:
    client = visitor()
    show(client, picture(tmp_path / "a.png"))
    job = client.submit(LEFT, True, 1, True, [], api_name="/ask")
    job.result()
    texts = [output[0][-1]["content"][0]["text"] for output in job.outputs()]
    assert texts[0] == "…" and len(texts) >= 3 and "x 20–60" in texts[-1]


@pytest.mark.slow
def test_a_fault_of_ours_is_told_without_a_traceback_and_the_page_goes_on(visitor: Callable[[], Client], tmp_path: Path) -> None:
    client = visitor()
    show(client, picture(tmp_path / "a.png"))
    text = ask(client, "boom")["text"]
    assert "went wrong in the program" in text and "RuntimeError" not in text
    assert "empty question" in ask(client, "  ")["text"]
    assert "x 20–60" in ask(client, LEFT, history=False)["text"]


@pytest.mark.slow
def test_examples_open_with_their_question(visitor: Callable[[], Client]) -> None:
    client = visitor()
    opened = client.predict(0, api_name="/example")
    assert Path(opened[0]).is_file() and opened[-1].endswith("?")
    assert "no such example" in client.predict(99, api_name="/example")[5]


def test_the_page_is_for_this_machine_and_serves_its_own_files_only(address: str, tmp_path: Path) -> None:
    assert address.startswith("http://127.0.0.1:")
    secret = tmp_path / "secret.txt"
    secret.write_text("secret")
    with pytest.raises(urllib.error.HTTPError) as refused:
        urllib.request.urlopen(f"{address}gradio_api/file={secret}")
    assert refused.value.code in (403, 404)


def test_marks_in_words_are_shown_as_they_are() -> None:
    """No browser fetches a picture because somebody, or the model, wrote of one."""
    for text in ("<img src=x onerror=alert(1)>", "![x](http://a.b/c.png)", "[x](http://a.b)", "**my** _left_ `hand`", "# hand", "~~no~~"):
        shown = view.said(text)["content"]
        assert not re.search(r"<|(?<!\\)[\[\]*`~]|(?<!\\)\b_|^#", shown) and shown == view.writing(text)["content"]
        assert html.unescape(shown.replace("\\", "")) == text
    assert view.said("Where is my_left hand? (x - 1)")["content"] == "Where is my_left hand? (x - 1)"


def said(answers: tuple[ByRote, Any], session: Session, question: str) -> Reply:
    return list(reply(*answers, session, question, Settings(tools=False)))[-1]


def test_an_answer_that_earlier_turns_muddled_is_asked_for_alone(answers: tuple[ByRote, Any]) -> None:
    medium = Medium((np.zeros((60, 80, 3), np.uint8),))
    first = said(answers, Session(medium), MUDDLE)
    assert first.turn is not None and first.turn.text == "none" and not first.alone
    assert first.session is not None
    second = said(answers, first.session, MUDDLE)
    assert second.turn is not None and second.turn.text == "none" and second.alone


def test_turns_that_the_model_has_no_room_for_are_left_out(answers: tuple[ByRote, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    session = Session(Medium((np.zeros((60, 80, 3), np.uint8),)))
    for _ in range(3):
        last = said(answers, session, LEFT)
        assert last.session is not None
        session = last.session
    assert answers[0].prompts[-1].count(LEFT) == 3 and len(session.turns) == 3
    monkeypatch.setattr(ByRote.config.text_config, "max_position_embeddings", 10)
    said(answers, session, LEFT)
    assert answers[0].prompts[-1].count(LEFT) == 1
