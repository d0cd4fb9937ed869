"""The recordings, and weights that are a function of their names."""

from __future__ import annotations

import functools
import importlib.util
import json
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from pose_tools.body_models import Smpl
from pose_tools.body_models.kinematics import SMPL_PARENTS, kintree_table

FOLDER = Path(__file__).parents[2] / "fixtures"
_spec = importlib.util.spec_from_file_location("fill", FOLDER / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)


def recorded(name: str) -> dict[str, Tensor]:
    with np.load(FOLDER / f"egohmr/{name}.npz") as file:
        return {key: torch.from_numpy(file[key]) for key in file if file[key].dtype.kind in "fiub"}


def manifest(stage: int) -> dict[str, dict]:
    return json.loads((FOLDER / f"egohmr/stage{stage}_manifest.json").read_text())["entries"]


def weights(stage: int, prefix: str = "") -> dict[str, Tensor]:
    """The recorded checkpoint's tensors whose names begin with `prefix`, the prefix left off."""
    found = {k: fill.value(k, m["shape"], m["dtype"], m["scale"]) for k, m in manifest(stage).items() if k.startswith(prefix)}
    return {name.removeprefix(prefix): value for name, value in found.items()}


def checkpoint(stage: int) -> dict[str, Tensor]:
    """A whole checkpoint of a stage, by the published names, the constant entries included."""
    found = weights(stage)
    betas = torch.linspace(-0.1, 0.1, 10)
    if stage == 2:
        return found | {"beta_layer.init_betas": betas[None]}
    flow = "flow.flow._transform._transforms"
    found |= {"initialized": torch.tensor(True), "flow.fc_head.init_betas": betas[None, None]}
    found |= {"flow.fc_head.init_cam": torch.tensor([[[0.9, 0.0, 0.0]]]), "flow.flow._transform.dummy_buffer": torch.zeros(())}
    for number in range(4):
        found[f"{flow}.{3 * number}.initialized"] = torch.tensor(False)
        kept, moved = torch.arange(number % 2, 144, 2), torch.arange(1 - number % 2, 144, 2)
        found |= {f"{flow}.{3 * number + 2}.identity_features": kept, f"{flow}.{3 * number + 2}.transform_features": moved}
        found |= {f"{flow}.{3 * number + part}.dummy_buffer": torch.zeros(()) for part in range(3)}
    return found


@functools.cache
def smpl_arrays(gender: str) -> dict[str, np.ndarray]:
    """The recorded synthetic body in a SMPL file's names, rebuilt from its seed."""
    number = ("neutral", "male", "female").index(gender)
    rng = np.random.default_rng(20230 + number)
    rest = np.load(FOLDER / "egohmr/synthetic_smpl.npz")["rest_joints"]
    count = 6890
    part = np.arange(count) % 24
    template = (1.0, 1.03, 0.97)[number] * rest[part] + 0.06 * rng.standard_normal((count, 3))
    shape, pose = 0.01 * rng.standard_normal((count, 3, 10)), 0.001 * rng.standard_normal((count, 3, 207))
    weights, regressor = np.zeros((count, 24)), np.zeros((24, count))
    weights[np.arange(count), part] = np.where(part == 0, 1.0, 0.8)
    parents = np.array(SMPL_PARENTS)[part]
    weights[np.arange(count)[part > 0], parents[part > 0]] = 0.2
    regressor[part, np.arange(count)] = 1 / np.bincount(part)[part]
    q = np.arange(13776)
    faces = np.stack([q % count, (q + 1 + q // count) % count, (q + 2 + 2 * (q // count)) % count], 1)
    return {"v_template": template, "shapedirs": shape, "posedirs": pose, "weights": weights, "J_regressor": regressor,
            "f": faces.astype(np.uint32), "kintree_table": kintree_table(SMPL_PARENTS)}  # fmt: skip


@functools.cache
def bodies() -> dict[str, Smpl]:
    return {gender: Smpl.from_arrays(smpl_arrays(gender)) for gender in ("neutral", "male", "female")}


def normal(seed: int, shape: tuple[int, ...], scale: float = 1.0) -> Tensor:
    return torch.from_numpy((np.random.default_rng(seed).standard_normal(shape) * scale).astype(np.float32))
