"""The parts of our path head."""

from __future__ import annotations

import pytest
import torch

from vlm.trajectory import PathHead
from vlm.trajectory_observed import CODES, context_width, describe

PARTS = {"anchor": True, "shared_latent": 4, "velocity_weight": 1.0, "direction_weight": 0.5, "spread_by": "path"}
G = torch.Generator().manual_seed(0)


def head(**options) -> PathHead:
    torch.manual_seed(0)
    return PathHead(12, hidden=16, **options)


def example(batch: int = 6):
    states, target = torch.randn(batch, 2, 4, 12, generator=G), torch.rand(batch, 2, 4, 2, generator=G)
    return states, target, torch.rand(batch, 2, 4, generator=G) > 0.3


def test_parts_that_are_off_leave_the_head_as_it_was():
    assert list(head().state_dict()) == [f"layers.{number}.{name}" for number in (0, 2, 4) for name in ("weight", "bias")]
    assert set(head().loss(*example())) == {"total", "traj", "spread", "presence", "points"}


@pytest.mark.parametrize("steps", [1, 4])
def test_every_parameter_learns_also_where_nothing_is_valid(steps):
    model = head(**PARTS)
    states, target, valid = example()
    terms = model.loss(states[:, :, :steps], target[:, :, :steps], valid[:, :, :steps] & (steps > 1))
    terms["total"].backward()
    assert all(value.grad is not None and bool(value.grad.isfinite().all()) for value in model.parameters())
    if steps == 1:
        assert float(terms["traj"].detach()) == float(terms["kl"].detach()) == 0
    else:
        assert all(float(value.grad.abs().max()) > 0 for value in model.parameters())


def test_what_is_not_valid_costs_nothing():
    model, noise = head(**PARTS), torch.randn(6, 2, 4, 4, generator=G)
    states, target, valid = example()
    other = torch.where(valid.unsqueeze(-1), target, torch.full_like(target, torch.nan))
    assert torch.equal(model.loss(states, target, valid, noise)["total"], model.loss(states, other, valid, noise)["total"])


def test_a_batch_costs_what_its_rows_cost_with_one_count():
    model, noise = head(**PARTS), torch.randn(6, 2, 4, 4, generator=G)
    states, target, valid = example()
    count = int(valid.sum())
    whole = model.loss(states, target, valid, noise)["total"]
    rows = [model.loss(states[n : n + 1], target[n : n + 1], valid[n : n + 1], noise[n : n + 1], None, count)["total"] for n in range(6)]
    torch.testing.assert_close(sum(rows), whole)


def test_a_step_depends_on_itself_and_the_first_alone():
    """What lets a path be decoded while it is written."""
    model = head(**PARTS)
    states, *_ = example()
    noise = torch.randn(6, 2, 1, 4, generator=G)
    for step in range(4):
        pair = states[:, :, [0, step]]
        torch.testing.assert_close(model.predict(pair, noise)[:, :, 1], model.predict(states, noise)[:, :, step])
        torch.testing.assert_close(model.spread(pair)[:, :, 1], model.spread(states)[:, :, step])


def test_one_latent_moves_both_hands_and_no_noise_is_the_likeliest_path():
    model = head(**PARTS)
    states, *_ = example()
    noise = torch.zeros(6, 2, 1, 4)
    torch.testing.assert_close(model.predict(states, noise), model.predict(states))
    noise[:, 0] = 1.0  # the left hand's
    moved = (model.predict(states, noise) - model.predict(states)).abs().amax((0, 2, 3))
    assert bool((moved > 1e-3).all())
    torch.testing.assert_close(model.predict(states, noise.flip(1)), model.predict(states, noise))


def test_right_paths_cost_no_motion_and_turned_ones_do():
    model = head(velocity_weight=1.0, direction_weight=1.0)
    moves = torch.tensor([0.1, 0.0]) * torch.arange(4)[:, None]
    target, valid = moves.expand(1, 2, 4, 2), torch.ones(1, 2, 4, dtype=torch.bool)
    right, shifted, back = (model._motion(points, target, valid, None) for points in (target, target + 0.3, -target))
    for terms in (right, shifted):
        assert float(terms["velocity"]) < 2e-4 and float(terms["direction"]) < 1e-5
    torch.testing.assert_close(back["velocity"], torch.tensor(0.2 * 3 / 4), atol=1e-3, rtol=0)
    torch.testing.assert_close(back["direction"], torch.tensor(2.0 * 3 / 4), atol=1e-3, rtol=0)


def test_unknown_settings_are_told():
    with pytest.raises(ValueError, match="expected 'step' or 'path'"):
        head(spread_by="hand")
    with pytest.raises(ValueError, match="observed_code is 'sine', expected one of fourier"):
        context_width(3, "sine")


@pytest.mark.parametrize("code", CODES)
def test_the_last_place_is_told_in_every_code(code):
    centres = torch.rand(5, 2, 3, 2, generator=G)
    centres[0, 1] = torch.nan
    told, origin = describe(centres, code)
    assert told.shape == (5, 2, context_width(3, code)) and bool(told.isfinite().all())
    torch.testing.assert_close(origin[1:], centres[1:, :, -1])
    assert code == "none" or not torch.allclose(told[1:, :, 9:-3], told[1:, :, 9:-3].flip(0))
