"""`evaluate hand-pose` on a synthetic FreiHAND folder: kept predictions, resumption, submissions scored again, missed hands, the card."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from data.hand_samples import hand_models, open_hands
from data.synthetic.freihand_writer import write_freihand
from data.synthetic.ho3d_writer import write_ho3d
from pose_tools.mano.estimate import OUTLINE
from pose_tools.mano.evaluate import PredictedHand
from vlm.commands import evaluate, hand_pose
from vlm.commands.console import CommandError
from vlm.evaluation.records import RecordsError, single_writer

COUNT = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("freihand")
    list(write_freihand(path, "train", 0, 5))
    list(write_freihand(path, "test", 0, COUNT))
    return path


class Noisy:
    """The truth with noise that it knows the size of; every call is counted."""

    def __init__(self, miss: int | None = None) -> None:
        self.calls, self.miss = 0, miss

    def __call__(self, options, models):
        def predict(samples):
            self.calls += len(samples)
            answers = []
            for sample in samples:
                noise = 0.002 * (1 + sample.annotation)
                rng = np.random.default_rng(sample.annotation)
                joints, vertices = (x + rng.normal(0, noise, x.shape) for x in (sample.joints_3d, sample.vertices))
                answers.append(None if sample.annotation == self.miss else PredictedHand(joints, vertices, 1 / noise))
            return answers

        return predict


def run(folder: Path, out: Path, *more: str) -> dict:
    assert evaluate.main(["hand-pose", "--data", str(folder), "--out", str(out), "--batch-size", "2", "--sheet", "0", *more]) == 0
    return json.loads((out / "scores.json").read_text())


@pytest.fixture
def noisy(monkeypatch) -> Noisy:
    predictor = Noisy()
    monkeypatch.setattr(hand_pose, "_predictor", predictor)
    return predictor


def test_scores_constants_facts_and_card(folder, tmp_path, noisy, capsys):
    card = tmp_path / "card.md"
    card.write_text("# Model\n\n<!-- evaluate:hand_pose -->\nold\n<!-- /evaluate:hand_pose -->\n\nend\n")
    scores = run(folder, tmp_path / "out", "--card", str(card), "--sheet", "2")
    assert scores["hands"] == scores["clusters"] == noisy.calls == COUNT and scores["found"] == 1
    rows = scores["rows"]
    assert set(rows) == {"model", "constant mean pose", "constant mean joints"}
    best = min(rows[name]["pa_mpjpe"] for name in rows if name != "model")
    assert scores["pa_mpjpe_ratio"] == pytest.approx(rows["model"]["pa_mpjpe"] / best)
    assert scores["doubtful_mpjpe"] > 1.5 and scores["spread_min"] > 0.5
    assert scores["official"]["xyz_mean3d"] == pytest.approx(rows["model"]["mpjpe_camera"] / 10)
    text = card.read_text()
    assert "PA-MPJPE, mm" in text and "old" not in text and text.endswith("end\n") and "least confident" in text
    assert (tmp_path / "out" / "sheet.png").is_file() and "table:" in capsys.readouterr().out
    lines = (tmp_path / "out" / "per_hand.csv").read_text().splitlines()
    assert len(lines) == COUNT + 1 and lines[0].startswith("id,pa_mpjpe")


def test_stopped_and_continued_is_uninterrupted_and_needs_no_model_at_the_end(folder, tmp_path, noisy):
    whole = run(folder, tmp_path / "whole")
    shutil.copytree(tmp_path / "whole", tmp_path / "cut")
    lines = (tmp_path / "cut" / "predictions.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "cut" / "predictions.jsonl").write_bytes(b"".join(lines[:3]) + lines[3][:50])
    noisy.calls = 0
    assert run(folder, tmp_path / "cut") == whole and noisy.calls == 4
    assert (tmp_path / "cut" / "predictions.jsonl").read_bytes() == (tmp_path / "whole" / "predictions.jsonl").read_bytes()
    noisy.calls = 0
    assert run(folder, tmp_path / "cut") == whole and noisy.calls == 0
    with pytest.raises(RecordsError, match="hands was"):
        run(folder, tmp_path / "cut", "--limit", "3")
    with single_writer(tmp_path / "cut"), pytest.raises(RecordsError, match="another process"):
        run(folder, tmp_path / "cut")


def test_a_submission_is_scored_again_as_the_model_was(folder, tmp_path, noisy):
    first = run(folder, tmp_path / "a", "--submission", str(tmp_path / "pred.zip"))
    noisy.calls = 0
    again = run(folder, tmp_path / "b", "--predictions", str(tmp_path / "pred.zip"))
    assert noisy.calls == 0
    for name, value in first["rows"]["model"].items():
        assert again["rows"]["model"][name] == pytest.approx(value, abs=2e-3), name
    assert again["official"] == pytest.approx(first["official"], abs=1e-3)
    with pytest.raises(CommandError, match="6 predictions for the .* pictures"):
        run(folder, tmp_path / "c", "--predictions", str(tmp_path / "pred.zip"), "--split", "train")


def test_a_missed_hand_costs_and_is_counted(folder, tmp_path, monkeypatch):
    monkeypatch.setattr(hand_pose, "_predictor", Noisy(miss=2))
    scores = run(folder, tmp_path / "out")
    assert scores["found"] == pytest.approx(1 - 1 / COUNT) and scores["rows"]["model"]["pa_mpjpe"] > 100 / COUNT
    assert "official" not in scores and "A missed hand costs 100 mm" in (tmp_path / "out" / "table.md").read_text()
    with pytest.raises(Exception, match="hand 2 is missed"):
        run(folder, tmp_path / "out", "--submission", str(tmp_path / "pred.json"))


def test_boxes_of_a_detector_that_is_right_score_as_the_true_ones_and_none_is_a_miss(folder, tmp_path, monkeypatch):
    hands = open_hands("freihand", folder, "test", models=hand_models())
    truth = {hands[i].image.tobytes(): (i, hands[i].bbox_xyxy) for i in range(COUNT)}

    def detect(image):
        number, box = truth[image.tobytes()]
        low, high = box.reshape(2, 2)
        outline = np.concatenate([(low + high) / 2 - (high - low) * OUTLINE / 2, (low + high) / 2 + (high - low) * OUTLINE / 2])
        elsewhere = SimpleNamespace(bbox_xyxy=outline + 10 * np.ptp(outline))
        return [] if number == 1 else [elsewhere] if number == 2 else [elsewhere, SimpleNamespace(bbox_xyxy=outline)]

    monkeypatch.setattr("pose_tools.detect.detect_hands", detect)
    run(folder, tmp_path / "truth")
    scores = run(folder, tmp_path / "found", "--boxes", "detector")
    assert scores["found"] == pytest.approx((COUNT - 2) / COUNT)
    expected, got = (_per_hand(tmp_path / name) for name in ("truth", "found"))
    for number, (a, b) in enumerate(zip(expected, got, strict=True)):
        assert float(b["mpjpe"]) == pytest.approx(100.0 if number in (1, 2) else float(a["mpjpe"]), abs=1e-2)


def _per_hand(out: Path) -> list[dict[str, str]]:
    with (out / "per_hand.csv").open() as file:
        return list(csv.DictReader(file))


def test_ho3d_by_its_own_program(tmp_path, noisy):
    list(write_ho3d(tmp_path / "data", "train", 0, 5, size=(160, 120)))
    list(write_ho3d(tmp_path / "data", "test", 0, 2, size=(160, 120)))
    scores = run(tmp_path / "data", tmp_path / "out", "--kind", "ho3d", "--submission", str(tmp_path / "pred.json"))
    assert "xyz_scale_trans_al_mean3d" in scores["official"]
    assert scores["official"]["xyz_mean3d"] == pytest.approx(scores["rows"]["model"]["mpjpe_camera"] / 10)
    again = run(tmp_path / "data", tmp_path / "again", "--kind", "ho3d", "--predictions", str(tmp_path / "pred.json"))
    assert again["official"] == pytest.approx(scores["official"], abs=1e-3)


@pytest.mark.parametrize("kind", ["ho3d", "freihand"])
def test_blind_sets_give_a_submission_and_no_table(kind, tmp_path, noisy, monkeypatch, capsys):
    hand = PredictedHand(np.zeros((21, 3)), np.zeros((778, 3)))
    monkeypatch.setattr(hand_pose, "_predictor", lambda options, models: lambda samples: [hand] * len(samples))
    data = tmp_path / "data"
    list(write_ho3d(data, "test", 0, 1, size=(160, 120)) if kind == "ho3d" else write_freihand(data, "test", 0, 1))
    for name in ("xyz", "verts", "mano"):
        (data / f"evaluation_{name}.json").unlink(missing_ok=True)
    arguments = ["hand-pose", "--data", str(data), "--kind", kind, "--out", str(tmp_path / "out")]
    assert evaluate.main([*arguments, "--submission", str(tmp_path / "pred.json")]) == 0
    assert (tmp_path / "pred.json").is_file() and "no truth" in capsys.readouterr().out
    assert not (tmp_path / "out" / "table.md").exists()


def test_a_blind_submission_is_that_of_the_same_boxes_with_labels(folder, tmp_path, monkeypatch):
    """Pictures, intrinsics and boxes are all that the regressor needs; a hand that no detector finds is where hands usually are."""
    shutil.copytree(folder, tmp_path / "blind", ignore=shutil.ignore_patterns("evaluation_xyz*", "evaluation_verts*", "evaluation_mano*"))
    usual = open_hands("freihand", tmp_path / "blind", "test").label(0).bbox_xyxy
    monkeypatch.setattr("pose_tools.detect.detect_hands", lambda image: [])
    answers = {}
    for boxes in ("truth", "detector"):
        out, pred = tmp_path / boxes, tmp_path / f"{boxes}.json"
        more = ["--boxes", boxes, "--submission", str(pred), "--batch-size", "2"]
        assert evaluate.main(["hand-pose", "--data", str(tmp_path / "blind"), "--out", str(out), *more]) == 0
        answers[boxes] = json.loads(pred.read_text())
    monkeypatch.setattr("data.freihand.box_of", lambda points: usual)
    run(folder, tmp_path / "labelled", "--submission", str(tmp_path / "labelled.json"))
    assert answers["truth"] == answers["detector"] == json.loads((tmp_path / "labelled.json").read_text())
    assert [len(part) for part in answers["truth"]] == [COUNT, COUNT]


def test_splits_never_share_an_annotation(folder):
    parts = [open_hands("freihand", folder, split, models=hand_models(), val_share=0.4) for split in ("train", "val")]
    clusters = [{part.cluster(i) for i in range(len(part))} for part in parts]
    assert not clusters[0] & clusters[1] and len(clusters[0] | clusters[1]) == 5
    assert len(parts[0]) == 4 * len(clusters[0])


def test_bad_options_are_one_clear_error_each(folder, tmp_path):
    for more, words in ((["--setup", "s1"], "is DexYCB's"), (["--mano", str(folder / "training_K.json")], "--mano")):
        with pytest.raises(CommandError, match=words):
            run(folder, tmp_path, *more)
