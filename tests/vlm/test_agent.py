"""The turn loop, with the real processor and tool: what goes back to the model, what is bounded, what streams. Weights cannot call
tools on command, so a model that recites a script stands in for the weights where a call is needed; a real tiny model does the rest."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.sample import SampleError, user
from data.synthetic.scenes import read_scenes
from data.tool_dialogues import dialogues
from pose_tools.detect import detect_hands
from pose_tools.tool_protocol import ToolError
from pose_tools.types import Media
from tests.runs import make_detector, make_world
from tests.tiny import tiny
from vlm.agent import Agent, before_call
from vlm.answers import BoxAnswer, NoneAnswer, TextAnswer, ToolCallAnswer, Unparsed, write
from vlm.packing import IGNORED

CALL = '<tool_call>{"name": "detect_hands", "arguments": {"hand": "left"}}</tool_call>'


class Recites:
    """Writes the given texts, one per call; keeps the prompts it was given."""

    device = torch.device("cpu")

    def __init__(self, processor, *texts):
        self.tokenizer, self.texts, self.prompts = processor.tokenizer, list(texts), []

    def generate(self, input_ids, streamer=None, **_):
        self.prompts.append(input_ids[0].tolist())
        text = self.texts.pop(0) if len(self.texts) > 1 else self.texts[0]
        written = [*self.tokenizer.encode(text, add_special_tokens=False), self.tokenizer.eos_token_id]
        if streamer is not None:
            streamer.put(input_ids)
            for token in written:
                streamer.put(torch.tensor([token]))
            streamer.end()
        return SimpleNamespace(sequences=torch.cat([input_ids, torch.tensor([written])], dim=1))


@pytest.fixture(scope="module")
def small():
    return tiny("small")


@pytest.fixture(scope="module")
def detector(tmp_path_factory):
    """A small detector that is sure of a left hand and of no right one."""
    folder = make_detector(tmp_path_factory.mktemp("detector"))
    config = json.loads((folder / "config.json").read_text())
    config["calibration"] = [[0, 3], [0, -3], [0, 3], [0, 3]]
    (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(autouse=True)
def shipped(detector, monkeypatch):
    monkeypatch.setattr("pose_tools.small_detector.DEFAULT_FOLDER", Path(detector))
    monkeypatch.setenv("HANDVLM_HANDS", "small")


def picture(width=200, height=100):
    return np.random.default_rng(0).integers(0, 255, (height, width, 3), dtype=np.uint8)


def question(text="where is my left hand?", image=None):
    return [user({"type": "image", "image": picture() if image is None else image}, text)]


def without_times(turn):
    return turn.answers, turn.text, [(step.kind, step.text, step.call) for step in turn.trace], len(turn.messages)


def test_a_call_is_carried_out_and_its_numbers_are_those_of_the_grid(small):
    """The model sees a letterboxed picture; copying the tool's numbers must give the tool's box in original pixels."""
    _, processor = small
    asked = question()
    first = Agent(Recites(processor, CALL, "thanks"), processor, ["detect_hands"]).ask(asked)
    told = json.loads(first.trace[1].text)["left"]
    model = Recites(processor, CALL, str(told))
    turn = Agent(model, processor, ["detect_hands"], overlay=True).ask(asked)
    (hand,) = detect_hands(picture(), backend="small")
    (answer,) = turn.answers
    np.testing.assert_allclose(answer.box.bbox_xyxy, hand.bbox_xyxy, atol=200 / 1000)
    assert turn.text == str(told)
    assert [step.kind for step in turn.trace] == ["model", "tool", "model"]
    assert turn.trace[1].call == ToolCallAnswer("detect_hands", {"hand": "left"})
    assert turn.trace[1].result.data["hands"]["left"]["bbox_xyxy"] == pytest.approx(hand.bbox_xyxy, abs=0.01)
    assert [message["role"] for message in turn.messages] == ["user", "assistant", "tool", "assistant"]
    assert turn.messages[1]["content"] == [{"type": "tool_call", "name": "detect_hands", "arguments": {"hand": "left"}}]
    assert turn.trace[1].text in processor.tokenizer.decode(model.prompts[1])
    assert len(asked) == 1  # the caller's conversation is not touched


@pytest.mark.parametrize(
    ("call", "reason"),
    [
        ('<tool_call>{"name": "fly", "arguments": {}}</tool_call>', "there is no tool 'fly'; the tools are: detect_hands"),
        ('<tool_call>{"name": "detect_hands", "arguments": {"hand": "third"}}</tool_call>', "expected one of: left, right, both"),
        ('<tool_call>{"name": "detect_hands", "arguments": {"image": 3}}</tool_call>', "there is only image 0"),
        ('<tool_call>{"name": "detect_hands", "argum', "does not end"),
        ("<tool_call>detect_hands()</tool_call>", "not JSON"),
        ('{"name": "detect_hands"}</tool_call>', "without its beginning"),
    ],
)
def test_what_is_wrong_with_a_call_goes_back(small, call, reason):
    _, processor = small
    model = Recites(processor, call, "none")
    turn = Agent(model, processor, ["detect_hands"]).ask(question())
    assert turn.answers == [NoneAnswer()]
    assert turn.trace[1].text.startswith("error: ") and reason in turn.trace[1].text and turn.trace[1].result is None
    assert reason in processor.tokenizer.decode(model.prompts[1])


def test_a_missing_backend_goes_back_with_its_remedy(small, monkeypatch, tmp_path):
    monkeypatch.setattr("pose_tools.small_detector.DEFAULT_FOLDER", tmp_path)
    _, processor = small
    turn = Agent(Recites(processor, CALL, "none"), processor, ["detect_hands"]).ask(question())
    assert "train_detector" in turn.trace[1].text and turn.answers == [NoneAnswer()]


def test_calls_are_bounded(small):
    _, processor = small
    for calls, texts in ((0, [CALL]), (2, [CALL]), (3, [CALL + " " + CALL])):
        model = Recites(processor, *texts)
        turn = Agent(model, processor, ["detect_hands"], max_calls=calls).ask(question())
        (answer,) = turn.answers
        assert isinstance(answer, Unparsed) and f"more than {calls} tool calls" in answer.reason
        assert sum(step.kind == "tool" for step in turn.trace) == (2 if calls == 3 else calls)
        assert turn.trace[-1].kind == "model" and turn.messages[-1]["role"] == "assistant"


def test_without_tools_nothing_is_offered_or_called(small):
    _, processor = small
    model = Recites(processor, CALL)
    turn = Agent(model, processor).ask(question())
    assert turn.answers == [ToolCallAnswer("detect_hands", {"hand": "left"})] and len(turn.trace) == 1
    assert "detect_hands" not in processor.tokenizer.decode(model.prompts[0])
    with pytest.raises(ToolError, match="the tools are: detect_hands"):
        Agent(model, processor, ["fly"])


def test_media_may_be_others_than_the_conversations(small):
    _, processor = small
    media = Media(images=(picture(), picture(50, 60)))
    call = CALL.replace('"hand": "left"', '"image": 1')
    turn = Agent(Recites(processor, call, "none"), processor, ["detect_hands"]).ask(question(), media)
    assert turn.trace[1].result.data["image_size"] == [50, 60]


def test_a_conversation_goes_on(small):
    _, processor = small
    model = Recites(processor, "left hand [10, 20, 300, 400]", "none")
    agent = Agent(model, processor, ["detect_hands"])
    first = agent.ask(question())
    second = agent.ask([*first.messages, user("and the red cup?")])
    assert isinstance(first.answers[0], BoxAnswer) and second.answers == [NoneAnswer()]
    assert model.prompts[1][: len(model.prompts[0])] == model.prompts[0]
    assert "left hand [10, 20, 300, 400]" in processor.tokenizer.decode(model.prompts[1])


@pytest.mark.parametrize("encoders", [(), ("detection",)])
def test_the_loop_asks_what_tool_dialogues_teach(small, detector, tmp_path, encoders):
    """At every step the model is given exactly the ids that stand before its words in the training conversation."""
    _, processor = small
    folder = make_world(tmp_path / "train", 2)
    for record in read_scenes(folder):
        for sample in dialogues(record, folder, split="train", seed=0, detector=str(detector), encoders=encoders):
            view = processor(sample.messages, for_training=True)["views"][0][0]
            texts = [write(m["content"], view, processor.dialect) for m in sample.messages if m["role"] == "assistant"]
            model = Recites(processor, *texts)
            Agent(model, processor, sample.tools, result_tokens=bool(encoders)).ask(sample.messages[:1])
            taught = processor.encode_conversation(sample.messages, tools=sample.tools, for_training=True)
            starts = [i for i, label in enumerate(taught.labels) if label != IGNORED and taught.labels[i - 1] == IGNORED]
            assert [taught.input_ids[:start] for start in starts] == model.prompts


def test_streaming_shows_words_and_hides_calls(small):
    _, processor = small
    texts = ["Let me look. " + CALL, "left hand [10, 20, 300, 400] < there"]
    stream = Agent(Recites(processor, *texts), processor, ["detect_hands"]).ask(question(), stream=True)
    pieces = list(stream)
    assert "".join(pieces) == "Let me look. left hand [10, 20, 300, 400] < there" and len(pieces) > 3
    assert without_times(stream.turn) == without_times(Agent(Recites(processor, *texts), processor, ["detect_hands"]).ask(question()))


@pytest.mark.parametrize("kind", ["small", "llava", "minigpt"])
def test_a_real_model_streams_what_it_answers(kind):
    model, processor = tiny(kind)
    agent = Agent(model, processor, ["detect_hands"], max_new_tokens=12)
    turn, stream = agent.ask(question()), agent.ask(question(), stream=True)
    pieces = list(stream)
    assert without_times(stream.turn) == without_times(turn)
    assert "".join(pieces).strip() == turn.text
    with pytest.raises(SampleError):
        agent.ask(question(""))


def test_a_stream_that_is_left_stops_the_model():
    model, processor = tiny("small")
    steps = []
    model.register_forward_hook(lambda *_: steps.append(1))
    # Any token at random: a word ends, and is shown, every few tokens.
    agent = Agent(model, processor, max_new_tokens=400, min_new_tokens=400, do_sample=True, temperature=100.0)
    run = iter(agent.ask(question(), stream=True))
    next(run)
    run.close()
    assert len(steps) < 400


def test_an_error_while_streaming_reaches_the_reader(small):
    _, processor = small
    model = Recites(processor, "none")
    model.generate = lambda **_: (_ for _ in ()).throw(RuntimeError("out of memory"))
    with pytest.raises(RuntimeError, match="out of memory"):
        list(Agent(model, processor).ask(question(), stream=True))


def test_a_template_without_an_end_token_stops_at_its_end():
    model, processor = tiny("llava", template="llava_v0")
    agent = Agent(model, processor, max_new_tokens=3)
    assert agent.generation["stop_strings"] == ["###"] and isinstance(agent.ask(question()).text, str)
    assert Agent(Recites(processor, "on the table###"), processor).ask(question()).answers == [TextAnswer("on the table")]


@given(words=st.lists(st.sampled_from(["a", "<", "<tool", "_call>", "<tool_call>", "<t3>", " "])), cuts=st.lists(st.integers(0, 60)))
def test_only_what_stands_before_a_call_is_shown(words, cuts):
    text = "".join(words)
    cuts = sorted({0, len(text), *(cut for cut in cuts if cut < len(text))})
    shown = list(before_call(iter([text[a:b] for a, b in zip(cuts, cuts[1:])])))
    assert "".join(shown) == text.split("<tool_call>")[0] and all(shown)
