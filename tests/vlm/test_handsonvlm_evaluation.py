"""`evaluate trajectory --protocol compat` on a folder as published, with a converted checkpoint: what the published program would print."""

from __future__ import annotations

import json
import pickle
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from data.epic_kitchens import FRAME_SIZE, frame_path, observed_frames
from pose_tools.metrics import trajectory_errors
from tests.vlm.test_handsonvlm_parity import PUBLISHED, converted
from vlm.answers import Paths
from vlm.evaluation.asking import Asker
from vlm.evaluation.trajectory_asking import PathAsker, path_reply

STARTS = (211, 400, 700, 900)
TOKEN = PUBLISHED["hand_token_id"]
RNG = np.random.default_rng(7)


def path(low: tuple[float, float], high: tuple[float, float]) -> np.ndarray:
    return np.linspace(low, high, 21)


LABELS = (
    {"RIGHT": path((100, 100), (200, 150)), "LEFT": path((50, 60), (-10, 60))},  # the left hand leaves the frame
    {"RIGHT": path((460, 20), (500, 20)), "LEFT": path((30, 40), (60, 200))},  # the right hand is outside all the time, but labelled
    {"LEFT": path((300, 30), (310, 250))},
    {},  # no hand: not scored, but in the published mean of wde
)


@pytest.fixture(scope="module")
def kitchen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Frames, annotations, labels and questions about the first two actions."""
    folder = tmp_path_factory.mktemp("epic")
    rows, asked = ["participant_id,video_id,start_frame,stop_frame,narration,verb,noun"], {}
    (folder / "labels").mkdir()
    for uid, (start, label) in enumerate(zip(STARTS, LABELS, strict=True)):
        rows.append(f"P01,P01_01,{start},{start + 60},cut onion,cut,onion")
        content = {"hand_trajs": {side: {"traj": traj} for side, traj in label.items()}}
        (folder / "labels" / f"label_{uid}.pkl").write_bytes(pickle.dumps(content))
        names = [frame_path("P01", "P01_01", number) for number in observed_frames(start)]
        for name in names:
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(RNG.integers(0, 255, (FRAME_SIZE[1], FRAME_SIZE[0], 3), dtype=np.uint8)).save(folder / name)
        if uid < 2:
            asked[names[-1]] = '1. "Where would I begin if I were to make a salad?"'
    (folder / "EPIC_100_train.csv").write_text("\n".join(rows) + "\n")
    (folder / "questions.json").write_text(json.dumps(asked))
    return folder


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("model")
    for part in converted():
        part.save_pretrained(folder)
    return folder


class Writes:
    """Makes the model write so many path tokens, with a word after the second, and end."""

    def __init__(self, paths: int) -> None:
        self.ids = [*[TOKEN] * min(paths, 2), 20, *[TOKEN] * max(paths - 2, 0), 2] if paths != 4 else [20, *[TOKEN] * 4, 2]
        self.prompt: int | None = None

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        self.prompt = input_ids.shape[1] if self.prompt is None else self.prompt
        place = input_ids.shape[1] - self.prompt
        only = torch.full_like(scores, -torch.inf)
        only[:, self.ids[place] if place < len(self.ids) else 2] = 0
        return only


def run(monkeypatch: pytest.MonkeyPatch, arguments: list[object], paths: int) -> None:
    from scripts import evaluate

    generate = Asker.generate
    with monkeypatch.context() as patch:
        patch.setattr(Asker, "generate", lambda self, turns, **more: generate(self, turns, logits_processor=[Writes(paths)], **more))
        assert evaluate.main(["trajectory", *map(str, arguments), "--protocol", "compat", "--sheet", "0"]) == 0


def printed(out: Path) -> list[float]:
    """The model's row of the last table: ade, its deviation, fde, wde likewise."""
    section = (out / "table.md").read_text().split("As HandsOnVLM's evaluation prints it")[1]
    (row,) = re.findall(r"^\| as shipped \|(.*)\|$", section, re.MULTILINE)
    return [float(cell) for cell in row.split("|")]


def expected(out: Path, count: int) -> list[float]:
    """The same by the published definitions, from the points in the records."""
    records = [json.loads(line) for line in (out / "predictions" / "as_shipped.jsonl").read_text().splitlines()]
    last, mean, weighted = [], [], []
    for record, label in list(zip(sorted(records, key=lambda record: record["id"]), LABELS, strict=False))[:count]:
        written = record["points"] if record["points"] is not None else record.get("written", [[], []])
        for side, said in zip(("LEFT", "RIGHT"), written, strict=True):
            if side not in label:
                weighted.append(0.0)
                continue
            points = np.reshape(said, (-1, 2))[-4:] / FRAME_SIZE
            points = np.concatenate([points, np.zeros((4 - len(points), 2))])
            truth = label[side][5::5] / FRAME_SIZE
            inside = ((truth >= 0) & (truth < 1)).all(-1)
            far = np.hypot(*(truth - points).T) * inside
            last.append(far[3])
            mean.append(far.sum() / 4)
            weighted.append((far * [0.25, 0.5, 0.75, 1]).sum() / max(inside.sum(), 1))
    return [value for rows in (last, mean, weighted) for value in (np.mean(rows), np.std(rows))]


@pytest.mark.parametrize("paths", [4, 6, 3, 0])
def test_what_is_printed_is_the_published_definition(kitchen: Path, checkpoint: Path, tmp_path: Path, monkeypatch, paths: int):
    """Labelled hands outside the frame count, of more than four points the last ones, fewer are filled with the corner; an action
    whose label has no hand is asked about, too."""
    data = ["--data", kitchen, "--model", checkpoint, "--conditions", "as shipped", "--out", tmp_path / "out", "--asked-as", "vhp"]
    run(monkeypatch, data, paths)
    records = [json.loads(line) for line in (tmp_path / "out/predictions/as_shipped.jsonl").read_text().splitlines()]
    assert len(records) == len(STARTS) and all(record["valid"] == (paths == 4) for record in records)
    assert [np.shape(record.get("written"))[1:2] for record in records] == [(paths,) if paths not in (0, 4) else ()] * len(STARTS)
    np.testing.assert_allclose(printed(tmp_path / "out"), expected(tmp_path / "out", len(STARTS)), atol=6e-5)
    exact = json.loads((tmp_path / "out" / "summary.json").read_text())["as published"]["as shipped"]
    named = [exact[key] for key in ("ade", "ade_std", "fde", "fde_std", "wde", "wde_std")]
    np.testing.assert_allclose(named, expected(tmp_path / "out", len(STARTS)), atol=1e-6)
    assert ", template vicuna_v1)" in (tmp_path / "out" / "table.md").read_text(), "the published evaluation asked in another one"
    if paths == 6:
        run(monkeypatch, [*data, "--rescore"], paths)
        np.testing.assert_allclose(printed(tmp_path / "out"), expected(tmp_path / "out", len(STARTS)), atol=6e-5)


def test_reasoning_questions_are_asked_about_their_clips_alone_and_twice_is_the_same(
    kitchen: Path, checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """The published sampling is drawn from the question's name, however many are asked at a time."""
    asked = ["--asked-as", "rbhp", "--questions", kitchen / "questions.json", "--conditions", "as shipped"]
    found = []
    for number, size in enumerate((1, 8)):
        out = tmp_path / str(number)
        run(monkeypatch, ["--data", kitchen, "--model", checkpoint, *asked, "--batch-size", size, "--out", out], 4)
        records = [json.loads(line) for line in (out / "predictions/as_shipped.jsonl").read_text().splitlines()]
        found.append({record["id"]: record["points"] for record in records})
        np.testing.assert_allclose(printed(out), expected(out, 2), atol=6e-5)
    assert found[0].keys() == found[1].keys() == {"P01_01-0", "P01_01-1"}
    for name, points in found[0].items():
        np.testing.assert_allclose(points, found[1][name], atol=0.02)


def test_noise_of_a_model_that_samples_as_published_is_drawn_for_the_first_path_too():
    model, processor = converted()
    noise = PathAsker(model, processor, steps=4, seed=3).noise(["a", "b"])
    assert noise.shape == (2, 1, 2, 4, 256) and 0.9 < float(noise.std()) < 1.1
    assert torch.equal(PathAsker(model, processor, steps=4, seed=3).noise(["b"])[0], noise[1])


def test_what_is_no_answer_keeps_its_points():
    from pose_tools.views import center_crop

    view = center_crop(FRAME_SIZE, 16)
    points = np.full((2, 6, 2), np.nan)
    points[:, :3] = RNG.uniform(size=(2, 3, 2))
    reply = path_reply("<hand_traj>" * 3, view, "norm1000", Paths(points, steps=4, space="frame"))
    assert not reply.valid
    np.testing.assert_allclose(reply.written, points[:, :3] * FRAME_SIZE)
    assert path_reply("none", view, "norm1000", Paths(points[:, 3:], steps=4, space="frame")).written is None
    assert path_reply("none", view, "norm1000", None).written is None


def test_a_missing_hand_of_no_numbers_is_one_of_the_published_placeholder():
    pred, truth = RNG.uniform(size=(3, 1, 2, 4, 2)), RNG.uniform(-0.2, 1.2, (3, 2, 4, 2))
    valid = np.array([[True, True], [True, False], [False, True]])
    placed, blank = (np.where(valid[..., None, None], truth, missing) for missing in ([[[0.25, 1.5]], [[0.75, 1.5]]], np.nan))
    found, expected = (trajectory_errors(pred, truth, valid, compat="handsonvlm") for truth in (blank, placed))
    assert found == expected and np.isfinite(list(found.values())).all()
