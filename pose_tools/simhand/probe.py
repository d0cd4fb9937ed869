"""What a frozen encoder knows of hands: joints read off its features by a linear map, and the poses of the nearest features."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.metrics import mpjpe, pa_mpjpe
from pose_tools.simhand.views import MEAN, STD

PENALTY = 1e-2
"""Ridge penalty, as a share of the mean variance of the standardised features."""


def pixels_to_input(pixels: Tensor) -> Tensor:
    """uint8 (B, 3, H, W) → float32, ImageNet's mean and deviation."""
    mean, std = (torch.from_numpy(v).to(pixels.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


@torch.no_grad()
def embed(encoder: nn.Module, pixels: np.ndarray, chunk: int = 256) -> np.ndarray:
    """Pictures uint8 (N, 3, H, W) → features (N, width) float64 of an encoder in eval mode."""
    device = next(encoder.parameters()).device
    parts = [encoder(pixels_to_input(torch.from_numpy(pixels[i : i + chunk]).to(device))) for i in range(0, len(pixels), chunk)]
    return torch.cat(parts).double().cpu().numpy()


def linear_probe(features: np.ndarray, joints: np.ndarray, queries: np.ndarray, penalty: float = PENALTY) -> np.ndarray:
    """Root-relative joints (Q, 21, 3) of `queries` (Q, D) by ridge regression on `features` (N, D) with `joints` (N, 21, 3)."""
    mean, spread = features.mean(0), features.std(0) + 1e-8
    x, y = (features - mean) / spread, (joints - joints[:, :1]).reshape(len(joints), -1)
    gram = x.T @ x + penalty * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (y - y.mean(0)))
    return (((queries - mean) / spread) @ weights + y.mean(0)).reshape(-1, 21, 3)


def nearest(features: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q,) the row of `features` (N, D) with the highest cosine to each query (Q, D)."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, queries)]
    return (unit[1] @ unit[0].T).argmax(1)


def probe_metrics(features: np.ndarray, joints: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Millimetres, joints in metres: the linear probe's and the nearest feature's PA-MPJPE, and what a random hand would give."""
    found = linear_probe(features, joints, queries)
    relative = truth - truth[:, :1]
    order = np.random.default_rng(0).integers(len(joints), size=len(truth))
    probed = float(pa_mpjpe(found, relative).mean() * 1000)
    return {
        "probe_pa_mpjpe": probed,
        "probe_mpjpe": float(mpjpe(found, relative, root=0).mean() * 1000),
        "retrieval_pa_mpjpe": float(pa_mpjpe(joints[nearest(features, queries)], truth).mean() * 1000),
        "random_pa_mpjpe": float(pa_mpjpe(joints[order], truth).mean() * 1000),
        "goodness": -probed,
    }
