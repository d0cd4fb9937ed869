"""SiMHand's weighted loss, forward + backward, against the published formula written out; goals ≥ 3 × less time, ≥ 5 × less memory.

The published form holds the (2N, 2N, 21, 2) differences of all key points and selects with (2N, 2N) masks. Memory is the growth of the
process's resident peak during one pass (Linux; 0 elsewhere). Above 2,048 pairs only ours runs: the other would need tens of gigabytes.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn import functional

from pose_tools.simhand.losses import weighted_nt_xent
from scripts.benchmarks.timing import interleave, peak_growth, report

DIMENSIONS = 128
MOST_PUBLISHED = 2048


def main(arguments: list[str]) -> None:
    """Prints a table of times and one of peaks."""
    parser = argparse.ArgumentParser(prog="bench.py simhand-loss", description=__doc__)
    parser.add_argument("--pairs", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--block", type=int, default=256, help="rows at a time")
    options = parser.parse_args(arguments)
    torch.manual_seed(0)
    z, joints = functional.normalize(torch.randn(2, options.pairs, DIMENSIONS), dim=-1), torch.rand(2, options.pairs, 21, 2) * 128
    ways: dict[str, Callable[[Tensor], Tensor]] = {
        f"ours, {options.block} rows at a time": partial(_ours, joints, options.block),
        "ours, all rows": partial(_ours, joints, None),
    }
    if options.pairs <= MOST_PUBLISHED:
        ways["published formula"] = partial(_published, joints)
        values = {name: float(way(z)) for name, way in ways.items()}
        assert max(values.values()) - min(values.values()) < 1e-4 * values["published formula"], values
    else:
        del ways["ours, all rows"]
    place = f"N = {options.pairs}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores, {torch.get_num_threads()} threads"
    times = {name: partial(_seconds, way, z) for name, way in ways.items()}
    print(report(interleave(times, options.rounds), f"CPU ms, forward + backward, {place}"))
    print(report(interleave({name: partial(peak_growth, partial(_pass, way, z)) for name, way in ways.items()}, 1), "MB of peak growth"))


def _ours(joints: Tensor, block: int | None, z: Tensor) -> Tensor:
    return weighted_nt_xent(z[0], z[1], joints[0], joints[1], kind="linear", distance="mpjpe", block=block)


def _published(joints: Tensor, z: Tensor, temperature: float = 0.5) -> Tensor:
    """The formula as its authors' code evaluates it, step by step on whole arrays."""
    n, both, points = z.shape[1], z.flatten(0, 1), joints.flatten(0, 1)
    positive = (joints[0] - joints[1]).norm(dim=-1).mean(-1)
    positive = ((positive.max() - positive) / (positive.max() - positive.min())).repeat(2)
    pairs = (points[:, None] - points[None]).norm(dim=-1).mean(-1)
    pairs = (pairs.max() - pairs) / (pairs.max() - pairs.min())
    others = ~torch.eye(2 * n, dtype=torch.bool)
    terms = torch.exp(pairs * (both @ both.T) / temperature).masked_select(others).view(2 * n, -1).sum(-1)
    pull = torch.exp(positive * (both * both.roll(n, 0)).sum(-1) / temperature)
    return -torch.log(pull / terms).mean()


def _pass(way: Callable[[Tensor], Tensor], z: Tensor) -> None:
    way(z.clone().requires_grad_()).backward()


def _seconds(way: Callable[[Tensor], Tensor], z: Tensor) -> float:
    start = time.process_time()  # other jobs of the machine do not count
    _pass(way, z)
    return 1e3 * (time.process_time() - start)
