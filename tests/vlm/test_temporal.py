"""LITA's tasks scored: by hand-made answers, by the published definition written out again, and through the command."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data import lita_strings
from data.lita import format_dense_captions, format_event
from data.lita_sets import LitaError, LitaSet
from pose_tools.user_error import UserError
from scripts import evaluate
from tests.vlm.test_handsonvlm_parity import converted
from vlm.commands import temporal
from vlm.commands.console import CommandError
from vlm.evaluation.captions import Cider, words
from vlm.evaluation.temporal import TemporalReply, caption_scores, published, read_temporal_questions, span_of, span_scores

CAPTIONS = {
    "v_a": {
        "duration": 99.0, "timestamps": [[0, 50], [40, 99], [10, 20]], "sentences": ["A man cuts an onion.", "He eats the soup.", " . "],
    },
    "v_b": {"duration": 9.9, "timestamps": [[1.0, 2.0]], "sentences": ["Rain falls on the roof."]},
}  # fmt: skip
REASONING = {"v_a": {"duration": 99.0, "QA": [{"q": "When?", "a": "<70> to <20.0> as he says."}, {"q": "Why?", "a": "At <3.0>."}]}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for video in ("v_a", "v_b"):
        (tmp_path / "frames" / video).mkdir(parents=True)
        for number in range(2):
            Image.new("RGB", (8, 6), (90 * number, 0, 0)).save(tmp_path / "frames" / video / f"{number}.png")
    (tmp_path / "captions.json").write_text(json.dumps(CAPTIONS))
    (tmp_path / "reasoning.json").write_text(json.dumps(REASONING))
    return tmp_path


def questions(folder: Path, task: str, name: str = "captions"):
    return read_temporal_questions(LitaSet(folder / f"{name}.json", task=task, media=folder / "frames"))


def test_every_event_is_asked_and_has_its_truth(folder: Path):
    asked, without = questions(folder, "event_loc")
    assert [(q.video, q.duration, q.events) for q in asked] == [
        ("v_a", 99.0, ((0.0, 50.0),)), ("v_a", 99.0, ((40.0, 99.0),)), ("v_b", 9.9, ((1.0, 2.0),))
    ] and not without  # fmt: skip
    said = asked[1].sample.messages[0]["content"][1]["text"]
    assert said in {f"{when.format('he eats the soup')} {only}" for when in lita_strings.WHEN for only in lita_strings.ONLY_TIMES}
    (one, other) = questions(folder, "dvc")[0]
    assert one.captions == ("A man cuts an onion.", "He eats the soup.", ".") and len(one.events) == 3 and len(other.events) == 1
    asked, without = questions(folder, "temporal_reasoning", "reasoning")
    assert [q.events for q in asked] == [((20.0, 70.0),)] and without == 1
    (folder / "qa.json").write_text(json.dumps([{"video": "v_a", "QA": [{"q": "Who?", "a": "he"}]}]))
    with pytest.raises(LitaError, match="vidqa has no moments"):
        LitaSet(folder / "qa.json", task="vidqa", media=folder / "frames").questions(0, 0)


@pytest.mark.parametrize("text, finished, strict, compat", [
    ("<t10> <t30>", True, (10, 30), (10, 30)), ("from <t30> on, to <t10>. <t99>", True, (10, 30), (10, 30)), ("no", True, None, (0, 99)),
    ("<t10>", True, None, (0, 99)), ("<t10> <t30>", False, (10, 30), (0, 99)), ("<t10> <t30> .", False, (10, 30), (10, 30)),
])  # fmt: skip
def test_spans(text: str, finished: bool, strict, compat):
    reply = TemporalReply(text, finished)
    assert span_of(reply, 99.0) == strict and span_of(reply, 99.0, compat=True) == compat


def test_spans_are_scored_strictly_and_as_published(folder: Path):
    asked, _ = questions(folder, "event_loc")
    replies = dict(zip([q.id for q in asked], [TemporalReply("<t0> <t25>"), TemporalReply("I do not know"), TemporalReply("<t10> <t20>")]))
    np.testing.assert_allclose(span_scores(asked, replies), [0.5, 0, 1])
    # v_a: 25 of 50 s, and the whole clip's 59 of 99; v_b: all of it. Means of videos: (0.5 + 59 / 99) / 2 and 1.
    assert published(asked, replies) == pytest.approx({"miou": ((0.5 + 59 / 99) / 2 + 1) / 2, "p@0.5": (1 + 1) / 2})
    truth = {q.id: TemporalReply(format_event(*q.events[0], q.duration)) for q in asked}
    assert span_scores(asked, truth).min() > 0.98 and published(asked, truth)["p@0.5"] == 1


def test_published_moments_are_seconds_within_the_clip(folder: Path):
    """A token's seconds are rounded to hundredths and then put into the clip; true ones may lie behind it, and some are written out."""
    (folder / "annot_val.json").write_text(json.dumps([
        {"vid": "a", "duration": 82.726, "question": "When?", "answer": "<41.5> <90> He rows."},
        {"vid": "b", "duration": 20.0, "question": "When?", "answer": "<5.0> <10.0> She runs."},
    ]))  # fmt: skip
    asked, _ = questions(folder, "temporal_reasoning", "annot_val")
    replies = {asked[0].id: TemporalReply("<t50> <t99> He rows."), asked[1].id: TemporalReply("From <5> to <10.> she runs.")}
    ious = span_scores(asked, replies, compat=True)
    assert ious == pytest.approx([(82.726 - 41.78) / (82.726 - 41.5), 1], abs=1e-12)
    assert published(asked, replies) == pytest.approx({"miou": ious.mean(), "p@0.5": 1}) and span_scores(asked, replies)[1] == 0


def test_dense_captions(folder: Path):
    asked, _ = questions(folder, "dvc")
    exact = {q.id: TemporalReply(format_dense_captions(q.events, q.captions, q.duration)) for q in asked}
    scores = caption_scores(asked, exact)
    np.testing.assert_allclose([scores.recall, scores.precision], 1)
    half = exact | {asked[0].id: TemporalReply("<t0> <t50> A dog barks at it. <t0> <t2> Nothing")}  # the first event, and none
    found = caption_scores(asked, half)
    assert (found.recall[0], found.precision[0]) == (pytest.approx(1 / 3), 0.5) and found.cider[0] < 0.5 < scores.cider[0]
    assert found.recall[1] == 1 and caption_scores(asked, {q.id: TemporalReply("none") for q in asked}).precision.tolist() == [0, 0]
    swapped = exact | {asked[1].id: TemporalReply("<t20> <t10> Rain falls on the roof.")}
    assert caption_scores(asked, swapped).recall[1] == 1, "moments the wrong way round are those moments"


def plain_cider(caption: str, reference: str, documents: list[str]) -> float:
    """The definition in dense vectors over all phrases that occur."""
    def grams(text: str, n: int) -> Counter:
        said = words(text)
        return Counter(" ".join(said[k : k + n]) for k in range(len(said) - n + 1))

    total = 0.0
    for n in range(1, 5):
        names = sorted(set(grams(caption, n)) | set(grams(reference, n)))
        rare = np.array([math.log(len(documents) / max(1, sum(name in grams(d, n) for d in documents))) for name in names])
        a, b = (np.array([grams(text, n)[name] for name in names], float) * rare for text in (caption, reference))
        norm = np.linalg.norm(a) * np.linalg.norm(b) if len(names) else 0.0
        total += float(np.minimum(a, b) @ b / norm) if norm else 0.0
    gap = len(words(caption)) - len(words(reference))
    return 10 * math.exp(-gap * gap / 72) * total / 4


def test_cider_is_its_definition():
    documents = ["A man cuts the red onion.", "The man eats.", "A dog runs after the red red ball", "rain falls on the roof"]
    score = Cider(documents)
    for caption in (*documents, "the red red red ball runs", "a man", "", "snow"):
        for reference in documents:
            assert score(caption, [reference]) == pytest.approx(plain_cider(caption, reference, documents), abs=1e-12)
    assert score(documents[0], [documents[0]]) == pytest.approx(10) and score("A man cuts the red onion.", []) == 0
    each = [score(documents[2], [reference]) for reference in documents[:2]]
    assert score(documents[2], documents[:2]) == pytest.approx(sum(each) / 2)
    with pytest.raises(ValueError, match="reference captions"):
        Cider([])


def test_the_command(folder: Path, capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    """A model answers, is taken up again, in two processes as in one, and is scored again from its file; answers put there by hand are
    scored as they are."""
    model, processor = converted()
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    out = folder / "out"
    command = ["temporal", "--data", str(folder / "captions.json"), "--kind", "event_loc", "--media", str(folder / "frames"),
               "--model", str(folder / "model"), "--out", str(out), "--protocol", "compat", "--batch-size", "2"]  # fmt: skip
    assert evaluate.main(command) == 0
    first = (out / "table.md").read_text()
    kept = (out / "predictions.jsonl").read_text()
    (out / "predictions.jsonl").write_text(kept[: kept.index("\n") + 5])  # as a run that was cut leaves it
    assert evaluate.main(command) == 0 and (out / "predictions.jsonl").read_text() == kept
    with monkeypatch.context() as patch:
        patch.setenv("WORLD_SIZE", "2")
        patch.setattr(temporal, "all_done", lambda rank: rank == 0)
        several = [str(folder / "several") if part == str(out) else part for part in command]
        for rank in ("1", "0"):  # the first process puts together what both have answered
            patch.setenv("RANK", rank)
            assert evaluate.main(several) == 0
    assert [(folder / "several" / name).read_text() for name in ("predictions.jsonl", "table.md")] == [kept, first]
    assert evaluate.main([*command, "--rescore"]) == 0 and (out / "table.md").read_text() == first
    asked, _ = questions(folder, "event_loc")
    right = [{"id": q.id, "output": format_event(*q.events[0], q.duration)} for q in asked]
    (out / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in right))
    assert evaluate.main([*command, "--rescore"]) == 0
    summary = json.loads((out / "summary.json").read_text())
    assert summary["the model"]["P@0.7"]["value"] == 1 and summary["the model, as published"]["p@0.5"] == 1
    assert summary["the whole clip"]["mIoU"]["value"] == pytest.approx((50 / 99 + 59 / 99 + 1 / 9.9) / 3)
    assert "As LITA's evaluation defines them" in capsys.readouterr().out
    (out / "predictions.jsonl").write_text("")
    with pytest.raises(CommandError, match="no prediction for 3 of 3"):
        evaluate.main([*command, "--rescore"])
    first_again, no_bool = [*right, right[0]], [*right[1:], right[0] | {"finished": "no"}]
    for spoilt, said in ((first_again, f"two predictions for '{right[0]['id']}'"), (no_bool, "no truth value under 'finished'")):
        (out / "predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in spoilt))
        with pytest.raises(UserError, match=said):
            evaluate.main([*command, "--rescore"])


def test_dense_captions_by_the_command(folder: Path):
    asked, _ = questions(folder, "dvc")
    (folder / "out").mkdir()
    right = [{"id": q.id, "output": format_dense_captions(q.events, q.captions, q.duration)} for q in asked]
    (folder / "out/predictions.jsonl").write_text("".join(json.dumps(record) + "\n" for record in right))
    command = ["temporal", "--data", str(folder / "captions.json"), "--kind", "dvc", "--media", str(folder / "frames"), "--rescore"]
    assert evaluate.main([*command, "--out", str(folder / "out")]) == 0
    assert json.loads((folder / "out/summary.json").read_text())["the model"]["F1"]["value"] == 1
    assert (folder / "out/table.md").read_text().count("| the model |") == 1


def test_a_file_without_moments_is_refused(folder: Path):
    (folder / "reasoning.json").write_text(json.dumps({"v_a": {"duration": 9, "QA": [{"q": "Why?", "a": "So."}]}}))
    command = ["temporal", "--data", str(folder / "reasoning.json"), "--kind", "temporal_reasoning", "--media", str(folder / "frames")]
    with pytest.raises(CommandError, match="nothing to score"):
        evaluate.main([*command, "--out", str(folder / "out"), "--rescore"])
    with pytest.raises(CommandError, match="no whole json"):
        evaluate.main([*command[:1], "--data", str(folder / "none.json"), *command[3:], "--out", str(folder / "out")])


def test_words_only_and_pictures_stand_in_one_file(folder: Path):
    turns = [{"from": "human", "value": "What is an onion?"}, {"from": "gpt", "value": "A plant."}]
    (folder / "qa.json").write_text(json.dumps([{"id": "1", "conversations": turns}]))
    (sample,) = LitaSet(folder / "qa.json", task="imgqa", media=folder / "frames").samples(0, 0)
    assert [part["type"] for part in sample.messages[0]["content"]] == ["text"]
