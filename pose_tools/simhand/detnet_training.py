"""Targets and losses of the detection net, as published (Minimal-Hand)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from pose_tools.joints import BONES
from pose_tools.simhand.detnet import CELLS

IMAGE_SIZE = 128
PARENT = [0, *(parent for parent, _ in BONES)]
REFERENCE = (0, 9)
"""Root and end of the bone that everything is measured in: wrist, middle base."""
WEIGHTS = {"heat_map": 100.0, "delta": 1.0, "location": 10.0}


def heat_maps(keypoints: np.ndarray, sigma: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    """Key points (21, 2) pixels of the 128-px picture → (heat maps (21, 32, 32) float32 with peak 1, veil (21,) float32).

    The peak is at the cell int(point / 4), the Gaussian is cut at 3 sigma; the veil is 0 where nothing of it lies on the map.
    """
    cells = (np.asarray(keypoints, np.float64) / IMAGE_SIZE * CELLS).astype(np.int32)  # towards zero, as published
    reach, axis = int(3 * sigma), np.arange(CELLS)
    maps, veil = np.zeros((len(cells), CELLS, CELLS), np.float32), np.ones(len(cells), np.float32)
    for number, (x, y) in enumerate(cells):
        if not (-reach - 1 <= x < CELLS + reach and -reach - 1 <= y < CELLS + reach):
            veil[number] = 0
            continue
        dx, dy = axis - x, axis - y
        patch = np.exp(-(dx[None] ** 2 + dy[:, None] ** 2) / (2 * sigma**2))
        maps[number] = patch * (np.abs(dx) <= reach)[None] * (np.abs(dy) <= reach)[:, None]
    return maps, veil


def joint_targets(joints: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Joints (21, 3), FreiHAND order, any unit → (locations (21, 3), bone directions (21, 3)) float64, the same all over the maps.

    Locations are relative to the wrist in lengths of the bone wrist – middle base; directions go from parent to child, 0 at the root.
    """
    joints = np.asarray(joints, np.float64)
    length = np.linalg.norm(joints[REFERENCE[1]] - joints[REFERENCE[0]])
    if not length > 0:
        raise ValueError("joint_targets: wrist and middle base coincide (or are not finite), the pose has no scale")
    locations = (joints - joints[REFERENCE[0]]) / length
    bones = locations - locations[PARENT]
    bones[1:] /= np.maximum(np.linalg.norm(bones[1:], axis=-1, keepdims=True), 1e-12)
    return locations, bones


def detnet_losses(output: dict[str, Tensor], targets: dict[str, Tensor], weights: dict[str, float] = WEIGHTS) -> dict[str, Tensor]:
    """`output` of `DetNet`; targets: heat_map (B, 21, 32, 32), veil (B, 21), location and delta (B, 21, 3), has_3d (B,) bool →
    {heat_map, delta, location, total}.

    heat_map: Σ_j ½ mean over batch and cells of the squared veiled difference. delta, location: Frobenius norm over the whole batch of
    the difference times the target heat map, divided by the number of samples with 3-D joints (0 without any).
    """
    heat, has_3d = targets["heat_map"], targets["has_3d"].bool()
    difference = (output["h_map"] - heat) * targets["veil"][:, :, None, None]
    losses = {"heat_map": 0.5 * difference.square().mean((0, 2, 3)).sum()}
    for name, key in (("delta", "d_map"), ("location", "l_map")):
        gap = (output[key][has_3d] - targets[name][has_3d][..., None, None]) * heat[has_3d][:, :, None]
        losses[name] = torch.linalg.vector_norm(gap) / has_3d.sum() if has_3d.any() else output[key].sum() * 0
    return losses | {"total": sum((weights[name] * value for name, value in losses.items()), torch.zeros_like(losses["heat_map"]))}


def heat_map_accuracy(pred: Tensor, target: Tensor, threshold: float = 0.5) -> Tensor:
    """Share (21,) of the maxima of heat maps (B, 21, 32, 32) nearer to the target's than `threshold` · 3.2 cells.

    NaN without valid samples. Targets whose maximum has a coordinate below 1, or is 0, do not count.
    """
    (p, _), (t, peak) = _maxima(pred), _maxima(target)
    valid = (t >= 1).all(-1) & (peak > 0)
    distance = (p - t).float().norm(dim=-1) / (CELLS / 10)
    return ((distance < threshold) & valid).sum(0) / valid.sum(0)


def _maxima(maps: Tensor) -> tuple[Tensor, Tensor]:
    peak, cell = maps.flatten(2).max(-1)
    return torch.stack([cell % CELLS, cell // CELLS], dim=-1), peak
