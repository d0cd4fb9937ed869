"""`evaluate body` on a few synthetic rooms and small random networks: kept predictions, resumption, files scored again, pictures."""

from __future__ import annotations

import json
import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.ego_body import EgoBody
from data.ego_body_scenes import cut_out, preprocess_stage1, preprocess_stage2, true_bodies
from data.ego_body_truth import scan_around, truth_of
from data.synthetic.ego_body_writer import write_ego_body
from pose_tools.body_models import load_smpl
from tests.pose_tools.egohmr.small import small_folder
from vlm.commands import evaluate
from vlm.commands.console import CommandError
from vlm.evaluation.body import Bodies, Scoring, ask, score
from vlm.evaluation.records import RecordsError

COUNT = 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("rooms")
    list(write_ego_body(path, "train", 0, 2))
    list(write_ego_body(path, "test", 0, COUNT))
    return path


@pytest.fixture(scope="module")
def model(tmp_path_factory) -> Path:
    return small_folder(tmp_path_factory.mktemp("model"))


def run(folder: Path, model: Path, out: Path, *more: str) -> dict:
    common = ["--data", str(folder), "--model", str(model), "--out", str(out), "--sampler", "dpm++", "--steps", "2", "--samples", "2"]
    assert evaluate.main(["body", *common, "--batch-size", "2", *more]) == 0
    return json.loads((out / "scores.json").read_text())


@pytest.fixture(scope="module")
def whole(folder, model, tmp_path_factory) -> Path:
    out = tmp_path_factory.mktemp("whole")
    run(folder, model, out, "--save-transl", "--save-results")
    return out


def test_the_truth_scores_zero_and_touches_the_scene(folder):
    from pose_tools.egohmr.collision import CapsuleField

    smpl = load_smpl()
    data = EgoBody(folder, "test", smpl=smpl)
    asked = ask(data)
    pose = true_bodies(data, asked.numbers).pose.numpy()
    perfect = [Bodies(pose[i][None], data.rows["shape"][i][None], data.rows["transl_pv"][i][None]) for i in asked.numbers]
    found = score(asked, perfect, Scoring(smpl, CapsuleField(smpl)))
    assert max(found[name].value for name in ("G-MPJPE", "V2V", "PA-MPJPE", "translation")) < 0.05
    assert found["contact"].value == 1 and found["collision"].value < 0.02


def test_hidden_joints_are_fewer_by_the_frame_than_by_the_labels(folder):
    data = EgoBody(folder, "test", smpl=load_smpl())
    labels, frame = (truth_of(data, range(COUNT), seen) for seen in ("labels", "frame"))
    assert (frame.visible | ~labels.visible).all() and np.array_equal(labels.visible, data.rows["joints_visible"].astype(bool))
    assert (frame.vertices_visible | ~labels.vertices_visible).all()
    around = scan_around(data, 0, labels.body.joints[0, 0].double().numpy())
    assert around.shape[1] == 3 and len(around) > 500


def test_rows_intervals_facts_and_files(folder, model, whole, tmp_path, capsys):
    card = tmp_path / "card.md"
    card.write_text("# Model\n\n<!-- evaluate:body -->\nold\n<!-- /evaluate:body -->\n")
    scores = run(folder, model, whole, "--card", str(card))
    assert scores["pictures"] == COUNT and set(scores["rows"]) == {"stage 1, its mode", "stage 1", "stage 2", "mean pose"}
    assert scores["rows"]["stage 2"]["collision"] is not None and "collision" not in scores["rows"]["mean pose"]
    text = card.read_text()
    assert "old" not in text and "MPJPE-invis (best of 2), mm" in text and "stage 2 over stage 1" in text and "best of 1" not in text
    assert "within 1 (68 % of a normal)" in text and "annotated bodies themselves" in text
    assert evaluate.main(["compare", str(whole), str(whole), "--data", str(folder)]) == 0
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("| MPJPE |")]
    assert len(lines) == 1 and "1.000" in lines[0]


@pytest.mark.slow
def test_stopped_and_continued_is_uninterrupted(folder, model, whole, tmp_path, monkeypatch):
    cut = tmp_path / "cut"
    shutil.copytree(whole, cut)
    lines = (cut / "stage2.jsonl").read_bytes().splitlines(keepends=True)
    (cut / "stage2.jsonl").write_bytes(lines[0] + lines[1] + lines[2][:40])
    assert run(folder, model, cut)["rows"] == json.loads((whole / "scores.json").read_text())["rows"]
    assert (cut / "stage2.jsonl").read_bytes() == (whole / "stage2.jsonl").read_bytes()
    with pytest.raises(RecordsError, match="samples was"):
        run(folder, model, cut, "--samples", "3")


@pytest.mark.slow
def test_results_are_scored_again_as_the_model_was(folder, model, whole, tmp_path):
    first = json.loads((whole / "scores.json").read_text())["rows"]["stage 2"]
    again = run(folder, model, tmp_path / "again", "--results", str(whole / "results_seed_0.pkl"))["rows"]["results"]
    for name, value in first.items():
        assert again[name] == pytest.approx(value, rel=1e-4, abs=1e-6), name
    content = pickle.loads((whole / "results_seed_0.pkl").read_bytes())
    assert content["pred_body_pose_list"].shape == (COUNT, 2, 23, 3, 3)
    transl = content.pop("pred_cam_full_list")
    assert np.array_equal(transl, pickle.loads((whole / "results.pkl").read_bytes())["pred_cam_full_list"])
    content |= {"collision_ratio_list": np.full((COUNT, 2), 0.25), "contact_ratio_list": np.full((COUNT, 2), 1)}
    (tmp_path / "bare.pkl").write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CommandError, match="no pred_cam_full_list"):
        run(folder, model, tmp_path / "b", "--results", str(tmp_path / "bare.pkl"))
    given = ["--results", str(tmp_path / "bare.pkl"), "--transl", str(whole / "results.pkl"), "--protocol", "compat"]
    published = run(folder, model, tmp_path / "c", *given)["rows"]["results"]
    assert published["collision"] == 0.25 and published["contact"] == 1 and published["MPJPE"] == pytest.approx(first["MPJPE"], rel=1e-4)
    assert published["APD"] == pytest.approx(first["APD"] / 2, rel=1e-3)
    moved = content | {"pred_cam_full_list": transl, "gt_cam_full_list": content["gt_cam_full_list"][::-1]}
    (tmp_path / "moved.pkl").write_bytes(pickle.dumps(moved, protocol=2))
    with pytest.raises(CommandError, match="another order"):
        run(folder, model, tmp_path / "d", "--results", str(tmp_path / "moved.pkl"))
    with pytest.raises(CommandError, match="rows for the 2 pictures"):
        run(folder, model, tmp_path / "e", "--results", str(whole / "results_seed_0.pkl"), "--split", "train")
    with pytest.raises(CommandError, match="translations only"):
        run(folder, model, tmp_path / "f", "--results", str(whole / "results.pkl"))


@pytest.mark.slow
def test_stages_alone_and_preprocessed_points_agree_with_both_at_once(folder, model, whole, tmp_path):
    data = EgoBody(folder, "test", smpl=load_smpl())
    list(preprocess_stage1(folder, "test", tmp_path / "s1", target=300, spacing=1))
    list(preprocess_stage2(folder, "test", tmp_path / "s2", transl=whole / "results.pkl", target=300))
    read = EgoBody(folder, "test", smpl=load_smpl(), scenes=tmp_path / "s1")
    assert np.allclose(read.scene_points(1), cut_out(data, 1, 1, target=300), atol=1e-6)
    both = ["--scenes", str(tmp_path / "s1"), "--scenes-2", str(tmp_path / "s2")]
    second = run(folder, model, tmp_path / "two", *both, "--stage", "2", "--transl", str(whole / "results.pkl"))
    expected = json.loads((whole / "scores.json").read_text())["rows"]["stage 2"]
    for name in ("MPJPE", "collision", "APD"):
        assert second["rows"]["stage 2"][name] == pytest.approx(expected[name], rel=1e-2), name
    true = run(folder, model, tmp_path / "true", "--stage", "2", "--transl", "truth", "--guidance", "none")
    assert true["rows"]["stage 2"]["translation"] < 400 and set(true["rows"]) == {"stage 2", "mean pose"}


@pytest.mark.slow
def test_pictures_and_meshes(folder, model, whole):
    run(folder, model, whole, "--render", "1", "--render-samples", "--meshes", "ply")
    pictures = sorted(path.name for path in (whole / "render").iterdir())
    assert len(pictures) == 2 and pictures[0].startswith("stage1_recording_test") and pictures[0].endswith(".jpg")
    assert len(list((whole / "meshes").glob("*.ply"))) == 2


def test_a_body_outside_the_room_gets_the_points_nearest_to_it(folder):
    data = EgoBody(folder, "test", smpl=load_smpl())
    assert cut_out(data, 0, 2, np.array([40.0, 0.0, 40.0]), target=50).shape == (50, 3)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--samples", "0"], "--samples is 0"),
        (["--limit", "0"], "--limit is 0"),
        (["--stage", "2"], "needs --transl"),
        (["--stage", "2", "--save-transl", "--transl", "truth"], "stage 1's translations"),
        (["--stage", "1", "--save-results"], "stage 2's answers"),
        (["--guidance", "none", "--published-guidance", "coap"], "--guidance is none"),
        (["--guidance", "coap"], "needs --smpl"),
        (["--smpl", "nowhere"], "--smpl"),
        (["--save-transl", "--limit", "1"], "leave --limit out"),
    ],
)
def test_bad_options_are_one_clear_error_each(folder, model, tmp_path, more, message):
    with pytest.raises(CommandError, match=message):
        run(folder, model, tmp_path, *more)


def test_a_checkpoint_of_the_other_stage_is_refused(folder, model, tmp_path):
    with pytest.raises(CommandError, match="stage 2, asked for stage 1"):
        run(folder, model / "stage2.safetensors", tmp_path / "a", "--stage", "1", "--side", "48")
    with pytest.raises(CommandError, match="say which with --stage"):
        run(folder, model / "stage2.safetensors", tmp_path / "b")
    with pytest.raises(CommandError, match="needs --statistics"):
        run(folder, model / "stage2.safetensors", tmp_path / "c", "--stage", "2", "--transl", "truth", "--side", "48")
    with pytest.raises(CommandError, match="no such checkpoint"):
        run(folder, tmp_path / "nothing.pt", tmp_path / "d", "--stage", "1")
