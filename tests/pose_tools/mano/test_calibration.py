"""The doubt fitted after the training: it finds what makes errors large, depends on the data alone, and is saved with the rest."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from pose_tools.mano import calibration
from pose_tools.mano.calibration import Observed, fit_doubt
from pose_tools.mano.crops import HandCrops
from pose_tools.mano.evaluate import doubtful_ratio
from pose_tools.mano.loading import load_regressor
from pose_tools.mano.networks import RegressorError
from tests.pose_tools.mano import posed


def observed(count: int, seed: int) -> Observed:
    """Errors that double where the product of two numbers is positive; the training's own doubt knows nothing of it."""
    g = torch.Generator().manual_seed(seed)
    vectors = torch.randn(count, 6, generator=g) * torch.tensor([1, 1, 5, 0.2, 1, 1])
    expected = 0.01 * 2 ** torch.sign(vectors[:, 0] * vectors[:, 1])
    noise = torch.empty(count).exponential_(generator=g).clamp(0.3, 3)
    return Observed(vectors, expected * noise, torch.full((count, 21), 0.01).log())


def test_a_doubt_learns_what_the_training_left_out_and_its_size():
    doubt = nn.Sequential(nn.Linear(6, 16), nn.GELU(), nn.Linear(16, 1))
    calibration._start(doubt, torch.Generator().manual_seed(0))
    doubt.load_state_dict(calibration._learn(doubt, observed(6000, 1), observed(600, 2), epochs=12, seed=0))
    new = observed(2000, 3)
    with torch.no_grad():
        logs = new.expected(doubt(new.vectors)[:, 0])
    assert doubtful_ratio(new.errors.numpy(), -new.expected(torch.zeros(2000)).numpy()) < 1.3
    assert doubtful_ratio(new.errors.numpy(), -logs.numpy()) > 1.6
    assert abs(float(logs.exp().mean() / new.errors.mean()) - 1) < 0.1


@pytest.fixture(scope="module")
def crops() -> HandCrops:
    return HandCrops([posed.sample(seed) for seed in range(24)], 32)


def test_an_unfitted_doubt_says_nothing_and_a_fitted_one_moves_the_expected_error_alone(crops):
    pixels = crops.collate([crops.sample(i) for i in range(4)])["pixels"].float()
    plain, model = posed.regressor(), posed.regressor(doubt=8)
    plain.load_state_dict({name: value for name, value in model.state_dict().items() if "doubt" not in name})
    before = model(pixels)
    for name in ("joints_3d", "log_scale_3d"):
        torch.testing.assert_close(getattr(before, name), getattr(plain(pixels), name), rtol=0, atol=0)
    report = fit_doubt(model, crops, crops, epochs=3)
    after = model(pixels)
    assert report.learnt_mm == pytest.approx(report.held_out_mm, rel=1e-6) and report.expected > 0
    torch.testing.assert_close(after.joints_3d, before.joints_3d, rtol=0, atol=0)
    assert not torch.equal(after.log_scale_3d, before.log_scale_3d)


def test_fitting_again_gives_the_same_and_it_is_saved_with_the_rest(crops, tmp_path):
    model = posed.regressor(doubt=8)
    fit_doubt(model, crops, crops, epochs=3)
    first = {name: value.clone() for name, value in model.doubt.state_dict().items()}
    fit_doubt(model, crops, crops, epochs=3)
    for name, value in model.doubt.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=0, atol=0)
    model.save(tmp_path)
    again = load_regressor(tmp_path, model.mano)
    for name, value in again.doubt.state_dict().items():
        torch.testing.assert_close(value, first[name], rtol=1e-3, atol=1e-3)


def test_what_cannot_be_fitted_is_refused_with_the_reason(crops):
    with pytest.raises(RegressorError, match="set `doubt` in its config"):
        fit_doubt(posed.regressor(), crops, crops)
    without = HandCrops([replace(posed.sample(seed), joints_3d=None, pose=None, vertices=None) for seed in range(3)], 32)
    with pytest.raises(ValueError, match="0 hands to fit to"):
        fit_doubt(posed.regressor(doubt=8), without, crops)
