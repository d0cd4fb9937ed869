"""LARS and the schedule against the recorded steps."""

import json
import math
import re
from pathlib import Path

import numpy as np
import pytest
import torch

from pose_tools.simhand.encoder import ContrastiveModel, Encoder
from pose_tools.simhand.optim import LARS, published_groups, scaled_learning_rate, warmup_cosine

RECORDED = dict(np.load(Path(__file__).parents[2] / "fixtures/simhand/optim.npz"))


def make():
    tensors = [torch.nn.Parameter(torch.from_numpy(RECORDED[f"p{i}_0"].copy())) for i in range(4)]
    groups = [{"params": tensors[0::2], "weight_decay": 1e-6}, {"params": tensors[1::2], "weight_decay": 0.0}]
    return tensors, LARS(torch.optim.Adam(groups, lr=float(RECORDED["lr"])))


def set_gradients(tensors, step):
    for i, p in enumerate(tensors):
        p.grad = torch.from_numpy(RECORDED[f"grads{i}"][step].copy())


def test_recorded_steps():
    tensors, optimizer = make()
    for step in range(6):
        set_gradients(tensors, step)
        optimizer.step()
        for i, p in enumerate(tensors):
            np.testing.assert_allclose(p.grad, RECORDED[f"g{i}_{step}_after"], rtol=1e-5, atol=1e-9)
            np.testing.assert_allclose(p.detach(), RECORDED[f"p{i}_{step + 1}"], rtol=1e-5, atol=1e-7)
    assert [group["weight_decay"] for group in optimizer.param_groups] == [1e-6, 0.0]


def test_saved_state_goes_on_the_same(tmp_path):
    tensors, optimizer = make()
    for step in range(3):
        set_gradients(tensors, step)
        optimizer.step()
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    others, resumed = make()
    for p, q in zip(tensors, others, strict=True):
        q.data.copy_(p.data)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    set_gradients(others, 3)
    resumed.step()
    for i, p in enumerate(others):
        np.testing.assert_allclose(p.detach(), RECORDED[f"p{i}_4"], rtol=1e-5, atol=1e-7)


def test_zero_gradients_and_zero_rates_stay_finite():
    tensors, optimizer = make()
    for p in tensors:
        p.grad = torch.zeros_like(p)
    for group in optimizer.param_groups:
        group["lr"] = 0.0
    optimizer.step()
    for i, p in enumerate(tensors):
        np.testing.assert_array_equal(p.detach(), RECORDED[f"p{i}_0"])


def test_a_scheduler_of_torch_drives_it():
    tensors, optimizer = make()
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: warmup_cosine(step, 20, 200))
    rates = []
    for _ in range(200):
        rates.append(optimizer.param_groups[0]["lr"])
        set_gradients(tensors, 0)
        optimizer.step()
        schedule.step()
    np.testing.assert_allclose(rates, RECORDED["schedule_lr"], rtol=1e-5, atol=1e-10)
    assert optimizer.inner.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


def test_published_numbers():
    assert scaled_learning_rate() == pytest.approx(3.2e-3)
    found = [warmup_cosine(step, 20, 200, scaled_learning_rate()) for step in range(200)]
    np.testing.assert_allclose(found, RECORDED["schedule_lr"], rtol=1e-5, atol=1e-10)
    names = [("conv1.weight", True), ("bn1.weight", False), ("features.1.weight", True), ("head.bias", False)]
    groups = published_groups([(name, torch.nn.Parameter(torch.ones(1))) for name, _ in names])
    assert [len(group["params"]) for group in groups] == [sum(decayed for _, decayed in names), sum(not decayed for _, decayed in names)]


def test_our_model_is_decayed_where_the_published_one_is():
    manifest = json.loads((Path(__file__).parents[2] / "fixtures/simhand/manifest_lightning_rn50.json").read_text())
    trained = [(k, v["shape"]) for k, v in manifest.items() if not re.search("running_|num_batches|final_layer", k)]
    expected = sum(math.prod(shape) for name, shape in trained if "bias" not in name and "bn" not in name)
    with torch.device("meta"):
        decayed, free = published_groups(ContrastiveModel(Encoder()).named_parameters())
    assert sum(p.numel() for p in decayed["params"]) == expected
    assert sum(p.numel() for p in free["params"]) == sum(math.prod(shape) for _, shape in trained) - expected
