"""Trajectory heads, hand layout and slow-fast pooling against HandsOnVLM's recordings, and their own equalities."""

from __future__ import annotations

import copy
import json

import numpy as np
import pytest
import torch
from torch import nn

from tests.vlm.vlm4hoi_tiny import FIXTURES, fill
from vlm.compat import handsonvlm_position_code
from vlm.trajectory import CVAEHead, MLPHead, hand_states, joined_hands
from vlm.vision import slow_fast

POOLING = json.loads((FIXTURES / "handsonvlm/a_pooling.json").read_text())
HEADS = json.loads((FIXTURES / "handsonvlm/b_traj_decoder.json").read_text())
CVAE, MLP = "hand_traj_decoder.hand_traj_decoder.cvae.", "hand_traj_decoder.hand_traj_decoder."


def recorded(name: str) -> dict[str, torch.Tensor]:
    return {key: torch.from_numpy(value) for key, value in np.load(FIXTURES / f"handsonvlm/{name}.npz").items()}


def value(spec: dict) -> torch.Tensor:
    return fill.value(spec["name"], spec["shape"], scale=spec["scale"])


def weights(manifest: str, prefix: str) -> dict[str, torch.Tensor]:
    return {key.removeprefix(prefix): tensor for key, tensor in fill.state_dict(HEADS[manifest], HEADS["fill_scale"]).items()}


def other_order(tensor: torch.Tensor) -> torch.Tensor:
    """The recordings' hands are right, left."""
    return tensor.flip(1)


def close(ours: torch.Tensor, theirs: torch.Tensor, relative: float = 2e-6) -> None:
    torch.testing.assert_close(ours, theirs, rtol=relative, atol=relative * max(1.0, float(theirs.abs().max())))


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(params=["cvae", "mlp"])
def head(request: pytest.FixtureRequest) -> nn.Module:
    return CVAEHead(6, 16, 4) if request.param == "cvae" else MLPHead(6, 16)


@pytest.fixture(scope="module")
def cvae() -> CVAEHead:
    head = CVAEHead(HEADS["token_dim"])
    head.load_state_dict(weights("manifest_cvae", CVAE))
    return head


@pytest.fixture(scope="module")
def states() -> torch.Tensor:
    return other_order(value(HEADS["inputs"]["pred_hand_embeddings"]))


def noise(name: str) -> torch.Tensor:
    return other_order(value(HEADS["inputs"][name]).reshape(3, 2, 4, 256))


def test_pooling_is_the_recorded_one_before_and_after_the_projector():
    truth, features = recorded("a_pooling"), value(POOLING["input"])[None]
    projector = nn.Linear(16, 32)
    projector.load_state_dict(
        {key.removeprefix("mm_projector."): tensor for key, tensor in fill.state_dict(POOLING["manifest"], POOLING["fill_scale"]).items()}
    )
    for tokens in (slow_fast(projector(features)), projector(slow_fast(features))):
        close(tokens, truth["temporal_spatial_pool"])
        close(tokens[:, 100:], truth["spatial_pool"])


@pytest.mark.parametrize("frames", [1, 3, 10])
def test_duplicates_are_the_clip_given_again_and_again(frames: int):
    features = torch.randn(2, frames, 16, 5)
    torch.testing.assert_close(slow_fast(features, 4, 10), slow_fast(features.repeat(1, 10, 1, 1), 4, 1), rtol=0, atol=0)
    assert slow_fast(features, 4, 10).shape == (2, 10 * frames + 16, 5)


def test_distinct_frames_take_266_and_published_ones_356_tokens():
    clip = torch.randn(1, 10, 256, 3)
    once, published = slow_fast(clip), slow_fast(clip, duplicates=10)
    assert once.shape[1] == 266 and published.shape[1] == 356
    torch.testing.assert_close(once[:, 10:], published[:, 100:], rtol=0, atol=0)  # slow frames 0, 3, 6, 9 both times
    with pytest.raises(ValueError, match="whose side 2 divides"):
        slow_fast(torch.randn(1, 2, 9, 3))


@pytest.mark.parametrize("compat, part", [("handsonvlm", "train_asis."), ("handsonvlm_fp32", "train_fp32.")])
def test_cvae_loss_and_gradients_are_the_recorded_ones(cvae: CVAEHead, states: torch.Tensor, compat: str, part: str):
    truth = recorded("b_traj_decoder")
    states = states.clone().requires_grad_()
    cvae.zero_grad()
    found = cvae.loss(states, other_order(truth["future_hands"]), other_order(truth["future_valid"]), noise("eps"), compat)
    for ours, theirs in (("traj", "traj_loss"), ("kl", "traj_kl_loss"), ("total", "total_loss")):
        close(found[ours], truth[part + theirs])
    for ours, theirs in (("mu", "mu"), ("logvar", "logvar"), ("points", "recon")):
        close(other_order(found[ours]).reshape(24, -1), truth[part + theirs])
    found["total"].backward()
    close(other_order(states.grad), truth[part + "grad_embeddings"])
    for name, parameter in cvae.named_parameters():
        close(parameter.grad.norm(), truth[f"{part}gradnorm.{CVAE}{name}"])


def test_compat_is_true_or_the_name_of_what_was_published(cvae: CVAEHead, states: torch.Tensor):
    given = (states, torch.rand(3, 2, 4, 2), torch.ones(3, 2), noise("eps"))
    with torch.no_grad():
        for same, as_named in ((True, "handsonvlm"), (False, None)):
            losses, named = (cvae.loss(*given, compat)["total"] for compat in (same, as_named))
            assert torch.equal(losses, named)
            assert torch.equal(cvae.predict(states, noise("eps"), same), cvae.predict(states, noise("eps"), as_named))
        with pytest.raises(ValueError, match="compat is 'vlm4hoi', expected None, True, 'handsonvlm' or"):
            cvae.predict(states, compat="vlm4hoi")


def test_recorded_predictions(cvae: CVAEHead, states: torch.Tensor):
    truth = recorded("b_traj_decoder")
    mlp = MLPHead(HEADS["token_dim"])
    mlp.load_state_dict(weights("manifest_mlp", MLP))
    with torch.no_grad():
        close(other_order(cvae.predict(states, noise("z_normal"), "handsonvlm")), truth["inference.pred_hands"])
        close(other_order(cvae.predict(states)), truth["inference_z0.pred_hands"])
        close(cvae.predict(states, 2 * noise("z_normal")), cvae.predict(states, noise("z_normal"), "handsonvlm"), 0.0)
        close(other_order(mlp.predict(states)), truth["mlp.inference.pred_hands"])


def test_loss_of_a_batch_is_that_of_its_parts(head: nn.Module):
    states, target, drawn = torch.randn(5, 2, 3, 6), torch.rand(5, 2, 3, 2), torch.randn(5, 2, 3, 4)
    valid = torch.rand(5, 2, 3) > 0.4
    whole = head.loss(states, target, valid, drawn)["total"]
    parts = [
        head.loss(states[rows], target[rows], valid[rows], drawn[rows], num_items_in_batch=valid.sum())["total"]
        for rows in ([0, 3], [1, 2, 4])
    ]
    torch.testing.assert_close(sum(parts), whole)


def test_steps_that_do_not_count_change_nothing(head: nn.Module):
    states, target, drawn = torch.randn(2, 2, 3, 6), torch.rand(2, 2, 3, 2), torch.randn(2, 2, 3, 4)
    valid = torch.tensor([[[1, 1, 0], [0, 0, 0]], [[1, 0, 1], [1, 1, 1]]]).bool()
    spoilt = torch.where(valid[..., None], target, torch.nan)
    torch.testing.assert_close(head.loss(states, spoilt, valid, drawn)["total"], head.loss(states, target, valid, drawn)["total"])
    head.zero_grad()
    empty = head.loss(states, spoilt, torch.zeros(2, 2), drawn)["total"]
    empty.backward()
    assert empty == 0 and all(p.grad is not None and not p.grad.any() for p in head.parameters())
    with pytest.raises(ValueError, match="finite"):
        head.loss(states, spoilt, torch.ones(2, 2, 3), drawn)


def test_head_treats_hands_alike_and_draws_again_only_when_asked(cvae: CVAEHead, states: torch.Tensor):
    with torch.no_grad():
        torch.testing.assert_close(cvae.predict(states.flip(1)), cvae.predict(states).flip(1))
        torch.testing.assert_close(cvae.predict(states), cvae.predict(states), rtol=0, atol=0)
        assert not torch.equal(cvae.predict(states, compat="handsonvlm"), cvae.predict(states, compat="handsonvlm"))
        double = copy.deepcopy(cvae).double().predict(states.double())
        torch.testing.assert_close(cvae.predict(states), double.float())


@pytest.mark.parametrize("bad", [{"states": (3, 2, 4, 8)}, {"target": (3, 2, 4, 3)}, {"valid": (3, 4)}, {"noise": (3, 2, 4, 5)}])
def test_wrong_shapes_say_what_was_expected(bad: dict):
    shapes = {"states": (3, 2, 4, 6), "target": (3, 2, 4, 2), "valid": (3, 2, 4), "noise": (3, 2, 4, 4)} | bad
    with pytest.raises(ValueError, match="expected"):
        CVAEHead(6, 16, 4).loss(*(torch.ones(shape) for shape in shapes.values()))


@pytest.mark.parametrize("layout", ["left_right", "right_left_interleaved"])
def test_hand_layouts(layout: str):
    states = torch.randn(2, 3, 8)
    hands = hand_states(states, layout)
    assert hands.shape == (2, 2, 3, 4)
    torch.testing.assert_close(joined_hands(hands, layout), states, rtol=0, atol=0)
    right = states[..., 0::2] if layout == "right_left_interleaved" else states[..., 4:]
    torch.testing.assert_close(hands[:, 1], right, rtol=0, atol=0)
    with pytest.raises(ValueError, match="hand_layout"):
        hand_states(states, "right")


def test_published_position_code_by_its_formula():
    points, width = torch.rand(2, 2, 4, 2), 32
    code = handsonvlm_position_code(points, width)
    assert code.shape == (2, 4, width)
    for hand, start in ((0, 1), (1, 0)):  # left in the odd channels
        channels = code[..., start::2]
        for k in range(4):
            x, y = (points[:, hand, :, axis] / 10000 ** (2 * k / 8) for axis in (0, 1))
            for at, expected in ((k, x.sin()), (4 + k, y.cos()), (8 + k, x.sin()), (12 + k, y.cos())):
                torch.testing.assert_close(channels[..., at], expected)
    with pytest.raises(ValueError, match="divisible by 8"):
        handsonvlm_position_code(points, 20)
