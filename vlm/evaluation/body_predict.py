"""EgoHMR's stages as predictors of EgoBody's pictures: batched over pictures and samples, every picture's noise its own."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from data.ego_body import EgoBody, collate
from data.ego_body_scenes import cut_out
from pose_tools.egohmr.flow import POSE_WIDTH
from pose_tools.egohmr.folder import InputSizes
from pose_tools.egohmr.guidance import Guidance
from pose_tools.egohmr.stage1 import Stage1
from pose_tools.egohmr.stage2 import Stage2
from vlm.evaluation.body import Bodies, Predictor


@dataclass(frozen=True)
class Sampling:
    """How stage 2 is sampled: see `Stage2.sample`. `loose`: visibility as published in testing (None), or by the strict map (False)."""

    samples: int = 5
    seed: int = 0
    sampler: str = "ddpm"
    steps: int = 50
    fuse: bool = True
    guidance: Guidance | None = None
    compat: str | None = None
    loose: bool | None = None


def scene_of(data: EgoBody, stage: int, sizes: InputSizes, transl: Mapping[int, np.ndarray] | None = None) -> Callable[[int], np.ndarray]:
    """The points (N, 3) of a picture, camera frame, by its number: the preprocessed ones of `data`, or cut out now."""

    def points(number: int) -> np.ndarray:
        if data.scenes is not None:
            return data.scene_points(number)
        return cut_out(data, number, stage, None if transl is None else transl[number], target=sizes.points)

    return points


def stage1_predictor(stage: Stage1, data: EgoBody, points: Callable[[int], np.ndarray], samples: int, seed: int) -> Predictor:
    """The most likely body first, then samples of the flow."""

    def predict(numbers: Sequence[int]) -> list[Bodies]:
        noise = _noise(numbers, seed, 1, samples)[0]
        noise[:, 0] = 0
        with torch.no_grad():
            out = stage(_batch(data, numbers, points), samples, noise)
        pose = torch.cat([out["global_orient"], out["body_pose"]], 2)
        return _split(pose, out["betas"], out["transl"], out.get("transl_std"))

    return predict


def stage2_predictor(
    stage: Stage2, data: EgoBody, points: Callable[[int], np.ndarray], transl: Mapping[int, np.ndarray], how: Sampling
) -> Predictor:
    """Samples of the diffusion at stage 1's translations, `transl` {number: (3,)}."""
    draws = how.steps + 1 if how.sampler == "ddpm" else 1

    def predict(numbers: Sequence[int]) -> list[Bodies]:
        batch = _batch(data, numbers, points)
        where = torch.from_numpy(np.stack([transl[number] for number in numbers])).float()
        noise = _noise(numbers, how.seed, draws, how.samples)
        with torch.no_grad():
            features = stage.encode(batch, transl=where, loose=how.loose)
            out = stage.sample(
                features, how.samples, how.sampler, how.steps, fuse=how.fuse, guidance=how.guidance, noise=noise, compat=how.compat
            )
        return _split(out["pose"], out["betas"], out["transl"])

    return predict


def _batch(data: EgoBody, numbers: Sequence[int], points: Callable[[int], np.ndarray]) -> dict[str, Any]:
    items = []
    for number in numbers:
        item = data.item(number)
        items.append({name: value for name, value in item.items() if name not in ("has_smpl_params", "smpl_params_is_axis_angle")}
                     | {"scene_pcd_verts_full": points(number)})  # fmt: skip
    return collate(items)


def _noise(numbers: Sequence[int], seed: int, draws: int, samples: int) -> torch.Tensor:
    """(draws, n, samples, 144) standard normal; a picture's does not depend on the batch that it is in."""
    drawn = [np.random.default_rng([seed, number, 7]).standard_normal((draws, samples, POSE_WIDTH), np.float32) for number in numbers]
    return torch.from_numpy(np.stack(drawn, 1))


def _split(pose: torch.Tensor, betas: torch.Tensor, transl: torch.Tensor, std: torch.Tensor | None = None) -> list[Bodies]:
    arrays = [value.cpu().numpy() for value in (pose, betas, transl)]
    deviations = [None] * len(pose) if std is None else list(std.cpu().numpy())
    return [Bodies(p, b, t, deviation) for p, b, t, deviation in zip(*arrays, deviations, strict=True)]
