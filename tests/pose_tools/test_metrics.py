"""Metrics against definitions written out by hand, symmetries, and NumPy = torch."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.spatial.transform import Rotation

from pose_tools import metrics

RNG = np.random.default_rng(0)
PRED, GT = RNG.normal(size=(2, 6, 21, 3))
BOXES = arrays(np.float64, st.tuples(st.integers(0, 5), st.just(4)), elements=st.floats(-50, 50))


def test_mpjpe_is_the_mean_distance():
    expected = np.sqrt(((PRED - GT) ** 2).sum(-1)).mean(-1)
    assert np.allclose(metrics.mpjpe(PRED, GT), expected)
    assert metrics.mpjpe(PRED[2], GT[2]) == pytest.approx(expected[2])
    assert np.allclose(metrics.mpjpe(PRED + 5, PRED, root=9), 0)
    valid = np.zeros((6, 21), bool)
    valid[:, 3] = True
    assert np.allclose(metrics.mpjpe(PRED, GT, valid=valid), np.linalg.norm(PRED - GT, axis=-1)[:, 3])
    assert np.isnan(metrics.mpjpe(PRED, GT, valid=np.zeros((6, 21)))).all()


def test_procrustes_forgives_similarities_only():
    turn = Rotation.random(6, random_state=1).as_matrix()
    moved = 3 * GT @ turn.transpose(0, 2, 1) + RNG.normal(size=(6, 1, 3))
    assert np.allclose(metrics.procrustes(moved, GT), GT)
    assert metrics.pa_mpjpe(moved, GT).max() < 1e-12
    assert (metrics.pa_mpjpe(PRED, GT) < metrics.mpjpe(PRED, GT)).all()
    single = [metrics.pa_mpjpe(p, g) for p, g in zip(PRED, GT, strict=True)]
    assert np.allclose(single, metrics.pa_mpjpe(PRED, GT))
    assert metrics.pa_mpjpe(3 * GT, GT).max() < 1e-12 < metrics.mpjpe(metrics.procrustes(3 * GT, GT, scale=False), GT).min()


def test_a_mirrored_prediction_is_forgiven_only_on_demand(caplog):
    mirrored = GT * [-1, 1, 1]
    assert metrics.pa_mpjpe(mirrored, GT, allow_reflection=True).max() < 1e-12
    assert not caplog.records
    assert metrics.pa_mpjpe(mirrored, GT).min() > 0.1
    assert "6 of 6 predictions are mirror images" in caplog.text


def test_f_score():
    square = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0.0]])
    assert metrics.f_score(square, square, 0.1) == 1
    assert metrics.f_score(square, square + [0, 0, 0.1], 0.1) == 0  # strictly nearer
    assert metrics.f_score(square[:1], square, 0.5) == pytest.approx(2 * 1 * 0.25 / 1.25)
    both = metrics.f_score(np.stack([square, square]), np.stack([square, square + 9]), 0.5)
    assert both.tolist() == [1, 0]


def test_auc():
    assert metrics.auc(np.zeros((3, 21)), 0, 50) == pytest.approx(1)
    assert metrics.auc([51, 60], 0, 50) == 0
    assert metrics.auc([0, np.nan], 0, 50) == pytest.approx(0.5)
    uniform = np.linspace(0, 50, 5001)
    assert metrics.auc(uniform, 0, 50, 100) == pytest.approx(0.5, abs=1e-3)
    thresholds = np.linspace(20, 50, 15)
    errors = RNG.uniform(0, 70, 99)
    share = [(errors <= t).mean() for t in thresholds]
    area = sum((x + y) / 2 for x, y in zip(share, share[1:], strict=False)) / 14
    assert metrics.auc(errors, 20, 50, 15) == pytest.approx(area)
    with pytest.raises(ValueError, match="0 errors"):
        metrics.auc([], 0, 50)


@settings(max_examples=200)
@given(a=BOXES, b=BOXES)
def test_box_iou_of_any_boxes(a, b):
    for compat in (None, "vlm4hoi"):
        iou = metrics.box_iou(a, b, compat)
        assert iou.shape == (len(a), len(b)) and (iou >= 0).all() and (iou <= 1 + 1e-9).all()
        assert np.allclose(iou, metrics.box_iou(b, a, compat).T)
        for i, box in enumerate(a):
            assert np.array_equal(metrics.box_iou(box, b, compat), iou[i])
            for j, other in enumerate(b):
                assert metrics.box_iou(box, other, compat) == iou[i, j]
                if (box[2:] < box[:2]).any():
                    assert iou[i, j] == 0


def test_box_iou_counts_pixels():
    grid = np.zeros((2, 40, 40), bool)
    a, b = (3, 4, 20, 30), (10, 2, 35, 18)
    for mask, (x1, y1, x2, y2) in zip(grid, (a, b), strict=True):
        mask[y1:y2, x1:x2] = True
    assert metrics.box_iou(a, b) == pytest.approx((grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum())
    for mask, (x1, y1, x2, y2) in zip(grid, (a, b), strict=True):
        mask[y1 : y2 + 1, x1 : x2 + 1] = True
    assert metrics.box_iou(a, b, "vlm4hoi") == pytest.approx((grid[0] & grid[1]).sum() / (grid[0] | grid[1]).sum())
    assert metrics.box_iou((1, 1, 1, 1), (1, 1, 1, 1)) == 0  # half-open and empty
    assert metrics.box_iou((1, 1, 1, 1), (1, 1, 1, 1), "vlm4hoi") == 1  # one pixel
    assert metrics.box_iou((0, 0, np.nan, 1), (0, 0, 1, 1)) == 0
    with pytest.raises(ValueError, match=r"expected boxes \(4,\) or \(N, 4\), got \(3,\)"):
        metrics.box_iou((1, 2, 3), a)


def test_matching_is_one_to_one_and_best():
    gt = np.array([[0, 0, 10, 10], [20, 0, 30, 10], [50, 50, 60, 60.0]])
    pred = np.array([[21, 0, 31, 10], [0, 0, 10, 9], [0, 0, 10, 10], [90, 90, 95, 95]])
    pairs = metrics.match_boxes(pred, gt)
    assert [(i, j) for i, j, _ in pairs] == [(0, 1), (2, 0)] and pairs[1][2] == 1
    assert metrics.match_boxes(pred, gt, threshold=0.9) == [pairs[1]]
    assert metrics.match_boxes([], gt) == metrics.match_boxes(pred, []) == []
    # Greedy would give the first truth to its best box and lose the second pair.
    wide, left = [0, 0, 12, 10], [0, 0, 9, 10]
    assert len(metrics.match_boxes([wide, left], [[0, 0, 11, 10], [6, 0, 16, 10]])) == 2


def paths(n=5, s=3, t=4, seed=1):
    rng = np.random.default_rng(seed)
    return rng.uniform(0, 1, (n, s, 2, t, 2)), rng.uniform(0, 1, (n, 2, t, 2)), rng.uniform(size=(n, 2, t)) < 0.7


def test_trajectory_errors_by_hand():
    pred, gt, valid = paths()
    result = metrics.trajectory_errors(pred, gt, valid)
    ade, fde, wde, best = [], [], [], []
    for n in range(5):
        for h in range(2):
            steps = np.flatnonzero(valid[n, h])
            if not len(steps):
                assert np.isnan(result["per_hand"]["ade"][n, h])
                continue
            d = np.linalg.norm(pred[n, :, h] - gt[n, h], axis=-1)  # (S, T)
            ade.append(d[:, steps].mean())
            best.append(d[:, steps].mean(-1).min())
            wde.append((d[:, steps] * (steps + 1)).sum(-1).mean() / (steps + 1).sum())
            if valid[n, h, -1]:
                fde.append(d[:, -1].mean())
    assert result["ade"] == pytest.approx(np.mean(ade)) and result["fde"] == pytest.approx(np.mean(fde))
    assert result["wde"] == pytest.approx(np.mean(wde)) and result["min_ade"] == pytest.approx(np.mean(best))
    assert result["hands"] == len(ade)


def test_trajectory_errors_invariances():
    pred, gt, valid = paths()
    result = metrics.trajectory_errors(pred, gt, valid)
    noise = np.where(valid[:, None, ..., None], pred, 99.0)  # what is not valid does not count
    assert metrics.trajectory_errors(noise, gt, valid)["ade"] == result["ade"]
    swapped = metrics.trajectory_errors(pred[:, :, ::-1], gt[:, ::-1], valid[:, ::-1])
    assert swapped["ade_left"] == result["ade_right"] and swapped["wde_right"] == result["wde_left"]
    perfect = metrics.trajectory_errors(gt[:, None], gt, valid)
    assert perfect["ade"] == perfect["fde"] == perfect["wde"] == 0
    steps = result["per_step"]
    assert np.array_equal(np.isfinite(steps), valid)
    assert np.nanmean(np.nanmean(steps, -1)) == pytest.approx(result["ade"]) and np.nanmean(steps[..., -1]) == pytest.approx(result["fde"])
    nothing = metrics.trajectory_errors(pred, gt, np.zeros_like(valid))
    assert np.isnan(nothing["ade"]) and nothing["hands"] == 0


def test_a_missing_trajectory_costs_what_is_said():
    pred, gt, _ = paths()
    pred[1] = np.nan
    valid = np.ones((5, 2, 4), bool)
    with pytest.raises(ValueError, match="2 hands have no prediction"):
        metrics.trajectory_errors(pred, gt, valid)
    assert np.allclose(metrics.trajectory_errors(pred, gt, valid, missing=1.5)["per_hand"]["ade"][1], 1.5)
    valid[1] = False
    assert np.isfinite(metrics.trajectory_errors(pred, gt, valid)["ade"])


def test_handsonvlm_compat_prints_swapped_names_and_diluted_wde():
    pred, gt, _ = paths(s=1)
    gt[0, 0, 2] = [1.0, 0.5]  # x = 1 is off screen
    gt[1, 1] += 2
    valid = np.array([[1, 1], [1, 1], [1, 0], [0, 0], [0, 1]], bool)
    result = metrics.trajectory_errors(pred, gt, valid, compat="handsonvlm")
    last, mean, weighted = [], [], []
    for n, h in np.ndindex(5, 2):
        d = [np.linalg.norm(pred[n, 0, h, t] - gt[n, h, t]) * ((gt[n, h, t] >= 0) & (gt[n, h, t] < 1)).all() for t in range(4)]
        seen = max(1, sum(((gt[n, h, t] >= 0) & (gt[n, h, t] < 1)).all() for t in range(4)))
        weighted.append(sum(d[t] * (t + 1) / 4 for t in range(4)) / seen * valid[n, h])
        if valid[n, h]:
            last.append(d[3])
            mean.append(sum(d) / 4)
    for name, values in (("ade", last), ("fde", mean), ("wde", weighted)):
        assert result[name] == pytest.approx(np.mean(values)) and result[f"{name}_std"] == pytest.approx(np.std(values))
    silent = pred.copy()
    silent[2], pred[2] = np.nan, 0.0  # no trajectory in the answer: its evaluation puts the hand into the corner
    assert metrics.trajectory_errors(silent, gt, valid, compat="handsonvlm") == metrics.trajectory_errors(
        pred, gt, valid, compat="handsonvlm"
    )
    result = metrics.trajectory_errors(pred, gt, valid, compat="handsonvlm")
    everywhere = np.repeat(valid[..., None], 4, -1)
    assert metrics.trajectory_errors(pred, gt, everywhere, compat="handsonvlm") == result
    assert np.isnan(metrics.trajectory_errors(pred, gt, np.zeros((5, 2)), compat="handsonvlm")["ade"])


def test_trajectory_shapes_are_checked():
    pred, gt, valid = paths()
    with pytest.raises(ValueError, match=r"got \(5, 2, 4, 2\) and"):
        metrics.trajectory_errors(pred[:, 0], gt, valid)
    with pytest.raises(ValueError, match=r"expected valid .* got \(5, 2\)"):
        metrics.trajectory_errors(pred, gt, valid[..., 0])
    with pytest.raises(ValueError, match="compat"):
        metrics.trajectory_errors(pred, gt, valid, compat="hoi")


def test_compat_is_true_or_the_name_of_what_was_published():
    box, other = np.array([0, 0, 3, 3]), np.array([1, 1, 5, 5])
    assert metrics.box_iou(box, other, True) == metrics.box_iou(box, other, "vlm4hoi") != metrics.box_iou(box, other, False)
    pred, gt, valid = paths()
    published = metrics.trajectory_errors(pred, gt, valid, compat=True)
    assert published == metrics.trajectory_errors(pred, gt, valid, compat="handsonvlm")
    assert metrics.trajectory_errors(pred, gt, valid, compat=False).keys() == metrics.trajectory_errors(pred, gt, valid).keys()


@pytest.mark.parametrize("name", ["mpjpe", "pa_mpjpe", "procrustes"])
def test_tensors_in_tensors_out(name):
    function = getattr(metrics, name)
    tensor = function(torch.from_numpy(PRED).float().requires_grad_(), torch.from_numpy(GT).float())
    assert tensor.dtype == torch.float32 and np.allclose(tensor.numpy(), function(PRED, GT), atol=1e-5)


def test_tensors_elsewhere():
    a, b = torch.rand(3, 4).sort(-1).values, torch.rand(2, 4).sort(-1).values
    assert torch.allclose(metrics.box_iou(a, b).double(), torch.from_numpy(metrics.box_iou(a.numpy(), b.numpy())))
    pred, gt, valid = paths()
    tensors = metrics.trajectory_errors(torch.from_numpy(pred), torch.from_numpy(gt), torch.from_numpy(valid))
    assert tensors["ade"] == metrics.trajectory_errors(pred, gt, valid)["ade"]
    assert metrics.f_score(torch.from_numpy(PRED), torch.from_numpy(GT), 0.5).shape == (6,)
    assert metrics.auc(torch.from_numpy(PRED), 0, 1) == metrics.auc(PRED, 0, 1)


def test_shape_errors():
    with pytest.raises(ValueError, match=r"mpjpe: .* got \(21, 3\) and \(20, 3\)"):
        metrics.mpjpe(GT[0], GT[0, :20])
    with pytest.raises(ValueError, match="finite"):
        metrics.pa_mpjpe(GT * np.nan, GT)


@pytest.mark.parametrize("compat", [None, "handsonvlm"])
def test_a_true_path_of_nan_is_no_missing_answer(compat):
    gt, valid = np.full((2, 2, 4, 2), 0.5), np.ones((2, 2, 4), bool)
    gt[0, 1, 2] = np.nan
    with pytest.raises(ValueError, match="gt is NaN at 1 steps that valid says are known"):
        metrics.trajectory_errors(gt[:, None] * 0, gt, valid, compat=compat, missing=1.0)
    valid[0, 1, 2] = False
    assert np.isfinite(metrics.trajectory_errors(gt[:, None] * 0, gt, valid, compat=compat, missing=1.0)["ade"])
