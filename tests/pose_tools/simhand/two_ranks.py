"""One contrastive step on this process's share of the pairs: `two_ranks.py RANK WORLD FOLDER` saves loss, gradients, buffers."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
from torch import Tensor, distributed, nn
from torch.nn import functional
from torch.nn.parallel import DistributedDataParallel

from pose_tools.process_group import end_process_group
from pose_tools.simhand.losses import nt_xent, weighted_nt_xent
from pose_tools.simhand.sync_batch_norm import synchronise_batch_norm

PAIRS = 12
FORMS = {
    "plain": None,
    "linear": ("linear", "mpjpe", "pos_neg"),
    "non_linear": ("non_linear", "w_abs", "neg"),
    "pca": ("linear", "pca", "pos"),
}


def data() -> tuple[Tensor, Tensor]:
    """Inputs (2, PAIRS, 10), key points (2, PAIRS, 21, 2)."""
    torch.manual_seed(5)
    return torch.randn(2, PAIRS, 10), torch.rand(2, PAIRS, 21, 2) * 90


def step(form: str, rank: int, world: int) -> dict[str, Tensor]:
    """The mean loss of all processes, averaged gradients and buffers after one step of the share of `rank`."""
    torch.manual_seed(1)
    network = nn.Sequential(nn.Linear(10, 12), nn.BatchNorm1d(12), nn.ReLU(), nn.Linear(12, 8)).train()
    model = DistributedDataParallel(synchronise_batch_norm(network)) if world > 1 else network
    share = slice(rank * PAIRS // world, (rank + 1) * PAIRS // world)
    inputs, joints = (value[:, share] for value in data())
    z1, z2 = functional.normalize(model(inputs.flatten(0, 1)), dim=-1).unflatten(0, (2, -1))
    if FORMS[form] is None:
        loss = nt_xent(z1, z2, gather=True)
    else:
        kind, distance, apply_to = FORMS[form]
        loss = weighted_nt_xent(z1, z2, *joints, kind=kind, distance=distance, apply_to=apply_to, gather=True)
    loss.backward()
    loss = loss.detach()
    if world > 1:
        distributed.all_reduce(loss)
    found = {"loss": loss / world} | {name: p.grad for name, p in network.named_parameters()}
    return found | {name: b.clone() for name, b in network.named_buffers()}


if __name__ == "__main__":
    rank, world, folder = int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'meeting'}", rank=rank, world_size=world)
    torch.save({form: step(form, rank, world) for form in FORMS}, folder / f"{rank}.pt")
    end_process_group()
