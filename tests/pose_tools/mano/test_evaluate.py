"""Scores of hand poses: the programs' definitions, ours beside them, the constant hands, submission files."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest
from scipy.linalg import orthogonal_procrustes
from scipy.spatial.transform import Rotation

from pose_tools.mano import constant_pose, evaluate
from pose_tools.mano.evaluate import MISSED_MM, PredictedHand, doubtful_ratio, hand_errors, spread_ratios
from pose_tools.mano.submission import SubmissionError, read_submission, to_server, write_submission
from pose_tools.metrics import pa_mpjpe
from pose_tools.types import HandSample

RNG = np.random.default_rng(3)
COUNT = 5
GT = RNG.normal(0, 0.03, (COUNT, 21, 3)) + [0, 0, 0.6]
MESH = RNG.normal(0, 0.03, (COUNT, 778, 3)) + [0, 0, 0.6]
PRED, PRED_MESH = GT + RNG.normal(0, 0.006, GT.shape), MESH + RNG.normal(0, 0.004, MESH.shape)


def samples(joints=GT, mesh=MESH, side="right") -> list[HandSample]:
    return [
        HandSample(np.zeros((0, 0, 3), np.uint8), side, np.array([0, 0, 9, 9]), joints_3d=j, joints_valid=np.ones(21, bool), vertices=v)
        for j, v in zip(joints, mesh)
    ]


def hands(joints=PRED, mesh=PRED_MESH) -> list[PredictedHand]:
    return [PredictedHand(j, v) for j, v in zip(joints, mesh)]


def aligned_as_published(pred: np.ndarray, gt: np.ndarray) -> np.ndarray:
    """The published alignment of one hand, by SciPy."""
    p, q = pred - pred.mean(0), gt - gt.mean(0)
    sizes = np.linalg.norm(p) + 1e-8, np.linalg.norm(q) + 1e-8
    turn, scale = orthogonal_procrustes(q / sizes[1], p / sizes[0])
    return (p / sizes[0]) @ turn.T * scale * sizes[1] + gt.mean(0)


def test_freihand_equals_its_definition_hand_by_hand():
    scores = evaluate.freihand(PRED, PRED_MESH, GT, MESH)
    names = [f"{part}{al}_{what}" for part in ("xyz", "mesh") for al in ("", "_al") for what in ("mean3d", "auc3d")]
    assert set(scores) == {*names, "f_score_5", "f_al_score_5", "f_score_15", "f_al_score_15"}
    for part, pred, gt in (("xyz", PRED, GT), ("mesh", PRED_MESH, MESH)):
        moved = np.stack([aligned_as_published(p, g) for p, g in zip(pred, gt)])
        for name, points in ((f"{part}", pred), (f"{part}_al", moved)):
            distances = np.linalg.norm(points - gt, axis=-1)
            assert scores[f"{name}_mean3d"] == pytest.approx(100 * distances.mean(), rel=1e-9)
            thresholds = np.linspace(0, 0.05, 100)
            per_point = np.trapezoid((distances <= thresholds[:, None, None]).mean(1), thresholds, axis=0) / 0.05
            assert scores[f"{name}_auc3d"] == pytest.approx(np.mean(per_point), rel=1e-9)


def test_the_program_forgives_mirrored_hands_and_we_do_not():
    mirrored = GT * [-1, 1, 1]
    theirs = evaluate.freihand(mirrored, MESH * [-1, 1, 1], GT, MESH)
    ours = hand_errors(hands(mirrored, MESH * [-1, 1, 1]), samples())
    assert theirs["xyz_al_mean3d"] < 1e-5 and theirs["mesh_al_mean3d"] < 1e-5
    assert ours["pa_mpjpe"].min() > 10 and ours["pa_pve"].min() > 10


def test_exact_predictions():
    scores = evaluate.freihand(GT, MESH, GT, MESH)
    assert scores["xyz_mean3d"] == 0 and scores["xyz_auc3d"] == scores["f_score_5"] == scores["f_al_score_15"] == 1
    assert 0 < scores["xyz_al_mean3d"] < 1e-5 and scores["xyz_al_auc3d"] == pytest.approx(0.994949, abs=1e-6)
    ours = hand_errors(hands(GT, MESH), samples())
    for name, values in ours.items():
        assert values == pytest.approx(0.0 if name in evaluate.DISTANCES else 1.0, abs=0.006), name  # AUC: rounding exceeds 0


def test_other_numbers_of_vertices_use_the_joints_alignment():
    scores = evaluate.freihand(GT + 0.002, MESH[:, :500] + 0.002, GT, MESH)
    assert scores["mesh_mean3d"] == -100 and scores["mesh_al_auc3d"] == -1
    assert 0 <= scores["f_score_5"] < 1 and 0 <= scores["f_al_score_5"] < 1
    with pytest.raises(ValueError, match="joints: expected"):
        evaluate.freihand(GT[:, :20], MESH, GT, MESH)
    with pytest.raises(ValueError, match="vertices: expected"):
        evaluate.freihand(GT, MESH[:3], GT, MESH)


def test_ho3d_has_the_scale_translation_alignment():
    scores = evaluate.ho3d(1.3 * GT + 0.01, MESH, GT, MESH)
    assert scores["xyz_scale_trans_al_mean3d"] == pytest.approx(0, abs=1e-12) and scores["xyz_scale_trans_al_auc3d"] > 0.99
    assert scores["xyz_procrustes_al_mean3d"] < 1e-5 and "xyz_al_mean3d" not in scores
    plain = evaluate.freihand(PRED, PRED_MESH, GT, MESH)
    same = evaluate.ho3d(PRED, PRED_MESH, GT, MESH)
    assert all(same[name.replace("xyz_al", "xyz_procrustes_al")] == value for name, value in plain.items())
    assert np.isfinite(list(evaluate.ho3d(np.zeros_like(GT), MESH, GT, MESH).values())).all()


def test_ours_equals_the_library_and_does_not_care_about_the_batch():
    together = hand_errors(hands(), samples())
    assert np.allclose(together["pa_mpjpe"], 1000 * pa_mpjpe(PRED, GT))
    alone = [hand_errors(hands()[i : i + 1], samples()[i : i + 1]) for i in range(COUNT)]
    for name, values in together.items():
        assert np.array_equal(values, np.concatenate([one[name] for one in alone]))


def test_measures_are_blind_to_what_they_should_be_blind_to():
    turn = Rotation.from_rotvec([0.3, -0.2, 0.9]).as_matrix()
    moved = hand_errors(hands(1.2 * PRED @ turn.T + 0.1, 1.2 * PRED_MESH @ turn.T + 0.1), samples())
    shifted = hand_errors(hands(PRED + 0.05, PRED_MESH + 0.05), samples())
    plain = hand_errors(hands(), samples())
    for name in ("pa_mpjpe", "pa_pve", "pa_auc", "pa_f5"):
        assert np.allclose(moved[name], plain[name], atol=1e-9)
    for name in ("mpjpe", "pve", "auc", "f15"):
        assert np.allclose(shifted[name], plain[name], atol=1e-9)
    assert (shifted["mpjpe_camera"] > plain["mpjpe_camera"] + 50).all()
    flip = [-1, 1, 1]
    left = hand_errors(hands(PRED * flip, PRED_MESH * flip), samples(GT * flip, MESH * flip, "left"))
    assert all(np.allclose(left[name], plain[name]) for name in plain)


def test_invalid_joints_and_missing_parts_do_not_count():
    truth = samples()
    valid = np.ones(21, bool)
    valid[[4, 8]] = False
    wild = GT[0].copy()
    wild[[4, 8]] += 1.0
    truth[0] = replace(truth[0], joints_3d=wild, joints_valid=valid)
    truth[1] = replace(truth[1], joints_valid=np.arange(21) > 0)
    truth[2] = replace(truth[2], vertices=None)
    errors = hand_errors([*hands()[:3], None], truth[:4])
    assert errors["mpjpe"][0] < 30 and errors["pa_mpjpe"][0] < 30
    assert np.isnan(errors["mpjpe"][1]) and np.isnan(errors["pve"][1]) and errors["pa_mpjpe"][1] < 30
    assert np.isnan(errors["f5"][2]) and errors["mpjpe"][2] < 30
    assert {name: values[3] for name, values in errors.items()} == {n: MISSED_MM if n in evaluate.DISTANCES else 0 for n in errors}


def test_bad_predictions_are_named():
    for joints, words in ((GT[0][:20], r"\(20, 3\)"), (GT[0] * np.nan, "finite"), (GT[0] * 1000, "millimetres")):
        with pytest.raises(ValueError, match=words):
            hand_errors([PredictedHand(joints)], samples()[:1])
    with pytest.raises(ValueError, match="no true joints"):
        hand_errors(hands()[:1], [replace(samples()[0], joints_3d=None)])
    with pytest.raises(ValueError, match="2 predictions for 1"):
        hand_errors(hands()[:2], samples()[:1])


def test_spread_is_one_for_the_truth_and_zero_for_a_constant():
    assert np.allclose(spread_ratios(hands(GT), samples()), 1)
    assert np.allclose(spread_ratios(hands(np.broadcast_to(GT[0], GT.shape)), samples()), 0)
    half = GT.mean(0) + 0.5 * (GT - GT.mean(0))
    assert np.allclose(spread_ratios(hands(half), samples()), 0.5)
    assert np.isnan(spread_ratios([None] * COUNT, samples())).all()


def test_doubtful_ratio():
    assert doubtful_ratio(np.array([4.0, 1, 1, 1, 1]), np.array([0.1, 0.9, 0.8, 0.7, 0.6])) == 4
    assert np.isnan(doubtful_ratio(np.ones(2), np.ones(2)))


def test_constant_hands_are_the_best_of_their_kind():
    shape = RNG.normal(0, 0.04, (21, 3))
    turns = Rotation.from_rotvec(RNG.normal(0, 0.7, (20, 3))).as_matrix()
    joints = np.einsum("nij,nkj->nki", turns, shape + RNG.normal(0, 0.004, (20, 21, 3))) + [0.02, 0, 0.5]
    mesh = np.concatenate([joints, joints.mean(1, keepdims=True).repeat(757, 1)], 1)
    train, test = samples(joints[:10], mesh[:10]), samples(joints[10:], mesh[10:])
    pose, mean = constant_pose.mean_pose(train), constant_pose.mean_joints(train)
    score = {name: hand_errors(p(test), test) for name, p in (("pose", pose), ("mean", mean))}
    any_one = hand_errors([PredictedHand(joints[0], mesh[0])] * 10, test)
    assert score["pose"]["pa_mpjpe"].mean() < any_one["pa_mpjpe"].mean() and score["pose"]["pa_mpjpe"].mean() < 8
    from_wrist = joints[:10] - joints[:10, :1]
    squares = [((hand - hand[0] - from_wrist) ** 2).sum() for hand in (mean.joints, pose.joints, joints[0], joints[3])]
    assert min(squares) == squares[0] < squares[1] < squares[2]
    assert np.allclose(pose.vertices[:21], pose.joints)  # vertices go where joints go
    flip = [-1, 1, 1]
    mirrored = samples(joints[:10] * flip, mesh[:10] * flip, "left")
    for make in (constant_pose.mean_pose, constant_pose.mean_joints):
        assert np.allclose(make(mirrored).joints, make(train).joints)
        assert np.allclose(make(train)(mirrored[:1])[0].joints_3d, make(train).joints * flip)
    with pytest.raises(ValueError, match="no constant hand"):
        constant_pose.mean_pose([replace(train[0], joints_3d=None)])


@pytest.mark.parametrize("server", ("freihand", "ho3d"))
@pytest.mark.parametrize("suffix", (".json", ".zip"))
def test_submissions_come_back(tmp_path, server, suffix):
    write_submission(tmp_path / f"pred{suffix}", hands(), server)
    back = read_submission(tmp_path / f"pred{suffix}", server)
    assert np.allclose([h.joints_3d for h in back], PRED, atol=6e-7) and np.allclose([h.vertices for h in back], PRED_MESH, atol=6e-7)


def test_ho3d_is_submitted_in_opengl_with_the_middle_base_fourth(tmp_path):
    write_submission(tmp_path / "pred.json", hands(), "ho3d")
    joints, vertices = (np.array(part) for part in json.loads((tmp_path / "pred.json").read_text()))
    assert (joints[:, :, 2] < 0).all() and (vertices[:, :, 2] < 0).all()
    assert np.allclose(joints[:, 4], PRED[:, 9] * [1, -1, -1], atol=6e-7)
    ours, theirs = to_server(PRED, PRED_MESH, "ho3d"), to_server(GT, MESH, "ho3d")
    assert evaluate.ho3d(*ours, *theirs)["xyz_mean3d"] == pytest.approx(evaluate.freihand(PRED, PRED_MESH, GT, MESH)["xyz_mean3d"])


def test_bad_submissions_are_one_clear_error_each(tmp_path):
    with pytest.raises(SubmissionError, match="hand 1 is missed"):
        write_submission(tmp_path / "a.json", [hands()[0], None], "freihand")
    with pytest.raises(SubmissionError, match="no vertices"):
        write_submission(tmp_path / "a.json", [PredictedHand(GT[0])], "freihand")
    with pytest.raises(SubmissionError, match=".json or .zip"):
        write_submission(tmp_path / "a.txt", hands(), "freihand")
    assert list(tmp_path.iterdir()) == []
    path = tmp_path / "a.json"
    write_submission(path, hands()[:2], "freihand")
    whole = path.read_text()
    with pytest.raises(SubmissionError, match="z > 0"):
        read_submission(path, "ho3d")
    joints, vertices = json.loads(whole)
    for content, words in (
        (whole[:80], "not a whole"),
        ("{}", "expected json"),
        (json.dumps([[joint[:20] for joint in joints], vertices]), r"joints \(2, 21, 3\)"),
        (json.dumps([joints, vertices[:1]]), r"vertices \(2, 778, 3\)"),
        (json.dumps([(np.array(joints) * 1000).tolist(), vertices]), "millimetres"),
    ):
        path.write_text(content)
        with pytest.raises(SubmissionError, match=words):
            read_submission(path, "freihand")
    (tmp_path / "a.zip").write_bytes(b"PK")
    with pytest.raises(SubmissionError, match="not a whole"):
        read_submission(tmp_path / "a.zip", "freihand")
    with pytest.raises(SubmissionError, match="no such file"):
        read_submission(tmp_path / "b.json", "freihand")
