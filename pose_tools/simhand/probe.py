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
    """Root-relative joints (Q, 21, d) of `queries` (Q, D) by ridge regression on `features` (N, D) with `joints` (N, 21, d), d 2 or 3."""
    mean, spread = features.mean(0), features.std(0) + 1e-8
    x, y = (features - mean) / spread, (joints - joints[:, :1]).reshape(len(joints), -1)
    gram = x.T @ x + penalty * len(x) * np.eye(x.shape[1])
    weights = np.linalg.solve(gram, x.T @ (y - y.mean(0)))
    return (((queries - mean) / spread) @ weights + y.mean(0)).reshape(-1, *joints.shape[1:])


def nearest(features: np.ndarray, queries: np.ndarray) -> np.ndarray:
    """(Q,) the row of `features` (N, D) with the highest cosine to each query (Q, D)."""
    unit = [x / np.maximum(np.linalg.norm(x, axis=1, keepdims=True), 1e-12) for x in (features, queries)]
    return (unit[1] @ unit[0].T).argmax(1)


def probe_metrics(features: np.ndarray, joints: np.ndarray, queries: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """What features (N, D) of hands with `joints` (N, 21, d) tell of `queries` (Q, D) with `truth` (Q, 21, d); and a random hand.

    Metres (d = 3) give PA-MPJPE in millimetres of the linear probe and of the nearest feature's hand. Where only key points are known
    (d = 2, fractions of the crop) the mean error from the wrist is told in per cent of the crop's side.
    """
    found = linear_probe(features, joints, queries)
    relative = truth - truth[:, :1]
    order = np.random.default_rng(0).integers(len(joints), size=len(truth))
    if truth.shape[-1] == 2:
        hands = {"probe": found, "retrieval": joints[nearest(features, queries)], "random": joints[order]}
        errors = {f"{name}_2d": float(mpjpe(hand, truth, root=0).mean() * 100) for name, hand in hands.items()}
        return errors | {"goodness": -errors["probe_2d"]}
    probed = float(pa_mpjpe(found, relative).mean() * 1000)
    return {
        "probe_pa_mpjpe": probed,
        "probe_mpjpe": float(mpjpe(found, relative, root=0).mean() * 1000),
        "retrieval_pa_mpjpe": float(pa_mpjpe(joints[nearest(features, queries)], truth).mean() * 1000),
        "random_pa_mpjpe": float(pa_mpjpe(joints[order], truth).mean() * 1000),
        "goodness": -probed,
    }
