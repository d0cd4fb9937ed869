"""Sampling EgoHMR's stage 2 against the published way, same weights and guidance; goal ≥ 5 × faster at no more peak memory.

The published way takes one picture and one sample at a time, and at every step looks at the picture and the scene anew, finds the shape
anew, poses the body, and runs the graph network on all channels of every joint. Ours looks once and steps all pictures and samples
together. Both draw the same noise and must end in the same bodies. Networks of the published sizes with random weights, guidance by
capsules on both sides, one process. What is projected is derived from parts timed here, and is marked so.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from pose_tools.body_models import load_smpl
from pose_tools.egohmr import camera
from pose_tools.egohmr.body import pose_body, visible_joints
from pose_tools.egohmr.collision import CapsuleField
from pose_tools.egohmr.guidance import Guidance
from pose_tools.egohmr.samplers import Draws, ddpm, solver_steps
from pose_tools.egohmr.scene_encoder import SceneEncoder
from pose_tools.egohmr.stage2 import Stage2
from pose_tools.simhand.encoder import Encoder
from scripts.benchmarks.timing import interleave, peak_growth, report

SAME = 2e-3
"""Largest difference of the final normalised poses that counts as the same: ten steps of float32 in another order."""


def main(arguments: list[str]) -> None:
    """Prints times, peaks and what they project to."""
    parser = argparse.ArgumentParser(prog="bench.py egohmr", description=__doc__)
    parser.add_argument("--images", type=int, default=2)
    parser.add_argument("--samples", type=int, default=2)
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--points", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--no-guidance", action="store_true")
    options = parser.parse_args(arguments)
    stage, batch = make(options.images, options.points)
    guidance = None if options.no_guidance else Guidance(CapsuleField(stage.smpl), repeats=1)
    noise = torch.randn(options.steps + 1, options.images, options.samples, 144, generator=torch.Generator().manual_seed(1))
    both = {"ours": ours, "the published way": published}
    for way in both.values():  # warms up: two steps
        way(stage, _first(batch), noise[:3, :1, :1], guidance)
    results: dict[str, Tensor] = {}

    def run(name: str) -> None:
        results[name] = both[name](stage, batch, noise, guidance)

    ways: dict[str, Callable[[], object]] = {name: partial(run, name) for name in both}
    place = f"{torch.get_num_threads()} threads, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"
    print(f"{options.images} pictures × {options.samples} samples × {options.steps} steps, {options.points} scene points, {place}")
    peaks = {name: peak_growth(way) for name, way in ways.items()}
    apart = float((results["ours"] - results["the published way"]).abs().max())
    print(f"largest difference of the final normalised poses: {apart:.1e} ({'the same' if apart < SAME else 'NOT THE SAME'})")
    figures = interleave({name: partial(_seconds, way) for name, way in ways.items()}, options.rounds)
    print(report({name: [1000 * s for s in values] for name, values in figures.items()}, "milliseconds"))
    ratios = [slow / fast for fast, slow in zip(*figures.values(), strict=True)]
    print(f"ours is {statistics.median(ratios):.1f} × faster (median of {len(ratios)} rounds, least {min(ratios):.1f} ×)")
    print("peak above what was resident: " + ", ".join(f"{name} {peak:.0f} MB" for name, peak in peaks.items()))
    _project(stage, batch, options, guidance)


def _first(batch: dict) -> dict:
    return {name: value[:1] for name, value in batch.items()}


def make(images: int, points: int) -> tuple[Stage2, dict]:
    """Networks of the published sizes and pictures of noise: people three metres away, in clouds of points around them."""
    torch.manual_seed(0)
    mean = torch.eye(3)[:, :2].reshape(-1).repeat(24)
    stage = Stage2(load_smpl(), mean, torch.full((144,), 0.3), backbone=Encoder()).eval()
    generator = torch.Generator().manual_seed(2)
    transl = torch.tensor([[0.1, 0.3, 3.0]]).repeat(images, 1) + 0.1 * torch.randn(images, 3, generator=generator)
    keypoints = torch.rand(images, 25, 3, generator=generator) - torch.tensor([0.5, 0.5, 0.4])
    batch = {"img": torch.randn(images, 3, 224, 224, generator=generator), "orig_keypoints_2d": keypoints, "stage1_transl_full": transl}
    batch |= {"fx": torch.full((images,), 0.98), "cam_cx": torch.full((images,), 955.0), "cam_cy": torch.full((images,), 545.0)}
    batch |= {"box_center": torch.tensor([[1000.0, 700.0]]).repeat(images, 1), "box_size": torch.full((images,), 640.0)}
    batch["scene_pcd_verts_full"] = transl[:, None] + 0.6 * torch.randn(images, points, 3, generator=generator)
    return stage, batch


def ours(stage: Stage2, batch: dict, noise: Tensor, guidance: Guidance | None) -> Tensor:
    """Final normalised poses (images, samples, 24, 6)."""
    return stage.sample(batch, noise.shape[2], "ddpm", len(noise) - 1, noise=noise, guidance=guidance)["x0"]


@torch.no_grad()
def published(stage: Stage2, batch: dict, noise: Tensor, guidance: Guidance | None) -> Tensor:
    """The same, one picture and one sample at a time."""
    schedule = stage.schedule.respaced(len(noise) - 1)
    found = []
    for row in range(noise.shape[1]):
        one = {name: value[row : row + 1] for name, value in batch.items()}
        for sample in range(noise.shape[2]):
            draws = Draws((1, 24, 6), noise, noise[:, row : row + 1, sample], schedule.steps)
            found.append(ddpm(partial(published_step, stage, one, guidance), schedule, draws))
    return torch.cat(found).unflatten(0, (-1, noise.shape[2]))


def published_step(stage: Stage2, batch: dict, guidance: Guidance | None, x_t: Tensor, t: Tensor) -> Tensor:
    """One prediction of x_0 from nothing but the batch."""
    transl = batch["stage1_transl_full"]
    points = batch["scene_pcd_verts_full"] - transl[:, None]
    image = stage.backbone(batch["img"])
    rest = torch.cat([plain_scene(stage.scene_enc, points), stage.transl_enc(transl), camera.camera_features(batch)], 1)
    visible = visible_joints(batch["orig_keypoints_2d"], loose=True)
    betas = stage.beta_layer(torch.cat([image, rest], 1))

    shared = [rest[:, None].expand(-1, 24, -1), stage.pose_embedding(x_t), stage.embed_time(t)[:, None].expand(-1, 24, -1)]

    def run(seen: Tensor) -> Tensor:
        return stage.diffusion_model(torch.cat([image[:, None] * seen[..., None], *shared], -1))

    x0 = torch.where(visible[..., None], run(visible), run(torch.zeros_like(visible)))
    pose_body(stage.smpl, stage.decode(x0)[1], betas)  # posed at every step, wanted or not
    if guidance is None:
        return x0
    return guidance.move(x0, int(t[0]), betas, points, stage.smpl, stage.mean, stage.std, stage.schedule)


def plain_scene(encoder: SceneEncoder, points: Tensor) -> Tensor:
    """The point encoder as it is defined: every layer on all channels of all points, the maxima joined to each point."""
    x = encoder.block_0(encoder.fc_pos_0(points))
    for number in range(1, 4):
        whole = x.amax(1, keepdim=True).expand_as(x)
        x = getattr(encoder, f"block_{number}")(torch.cat([x, whole], -1))
    return encoder.fc_c(torch.relu(x.amax(1)))


def _project(stage: Stage2, batch: dict, options: argparse.Namespace, guidance: Guidance | None) -> None:
    """Seconds for 5 samples × 50 steps, and for 15 steps of DPM-Solver++, from the time of a look and of a step, with guidance and
    without, of each way."""
    images, samples, rounds = len(batch["img"]), 5, max(1, options.rounds)
    x, late, early = torch.randn(images * samples, 24, 6), 0, stage.schedule.steps - 1
    one = _first(batch)
    with torch.no_grad():
        once = stage.encode(batch)
        features = once.repeat(samples)

        def step(t: int) -> None:
            x0 = stage.denoise(x, torch.full((len(x),), t), features, fuse=True)
            if guidance is not None:
                guidance.move(x0, t, features.betas, features.points, stage.smpl, stage.mean, stage.std, stage.schedule)

        look = _best(lambda: stage.encode(batch), rounds)
        steps = {t: _best(partial(step, t), rounds) for t in (late, early)}
        single = {t: _best(lambda t=t: published_step(stage, one, guidance, x[:1], torch.tensor([t])), rounds) for t in (late, early)}
    start = -1 if guidance is None else guidance.start

    def total(times: list[int], cost: dict[int, float]) -> float:
        return sum(cost[late if t <= start else early] for t in times)

    whole = list(range(stage.schedule.steps))
    theirs = images * samples * total(whole, single)
    print(f"projected (derived from parts, not run) for {images} pictures × {samples} samples, seconds:")
    for words, times in (("50 steps of DDPM", whole), ("15 steps of DPM-Solver++", solver_steps(stage.schedule, 15))):
        seconds = look + total(times, steps)
        print(f"  {words:26} ours {seconds:8.1f}   the published way at 50 steps {theirs:8.1f}   {theirs / seconds:6.1f} ×")


def _best(run: Callable[[], object], rounds: int) -> float:
    return min(_seconds(run) for _ in range(rounds))


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began
