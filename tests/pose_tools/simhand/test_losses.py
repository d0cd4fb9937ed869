"""The contrastive losses against the recorded cases, and their equalities: blocked = dense, two processes = one, cached = plain."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

from pose_tools.simhand.gradient_cache import cached_backward
from pose_tools.simhand.losses import nt_xent, pose_weights, undo_view, weighted_nt_xent

FOLDER = Path(__file__).parents[2] / "fixtures/simhand"
CASES = json.loads((FOLDER / "losses.json").read_text())["cases"]
TENSORS = {name: torch.from_numpy(value) for name, value in np.load(FOLDER / "losses.npz").items() if value.ndim}


def projections(steps, raw):
    views = []
    for view, rows in ((1, raw[:32]), (2, raw[32:])):
        jitter = torch.stack([TENSORS[f"jitter_x_{view}"], TENSORS[f"jitter_y_{view}"]], 1)
        views.append(undo_view(rows, jitter=jitter, angle=TENSORS[f"angle_{view}"], image_size=128, steps=steps))
    return views


def pairs(n, dims=16, seed=0):
    torch.manual_seed(seed)
    z1, z2 = functional.normalize(torch.randn(2, n, dims), dim=-1)
    joints = torch.rand(n, 21, 2) * 100
    return z1, z2, joints, joints + 5 * torch.randn(n, 21, 2)


@pytest.mark.parametrize("steps", ["none", "crop", "rotate", "crop_rotate"])
def test_undo_is_the_recorded_one(steps):
    found = projections([s for s in steps.split("_") if s != "none"], TENSORS["raw"])
    for view, rows in enumerate(found, 1):
        torch.testing.assert_close(rows, TENSORS[f"proj{view}_{steps}"], rtol=0, atol=2e-7)


@pytest.mark.parametrize("block", [None, 7, 1000])
@pytest.mark.parametrize("case", CASES, ids=lambda c: "-".join(str(v) for k, v in c.items() if k not in ("loss", "grad_norm", "aug")))
def test_recorded_losses_and_gradients(case, block):
    raw = TENSORS["raw"].clone().requires_grad_()
    z1, z2 = projections(case["aug"], raw)
    if "weight_type" in case:
        joints = [TENSORS[f"joints{view}_{case['joints_type'][:3]}"] for view in (1, 2)]
        loss = weighted_nt_xent(z1, z2, *joints, kind=case["weight_type"], distance=case["diff_type"], apply_to=case["pos_neg"],
                                lambdas=(case["lambda_pos"], case["lambda_neg"]), block=block)  # fmt: skip
    else:
        loss = nt_xent(z1, z2, block=block)
    loss.backward()
    assert loss.item() == pytest.approx(case["loss"], rel=1e-6)
    assert raw.grad.norm().item() == pytest.approx(case["grad_norm"], rel=1e-6)


@given(n=st.integers(1, 9), block=st.integers(1, 20), seed=st.integers(0, 99), kind=st.sampled_from(["linear", "non_linear"]),
       distance=st.sampled_from(["mpjpe", "w_abs", "w_o_abs", "pca"]), apply_to=st.sampled_from(["pos", "neg", "pos_neg"]))  # fmt: skip
def test_blocked_equals_dense(n, block, seed, kind, distance, apply_to):
    z1, z2, joints_1, joints_2 = pairs(n, seed=seed)
    results = []
    for size in (None, block):
        a, b = (3 * z1).requires_grad_(), z2.clone().requires_grad_()
        loss = weighted_nt_xent(a, b, joints_1, joints_2, kind=kind, distance=distance, apply_to=apply_to, block=size)
        (2 * loss).backward()
        results.append((loss, a.grad, b.grad))
    for dense, blocked in zip(*results, strict=True):
        assert torch.isfinite(dense).all()
        torch.testing.assert_close(blocked, dense, rtol=2e-5, atol=2e-6)


def test_blocked_gradient_is_the_numerical_one():
    z1, z2, *joints = pairs(4, dims=6)
    positive, negative = pose_weights(*joints)
    torch.autograd.gradcheck(
        lambda a, b: nt_xent(a, b, 0.5, positive, negative, block=3), (z1.double().requires_grad_(), z2.double().requires_grad_())
    )


def test_plain_is_weights_of_one():
    z1, z2, *_ = pairs(6)
    torch.testing.assert_close(nt_xent(z1, z2), nt_xent(z1, z2, 0.5, torch.ones(6), torch.ones(12, 12)))


def test_order_of_pairs_and_views_does_not_matter():
    z1, z2, j1, j2 = pairs(8)
    loss = weighted_nt_xent(z1, z2, j1, j2, kind="linear", distance="mpjpe")
    order = torch.randperm(8)
    torch.testing.assert_close(weighted_nt_xent(z1[order], z2[order], j1[order], j2[order], kind="linear", distance="mpjpe"), loss)
    torch.testing.assert_close(weighted_nt_xent(z2, z1, j2, j1, kind="linear", distance="mpjpe"), loss)


@pytest.mark.parametrize("kind", ["linear", "non_linear"])
def test_one_pair_and_identical_poses_have_finite_weights(kind):
    z1, z2, j1, j2 = pairs(1)
    assert torch.isfinite(weighted_nt_xent(z1, z2, j1, j2, kind=kind, distance="mpjpe"))
    z1, z2, j1, _ = pairs(5)
    same = j1[:1].expand(5, -1, -1)
    positive, negative = pose_weights(same, same, kind=kind)
    assert torch.isfinite(positive).all() and torch.isfinite(negative).all()
    if kind == "linear":
        torch.testing.assert_close(weighted_nt_xent(z1, z2, same, same, kind=kind, distance="mpjpe"), nt_xent(z1, z2))


def test_pca_weights_do_not_depend_on_rotation_of_the_basis():
    *_, j1, j2 = pairs(40)
    turn = torch.linalg.qr(torch.randn(42, 42))[0]
    turned = [(j.flatten(1) @ turn).view(-1, 21, 2) for j in (j1, j2)]
    for plain, rotated in zip(pose_weights(j1, j2, distance="pca"), pose_weights(*turned, distance="pca"), strict=True):
        torch.testing.assert_close(plain, rotated, rtol=1e-3, atol=1e-4)


def test_bad_input_is_named():
    z1, z2, j1, j2 = pairs(3)
    j1[1, 4, 0] = float("nan")
    with pytest.raises(ValueError, match=r"joints_1: key points of samples \[1\]"):
        weighted_nt_xent(z1, z2, j1, j2, kind="linear", distance="mpjpe")
    for bad in ({"kind": "square"}, {"distance": "l1"}, {"apply_to": "both"}, {"block": 0}):
        with pytest.raises(ValueError):
            weighted_nt_xent(z1, z2, j2, j2, **({"kind": "linear", "distance": "mpjpe"} | bad))
    with pytest.raises(ValueError, match=r"\(N, D\)"):
        nt_xent(z1, z2[:2])


def small_network(dropout=0.0):
    torch.manual_seed(3)
    return nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.Dropout(dropout), nn.ReLU(), nn.Linear(12, 8))


def test_gradient_cache_equals_the_plain_chunked_forward():
    inputs, joints = torch.randn(12, 2, 10), pairs(12)[2:]

    def loss(z):
        z = functional.normalize(z, dim=-1)
        return weighted_nt_xent(z[:, 0], z[:, 1], *joints, kind="linear", distance="mpjpe")

    plain, cached = small_network(0.2).train(), small_network(0.2).train()
    chunks = inputs.split(4)
    torch.manual_seed(9)
    expected = loss(torch.cat([plain(c.flatten(0, 1)).unflatten(0, (-1, 2)) for c in chunks]))
    expected.backward()
    torch.manual_seed(9)
    found = cached_backward(cached, lambda c: cached(c.flatten(0, 1)).unflatten(0, (-1, 2)), chunks, loss)
    torch.testing.assert_close(found, expected.detach())
    for (name, a), b in zip(plain.named_parameters(), cached.parameters(), strict=True):
        torch.testing.assert_close(b.grad, a.grad, msg=name, rtol=1e-5, atol=1e-7)
    for a, b in zip(plain.buffers(), cached.buffers(), strict=True):
        torch.testing.assert_close(a, b)
