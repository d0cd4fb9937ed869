"""Checks of model arrays and of what callers pass in; every message says what was got, what was expected and what to do."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from pose_tools.body_models.kinematics import MANO_PARENTS, SMPL_PARENTS, TIP_VERTICES

_MANO_SHAPES = {
    "v_template": (778, 3),
    "posedirs": (778, 3, 135),
    "J_regressor": (16, 778),
    "weights": (778, 16),
    "kintree_table": (2, 16),
    "hands_components": (45, 45),
    "hands_mean": (45,),
    "f": (None, 3),
}
_SMPL_SHAPES = {
    "v_template": (6890, 3),
    "posedirs": (6890, 3, 207),
    "J_regressor": (24, 6890),
    "weights": (6890, 24),
    "kintree_table": (2, 24),
    "f": (None, 3),
}


def check_mano(arrays: Mapping[str, Any], side: str, source: str = "these arrays") -> None:
    """Raise ValueError unless `arrays` are a MANO hand's and `side` is a side."""
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r}: expected 'left' or 'right'")
    if "v_template" in arrays and np.shape(arrays["v_template"]) == (6890, 3):
        raise ValueError(f"{source}: this is a SMPL body (6890 vertices), expected a MANO hand (778): use load_smpl")
    _check(arrays, _MANO_SHAPES, MANO_PARENTS, 10, "a MANO hand", source)


def check_smpl(arrays: Mapping[str, Any], source: str = "these arrays") -> None:
    """Raise ValueError unless `arrays` are a SMPL body's."""
    if "v_template" in arrays and np.shape(arrays["v_template"]) == (778, 3):
        raise ValueError(f"{source}: this is a MANO hand (778 vertices), expected a SMPL body (6890): use load_mano")
    if "v_template" in arrays and np.shape(arrays["v_template"]) == (10475, 3):
        raise ValueError(f"{source}: this is an SMPL-X body (10475 vertices), expected SMPL (6890)")
    _check(arrays, _SMPL_SHAPES, SMPL_PARENTS, 10, "a SMPL body", source)


def _check(arrays: Mapping[str, Any], shapes: dict, parents: tuple[int, ...], num_betas: int, kind: str, source: str) -> None:
    missing = sorted(({*shapes, "shapedirs"}) - set(arrays))
    if missing:
        raise ValueError(f"{source}: not {kind}: {', '.join(missing)} missing (found {', '.join(sorted(map(str, arrays))) or 'nothing'})")
    for name, shape in shapes.items():
        got = tuple(np.shape(arrays[name])) if not hasattr(arrays[name], "toarray") else tuple(arrays[name].shape)
        if len(got) != len(shape) or any(want not in (None, have) for want, have in zip(shape, got, strict=True)):
            raise ValueError(f"{source}: not {kind}: {name} has shape {got}, expected {tuple('any' if s is None else s for s in shape)}")
    got, vertices = tuple(np.shape(arrays["shapedirs"])), shapes["v_template"][0]
    if len(got) != 3 or got[:2] != (vertices, 3) or got[2] < num_betas:
        raise ValueError(f"{source}: not {kind}: shapedirs has shape {got}, expected ({vertices}, 3, {num_betas} or more)")
    table = np.asarray(arrays["kintree_table"]).astype(np.int64)[0]
    if tuple(table[1:]) != parents[1:]:
        raise ValueError(f"{source}: not {kind}: kintree_table has parents {table[1:].tolist()}, expected {list(parents[1:])}")
    faces = np.asarray(arrays["f"]).astype(np.int64)
    if len(faces) and (faces.min() < 0 or faces.max() >= vertices):
        raise ValueError(f"{source}: faces name vertices {faces.min()}…{faces.max()}, but there are {vertices}")
    for name in ("v_template", "shapedirs", "posedirs", "weights"):
        if not np.isfinite(np.asarray(arrays[name], dtype=np.float64)).all():
            raise ValueError(f"{source}: {name} holds values that are not finite: the file is damaged")


def side_of(arrays: Mapping[str, Any]) -> str | None:
    """Which hand the rest pose shows: MANO's right fingers point along −x from the wrist, the left ones along +x; None when unclear."""
    template = np.asarray(arrays["v_template"], dtype=np.float64)
    regressor = arrays["J_regressor"]
    wrist = np.asarray(regressor[0] @ template).reshape(3) if not hasattr(regressor, "toarray") else (regressor.toarray()[0] @ template)
    reach = template[list(TIP_VERTICES["freihand"])] - wrist
    ahead = reach[:, 0]
    if not ((np.abs(ahead) > 0.04).all() and (np.linalg.norm(reach, axis=1) < 0.35).all()):
        return None
    return "right" if (ahead < 0).all() else "left" if (ahead > 0).all() else None


def repair_left(arrays: Mapping[str, Any], side: str) -> Mapping[str, Any]:
    """MANO's published left file has shape directions whose x rows were never mirrored; turn them round where that is so.

    The first direction is the hand's size: it grows every axis the same way. In a faulty file x shrinks while z grows.
    """
    if side != "left":
        return arrays
    template, first = np.asarray(arrays["v_template"], dtype=np.float64), np.asarray(arrays["shapedirs"], dtype=np.float64)[:, :, 0]
    along = [np.corrcoef(template[:, k], first[:, k])[0, 1] if first[:, k].std() > 0 else 0.0 for k in (0, 2)]
    if min(abs(along[0]), abs(along[1])) < 0.5 or along[0] * along[1] > 0:
        return arrays
    return {**arrays, "shapedirs": np.asarray(arrays["shapedirs"], dtype=np.float64) * np.array([-1.0, 1.0, 1.0])[:, None]}


def same_batch(
    root: torch.Tensor, others: torch.Tensor, betas: torch.Tensor | None, transl: torch.Tensor | None, num_betas: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Rotations (B, J, 3, 3), betas (B, n) and transl (B, 3) of one batch size; a batch of 1 goes with any, None means zeros.

    Raises ValueError for other widths or sizes.
    """
    if betas is None:
        betas = others.new_zeros(1, num_betas)
    if transl is None:
        transl = others.new_zeros(1, 3)
    if betas.ndim != 2 or betas.shape[1] != num_betas:
        raise ValueError(f"betas has shape {tuple(betas.shape)}: expected (B, {num_betas})")
    if transl.ndim != 2 or transl.shape[1] != 3:
        raise ValueError(f"transl has shape {tuple(transl.shape)}: expected (B, 3)")
    count = others.shape[0]
    if not (root.shape[0] == count == betas.shape[0] == transl.shape[0]):
        sizes = (len(root), len(others), len(betas), len(transl))
        batch = 0 if 0 in sizes else max(sizes)
        if any(size not in (1, batch) for size in sizes):
            raise ValueError("batch sizes differ: global_orient {}, pose {}, betas {}, transl {}".format(*sizes))
        root, others = root.expand(batch, -1, -1, -1), others.expand(batch, -1, -1, -1)
        betas, transl = betas.expand(batch, -1), transl.expand(batch, -1)
    return torch.cat([root, others], 1), betas, transl
