"""Losses: zero at the truth, masked per sample, the same whatever the order or the split, finite where geometry is not."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from pose_tools.geometry import matrix_to_axis_angle, project
from pose_tools.mano.crops import HandCrops
from pose_tools.mano.losses import RECIPE, TERMS, HandLoss, MANOLoss, SimpleMANOLoss
from pose_tools.mano.prediction import HandPrediction, focal
from pose_tools.mano.training_task import RegressionTask
from tests.pose_tools.mano.posed import regressor, sample

EVERY = HandLoss(dict.fromkeys(TERMS, 1.0))
FIELDS = list(HandPrediction.__dataclass_fields__)


def batch_of(count: int = 4) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    crops = HandCrops([sample(i) for i in range(count)], 32)
    batch = crops.collate([crops.sample(i) for i in range(count)])
    return batch, {name[4:]: value for name, value in batch.items() if name.startswith("has_")}


def truth_as_prediction(batch: dict[str, Tensor]) -> HandPrediction:
    wrist = batch["joints_3d"][:, :1]
    scale = focal(batch["projection"]) / wrist[:, 0, 2]
    camera = torch.cat([scale[:, None], project(wrist, batch["projection"])[:, 0]], 1)
    scales = torch.full((len(wrist), 21), -4.0)
    return HandPrediction(
        batch["rotations"].clone(), batch["betas"], camera, batch["joints_3d"] - wrist, batch["vertices"] - wrist, batch["joints_2d"],
        scales, scales,
    )  # fmt: skip


def noisy(prediction: HandPrediction, seed: int = 0) -> HandPrediction:
    generator = torch.Generator().manual_seed(seed)
    return prediction.map(lambda x: (x + 0.01 * torch.randn(x.shape, generator=generator)).requires_grad_())


def test_nothing_is_wrong_with_the_truth():
    batch, masks = batch_of()
    losses = EVERY(truth_as_prediction(batch), batch, masks)
    for name in set(TERMS) - {"key_points", "expected_error", "size", "geodesic"}:
        assert losses[name] == pytest.approx(0, abs=2e-6), name
    assert losses["geodesic"] < 3e-4
    assert losses["key_points"] == pytest.approx(-4, abs=1e-4) and losses["expected_error"] == pytest.approx(-4, abs=1e-4)
    for wrong in [name for name in FIELDS if not name.startswith("log")]:
        values = {name: getattr(truth_as_prediction(batch), name) for name in FIELDS}
        values[wrong] = values[wrong] + 0.1
        assert EVERY(HandPrediction(**values), batch, masks)["total"] > losses["total"] + 1e-3, wrong


@pytest.mark.parametrize("name", TERMS)
def test_what_a_mask_forbids_is_not_there(name):
    """NaN in a forbidden value moves neither the loss nor its gradient, and the sample does not count."""
    batch, masks = batch_of(4)
    loss = HandLoss({name: 1.0})
    few = {key: value[:3] for key, value in batch.items()}
    expected = loss(noisy(truth_as_prediction(batch)).map(lambda x: x[:3]), few, {key: value[:3] for key, value in masks.items()})
    masks = {key: value.clone() for key, value in masks.items()}
    for key in masks:
        masks[key][3] = 0
    spoiled = {key: value.clone() for key, value in batch.items()}
    for key in ("rotations", "betas", "joints_3d", "vertices", "joints_2d", "projection"):
        spoiled[key][3] = float("nan")
    prediction = noisy(truth_as_prediction(batch))
    found = loss(prediction, spoiled, masks)
    found["total"].backward()
    for field in FIELDS:
        gradient = getattr(prediction, field).grad
        assert gradient is None or torch.isfinite(gradient).all()
        if gradient is not None and name != "size":  # which asks no label
            assert not gradient[3].any()
    if name != "size":
        assert found["total"].item() == pytest.approx(expected["total"].item(), rel=1e-5)


def test_a_sample_without_parameters_teaches_its_joints():
    batch, masks = batch_of(2)
    masks = masks | {"pose": torch.tensor([1.0, 0.0]), "betas": torch.tensor([1.0, 0.0])}
    prediction = noisy(truth_as_prediction(batch))
    HandLoss(RECIPE)(prediction, batch, masks)["total"].backward()
    assert not prediction.rotations.grad[1].any() and not prediction.betas.grad[1].any()
    assert prediction.joints_3d.grad[1].any() and prediction.camera.grad[1].any() and prediction.joints_2d.grad[1].any()


def test_one_hidden_joint_leaves_the_others():
    batch, masks = batch_of(2)
    masks["joints_3d"][1, 7] = 0
    masks["joints_2d"][1, 7] = 0
    prediction = noisy(truth_as_prediction(batch))
    HandLoss(RECIPE)(prediction, batch, masks)["total"].backward()
    assert not prediction.joints_3d.grad[1, 7].any() and prediction.joints_3d.grad[1, 8].any()


def test_order_does_not_matter_and_halves_add_up():
    batch, masks = batch_of(4)
    masks["joints_3d"][0, 3:9] = 0
    masks["pose"][2] = 0
    prediction = noisy(truth_as_prediction(batch))
    whole = EVERY.sums(prediction, batch, masks)
    order = torch.tensor([2, 0, 3, 1])
    turned = EVERY.sums(prediction.map(lambda x: x[order]), *({k: v[order] for k, v in d.items()} for d in (batch, masks)))
    halves = [EVERY.sums(prediction.map(lambda x, s=s: x[s]), *({k: v[s] for k, v in d.items()} for d in (batch, masks)))
              for s in (slice(0, 1), slice(1, 4))]  # fmt: skip
    for name in TERMS:
        for part in (0, 1):
            torch.testing.assert_close(turned[name][part], whole[name][part], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(halves[0][name][part] + halves[1][name][part], whole[name][part], rtol=1e-5, atol=1e-5)


def test_the_tasks_counts_are_the_losses_counts():
    hand = sample(0)
    crops = HandCrops([hand, sample(1)], 32)
    task = RegressionTask(crops, crops, EVERY)
    batch = task.collate([task.sample(i, 0) for i in range(2)])
    batch["has_joints_3d"][0, 2:5], batch["has_pose"][1], batch["has_joints_2d"][1, 0] = 0, 0, 0
    masks = {name[4:]: value for name, value in batch.items() if name.startswith("has_")}
    counts, sums = task.counts(batch), EVERY.sums(regressor()(batch["pixels"].float()), batch, masks)
    assert {name: float(value) for name, value in counts.items()} == {name: float(count) for name, (_, count) in sums.items()}


@pytest.mark.parametrize("angle", [0.0, 1e-6, math.pi, math.pi - 1e-6])
def test_gradients_are_finite_at_zero_and_at_half_turns(angle):
    batch, masks = batch_of(2)
    turn = torch.eye(3).repeat(2, 16, 1, 1)
    c, s = math.cos(angle), math.sin(angle)
    turn[..., 0, 0], turn[..., 0, 1], turn[..., 1, 0], turn[..., 1, 1] = c, -s, s, c
    prediction = truth_as_prediction(batch)
    prediction = HandPrediction(**{name: getattr(prediction, name) for name in FIELDS} | {"rotations": turn.clone().requires_grad_()})
    for target in (turn, torch.eye(3).repeat(2, 16, 1, 1)):
        losses = HandLoss({"geodesic": 1, "axis_angle": 1, "rotation": 1, "size": 1})(prediction, batch | {"rotations": target}, masks)
        prediction.rotations.grad = None
        losses["total"].backward()
        assert torch.isfinite(prediction.rotations.grad).all()
    assert losses["geodesic"].item() == pytest.approx(angle, abs=3e-4)


def test_likelihoods_are_best_at_the_true_scale():
    """So a predicted scale means something: it is the error to be expected."""
    torch.manual_seed(0)
    batch, masks = batch_of(4)
    prediction = truth_as_prediction(batch)
    values = {name: getattr(prediction, name) for name in FIELDS}
    off = {"expected_error": "joints_3d", "key_points": "joints_2d"}
    for term, field in off.items():
        moved = values | {field: values[field] + torch.distributions.Laplace(0.0, 0.02).sample(values[field].shape)}
        scale = "log_scale_3d" if term == "expected_error" else "log_scale_2d"
        moved["joints_3d"][:, 0] = 0
        tried = torch.linspace(-7, -1, 61)
        losses = [HandLoss({term: 1.0})(HandPrediction(**moved | {scale: torch.full((4, 21), float(t))}), batch, masks) for t in tried]
        best = float(tried[int(np.argmin([float(x["total"]) for x in losses]))].exp())
        error = (moved[field] - (values[field])).abs()
        true = error.norm(dim=-1).mean() if term == "expected_error" else error.mean()
        assert best == pytest.approx(float(true), rel=0.12)


def test_presets_are_their_formulas():
    batch, masks = batch_of(3)
    prediction = noisy(truth_as_prediction(batch))
    theta = matrix_to_axis_angle(prediction.rotations[:, 1:]).flatten(1)
    truth = matrix_to_axis_angle(batch["rotations"][:, 1:]).flatten(1)
    parameters = (theta - truth).square().mean() + 0.1 * (prediction.betas - batch["betas"]).square().mean()
    size = theta.square().mean() + prediction.betas.square().mean()
    simple = SimpleMANOLoss()(prediction, batch, masks)["total"]
    torch.testing.assert_close(simple, parameters + 0.01 * size)
    joints = (prediction.joints_3d - (batch["joints_3d"] - batch["joints_3d"][:, :1])).abs().mean()
    torch.testing.assert_close(MANOLoss(joint=10.0)(prediction, batch, masks)["total"], simple + 10 * joints)
    assert "vertices" not in MANOLoss().weights and {"vertices", "geodesic"} <= set(MANOLoss(vertex=1, angular=1).weights)


def test_wrong_weights_are_refused():
    with pytest.raises(ValueError, match=r"\['colour'\] do not exist"):
        HandLoss({"colour": 1.0})
    with pytest.raises(ValueError, match="at least 0"):
        HandLoss({"betas": -1.0})


def test_the_root_joint_alone_moves_no_local_joint():
    """A hand that only points another way is right for `local_joints` and wrong for `joints_3d`."""
    batch, masks = batch_of(2)
    right = truth_as_prediction(batch)
    quarter = torch.tensor([[0.0, -1, 0], [1, 0, 0], [0, 0, 1]])
    rotations = right.rotations.clone()
    rotations[:, 0] = quarter @ rotations[:, 0]
    values = {name: getattr(right, name) for name in FIELDS} | {"rotations": rotations, "joints_3d": right.joints_3d @ quarter.T}
    losses = HandLoss({"local_joints": 1, "joints_3d": 1})(HandPrediction(**values), batch, masks)
    assert losses["local_joints"] < 1e-6 and losses["joints_3d"] > 0.01
