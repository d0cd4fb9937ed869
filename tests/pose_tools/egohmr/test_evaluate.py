"""Scores on cases that can be worked out by hand."""

import math
import pickle

import numpy as np
import pytest

from pose_tools.body_models import UnsafePickleError
from pose_tools.egohmr.evaluate import contact_distance, in_frame, metrics, read_results

RNG = np.random.default_rng(0)
TRUE = RNG.normal(0, 0.4, (3, 24, 3))
VISIBLE = RNG.random((3, 24)) < 0.6


def scores(pred, truth=TRUE, visible=VISIBLE, **given):
    return metrics({"joints": pred}, {"joints": truth, "visible": visible}, **given)


def test_perfect_bodies_score_zero_and_moved_ones_only_globally():
    pred = np.repeat(TRUE[:, None], 4, 1)
    assert all(value < 1e-9 for name, value in scores(pred).items())
    moved = scores(pred + [0.1, 0, 0])
    assert math.isclose(moved["G-MPJPE"], 100) and moved["MPJPE"] < 1e-9 and moved["PA-MPJPE"] < 1e-9


def test_visible_and_invisible_parts_and_the_best_sample():
    offset = np.where(VISIBLE[..., None], [0.01, 0, 0], [0, 0.05, 0])
    offset[:, 0] = 0
    visible = VISIBLE.copy()
    visible[:, 0] = True
    pred = TRUE[:, None] + np.stack([offset, 2 * offset], 1)
    found = scores(pred, visible=visible)
    seen, hidden = (visible[:, 1:] & VISIBLE[:, 1:]).sum(), (~visible).sum()
    assert math.isclose(found["MPJPE-vis"], 15 * seen / visible.sum(), rel_tol=1e-9)
    assert math.isclose(found["MPJPE-invis"], 75) and math.isclose(found["MPJPE-invis (best of 2)"], 50) and hidden
    both = found["MPJPE-vis"] * visible.sum() + found["MPJPE-invis"] * hidden
    assert math.isclose(found["MPJPE"], both / visible.size)


def test_diversity_and_its_published_half():
    pred = np.repeat(TRUE[:, None], 2, 1)
    pred[:, 1, 1:] += [0.03, 0, 0]
    ours, published = scores(pred), scores(pred, compat=True)
    assert math.isclose(ours["APD"], 30 * 23 / 24) and math.isclose(published["APD"], ours["APD"] / 2)
    assert math.isclose(ours["std"], 30 / 2**0.5 / 3 * 23 / 24)
    assert math.isnan(scores(pred[:, :1])["APD"]) and math.isnan(scores(pred[:, :1])["std-invis"])


def test_everything_visible_or_nothing():
    pred = TRUE[:, None] + RNG.normal(0, 0.02, (3, 2, 24, 3))
    every, none = (scores(pred, visible=np.full((3, 24), value)) for value in (True, False))
    assert math.isnan(every["MPJPE-invis"]) and math.isclose(every["MPJPE-vis"], every["MPJPE"])
    assert math.isnan(none["MPJPE-vis"]) and math.isclose(none["MPJPE-invis"], none["MPJPE"])
    # the published masked alignment is the plain one where nothing is masked
    assert math.isclose(scores(pred, visible=np.full((3, 24), True), compat=True)["PA-MPJPE"], every["PA-MPJPE"])


def test_published_alignment_sees_zeros_for_hidden_joints():
    pred = TRUE[:, None] + RNG.normal(0, 0.05, (3, 1, 24, 3))
    from pose_tools.geometry import similarity

    p, q = pred[:, 0] - pred[:, 0, :1], TRUE - TRUE[:, :1]
    mask = VISIBLE[..., None]
    moved = similarity(p * mask, q * mask).apply(p)
    found = scores(pred, compat="egohmr")
    assert math.isclose(found["PA-MPJPE"], 1000 * np.linalg.norm(moved - q, axis=-1).mean())
    assert not math.isclose(found["PA-MPJPE"], scores(pred)["PA-MPJPE"])


def test_contact_distance_and_threshold():
    vertices, scene = np.zeros((1, 2, 5, 3)), np.array([[[0.0, 0, 0.05], [1, 1, 1]]])
    vertices[0, 1] += [0, 0, 0.04]
    distance = contact_distance(vertices, scene)
    assert np.allclose(distance, [[0.05, 0.01]])
    pred = np.repeat(TRUE[:1, None], 2, 1)
    given = {"truth": TRUE[:1], "visible": VISIBLE[:1], "contact": distance, "collision": [[0.1, 0.2]]}
    assert scores(pred, **given)["contact"] == 0.5 and scores(pred, **given, compat=True)["contact"] == 1.0
    assert math.isclose(scores(pred, **given)["collision"], 0.15)


def test_frame_bounds_are_half_open():
    points = np.array([[[0, 0, 1.0], [1920, 0, 1], [1919.9, 1079.9, 1], [-0.1, 5, 1]]])
    assert in_frame(points, [1.0], [[0.0, 0.0]]).tolist() == [[True, False, True, False]]


def test_shapes_and_no_samples_are_refused():
    for pred in (TRUE, TRUE[:, None][:, :0], TRUE[:2, None]):
        with pytest.raises(ValueError, match="S ≥ 1"):
            scores(pred)


def test_results_files_are_read_safely(tmp_path):
    results = {"pred_betas_list": np.zeros((2, 3, 10), np.float32), "pred_global_orient_list": np.ones((2, 3, 1, 3, 3), np.float32),
               "pred_body_pose_list": np.ones((2, 3, 23, 3, 3), np.float32), "collision_ratio_list": np.zeros((2, 3))}  # fmt: skip
    (tmp_path / "results_seed_0.pkl").write_bytes(pickle.dumps(results, protocol=2))
    found = read_results(tmp_path / "results_seed_0.pkl")
    assert all(np.array_equal(found[name], value) for name, value in results.items())
    (tmp_path / "results.pkl").write_bytes(pickle.dumps({"pred_cam_full_list": np.ones((4, 3), np.float32)}, protocol=2))
    assert read_results(tmp_path / "results.pkl")["pred_cam_full_list"].shape == (4, 3)
    (tmp_path / "other.pkl").write_bytes(pickle.dumps({"a": np.zeros(3)}, protocol=2))
    with pytest.raises(ValueError, match="not a results file"):
        read_results(tmp_path / "other.pkl")
    (tmp_path / "bad.pkl").write_bytes(b"cos\nsystem\n(S'true'\ntR.")
    with pytest.raises(UnsafePickleError):
        read_results(tmp_path / "bad.pkl")
