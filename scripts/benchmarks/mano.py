"""Our MANO layer against smplx.MANOLayer: forward, forward + backward and peak memory; goals ≥ 1.5 × and ≥ 2 × at 64 and 1024, ≥ 2 × at 1.

Both get the same rotation matrices, shapes and translations of the stand-in hand; ours also fills the 21 joints with finger
tips. Goals are read from the minima, which other programs on the machine disturb least.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from functools import partial

import torch

from pose_tools.body_models import load_mano, smplx_adapter, standin_hand_arrays
from pose_tools.geometry import axis_angle_to_matrix
from scripts.benchmarks.timing import interleave, peak_growth, report

ROUNDS = {1: 1000, 64: 300, 1024: 12}


def main(arguments: list[str]) -> None:
    """Prints a table per batch size and direction."""
    parser = argparse.ArgumentParser(prog="bench.py mano", description=__doc__)
    parser.add_argument("--batch", type=int, nargs="+", default=list(ROUNDS))
    parser.add_argument("--rounds", type=int, default=None, help="of each way; default by batch size")
    parser.add_argument("--threads", type=int, default=2)
    options = parser.parse_args(arguments)
    torch.set_num_threads(options.threads)
    ours, theirs = load_mano(), smplx_adapter.mano_layer(standin_hand_arrays(), "right")
    layers = {"ours": partial(_ours, ours), "smplx.MANOLayer": partial(_smplx, theirs)}
    place = f"{options.threads} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    for batch in options.batch:
        inputs = _inputs(batch)
        rounds = options.rounds or next((n for size, n in ROUNDS.items() if batch <= size), 4)
        for backward in (False, True):
            name = f"batch {batch}, forward{' + backward' if backward else ''}"
            figures = interleave({key: partial(_microseconds, layer, inputs, backward) for key, layer in layers.items()}, rounds + 3)
            figures = {key: values[3:] for key, values in figures.items()}  # the first calls warm up
            print(report(figures, f"µs, {name}, {place}"))
            print(f"  smplx takes {min(figures['smplx.MANOLayer']) / min(figures['ours']):.2f} × our time (minima)")
            peaks = {key: peak_growth(partial(_run, layer, inputs, backward)) for key, layer in layers.items()}
            print("  peak memory: " + ", ".join(f"{key} {value:.1f} MB" for key, value in peaks.items()))


def _inputs(batch: int) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(0)
    rotations = axis_angle_to_matrix(0.5 * torch.randn(batch, 16, 3, generator=g))
    return rotations, torch.randn(batch, 10, generator=g), torch.randn(batch, 3, generator=g)


def _ours(layer: Callable, rotations: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = layer(rotations[:, 0], rotations[:, 1:], betas, transl, pose_format="rotation_matrix")
    return out.vertices, out.joints


def _smplx(layer: Callable, rotations: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    out = layer(global_orient=rotations[:, :1], hand_pose=rotations[:, 1:], betas=betas, transl=transl)
    return out.vertices, out.joints


def _run(layer: Callable, inputs: tuple[torch.Tensor, ...], backward: bool) -> None:
    given = [x.clone().requires_grad_(backward) for x in inputs]
    with torch.set_grad_enabled(backward):
        vertices, joints = layer(*given)
        if backward:
            (vertices.square().sum() + joints.square().sum()).backward()


def _microseconds(layer: Callable, inputs: tuple[torch.Tensor, ...], backward: bool) -> float:
    start = time.perf_counter()
    _run(layer, inputs, backward)
    return 1e6 * (time.perf_counter() - start)
