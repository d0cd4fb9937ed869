"""A regressor's task for the one training loop (`pose_tools.training`): losses by term, honest metrics, and an alarm for collapse."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from pose_tools.contact_sheet import contact_sheet
from pose_tools.geometry import project
from pose_tools.mano.crops import HandCrops
from pose_tools.mano.losses import HandLoss
from pose_tools.mano.prediction import HandPrediction
from pose_tools.metrics import mpjpe, pa_mpjpe
from pose_tools.sampling import evenly

logger = logging.getLogger(__name__)

COLLAPSED = 0.1
"""Least ratio of the predictions' spread to the labels' before the alarm."""


class RegressionTask:
    """`crops` to learn from, `held_out` to be judged by (each HandCrops); metrics come from the first `evaluate_most` of the latter."""

    def __init__(self, crops: HandCrops, held_out: HandCrops, loss: HandLoss, *, evaluate_most: int = 1000) -> None:
        self.crops, self.held_out, self.loss = crops, held_out, loss
        self.weights = loss.weights
        self.sample, self.collate = crops.sample, crops.collate
        self.judged = evenly(len(held_out), evaluate_most).tolist()

    def __len__(self) -> int:
        return len(self.crops)

    def counts(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """How many values each term's mask allows: 16 joints or 21, 45 angles, 10 shape numbers, 778 vertices a sample."""
        root = batch["has_joints_3d"] * batch["has_joints_3d"][:, :1]
        pose, joints = batch["has_pose"].sum(), root.sum()
        vertices = 778 * (batch["has_vertices"] * root[:, 0]).sum() if "vertices" in batch else pose * 0
        seen = batch["has_joints_2d"].sum()
        known = {
            "rotation": 16 * pose, "geodesic": 16 * pose, "axis_angle": 45 * pose, "betas": 10 * batch["has_betas"].sum(),
            "joints_3d": joints, "local_joints": (root * batch["has_pose"][:, None]).sum(),
            "expected_error": joints, "vertices": vertices, "joints_2d": seen, "key_points": seen,
            "size": torch.tensor(float(len(batch["pixels"]))),
        }  # fmt: skip
        return {name: known[name] for name in self.weights}

    def losses(self, model: nn.Module, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Sums of each term over the batch."""
        masks = {name[4:]: value for name, value in batch.items() if name.startswith("has_")}
        prediction = model(batch["pixels"].float())
        with torch.autocast(batch["pixels"].device.type, enabled=False):
            return {name: total for name, (total, _) in self.loss.sums(prediction, batch, masks).items()}

    def evaluate(self, model: nn.Module) -> dict[str, float]:
        """Millimetres on held-out hands (see `score`)."""
        prediction, batch = predict(model, self.held_out, self.judged)
        return score(prediction, batch)


def predict(model: nn.Module, crops: HandCrops, numbers: Sequence[int], batch_size: int = 50) -> tuple[HandPrediction, dict[str, Tensor]]:
    """Predictions and labels of the numbered samples, on the CPU."""
    device = next(model.parameters()).device
    predictions, batches = [], []
    with torch.no_grad():
        for first in range(0, len(numbers), batch_size):
            batch = crops.collate([crops.sample(number) for number in numbers[first : first + batch_size]])
            predictions.append(model(batch["pixels"].to(device).float()).map(lambda x: x.cpu()))
            batches.append(batch)
    return _join(predictions), {name: torch.cat([batch[name] for batch in batches]) for name in batches[0] if name != "pixels"}


def _join(predictions: Sequence[HandPrediction]) -> HandPrediction:
    names = HandPrediction.__dataclass_fields__
    return HandPrediction(**{name: torch.cat([getattr(one, name) for one in predictions]) for name in names})


def score(prediction: HandPrediction, batch: dict[str, Tensor]) -> dict[str, float]:
    """Metrics over the samples with all 3-D joints, millimetres: PA-MPJPE, MPJPE from the wrist, the same of one constant pose (the mean of
    the labels), spread of the predictions over that of the labels, and how much worse the fifth with the least confidence is.

    `accuracy` is −PA-MPJPE, for `best_metric`.
    """
    whole = batch["has_joints_3d"].bool().all(1)
    if not whole.any():
        raise ValueError("no held-out hand has all its 3-D joints: nothing can be measured")
    pred, truth = ((x - x[:, :1])[whole].double().numpy() * 1000 for x in (prediction.joints_3d, batch["joints_3d"]))
    constant = np.broadcast_to(truth.mean(0), truth.shape)
    error, aligned = mpjpe(pred, truth), pa_mpjpe(pred, truth)
    spread = pred[:, 1:].std(0).mean() / max(truth[:, 1:].std(0).mean(), 1e-9)
    if spread < COLLAPSED and len(truth) > 1:
        logger.warning(
            "COLLAPSE: the predictions spread only %.2f times as far as the labels: do labels and pictures belong together?", spread
        )
    order = np.argsort(prediction.confidence[whole].double().numpy())
    doubtful, sure = order[: max(1, len(order) // 5)], order[max(1, len(order) // 5) :]
    seen = batch["has_joints_2d"].bool()
    pixels = (prediction.joints_2d - batch["joints_2d"]).norm(dim=-1)[seen].mean() if seen.any() else torch.tensor(float("nan"))
    return {
        "accuracy": -float(aligned.mean()), "pa_mpjpe": float(aligned.mean()), "mpjpe": float(error.mean()),
        "constant_pa_mpjpe": float(pa_mpjpe(constant, truth).mean()), "constant_mpjpe": float(mpjpe(constant, truth).mean()),
        "spread": float(spread), "key_points_percent": 100 * float(pixels),
        "doubtful_ratio": float(error[doubtful].mean() / max(error[sure].mean(), 1e-9)) if len(sure) else float("nan"),
    }  # fmt: skip


def label_sheet(crops: HandCrops, count: int = 24, epoch: int = 0) -> np.ndarray:
    """RGB uint8: crops as the network gets them, with the joints that the labels project to."""
    from pose_tools.render import Canvas

    pictures, captions = [], []
    for number in evenly(len(crops), count).tolist():
        sample = crops.sample(number, epoch)
        pixels = np.ascontiguousarray(sample["pixels"].transpose(1, 2, 0))
        canvas = Canvas(pixels, least=320)
        if sample["has_joints_3d"].any():
            points = project(sample["joints_3d"].astype(float), sample["projection"].astype(float))
            valid = sample["has_joints_3d"] > 0
        else:
            points, valid = sample["joints_2d"], sample["has_joints_2d"] > 0
        canvas.skeleton((points + 0.5) * len(pixels), valid=valid, side="right")
        pictures.append(canvas.array())
        captions.append(f"sample {number}")
    return contact_sheet(pictures, captions, columns=6, cell=240, title="what the labels say, on what the network sees")


def overfit(model: nn.Module, batch: dict[str, Tensor], loss: HandLoss, steps: int, learning_rate: float = 2e-3) -> Any:
    """Fits one batch and returns its PA-MPJPE in millimetres: a network, loss and labels that are sound reach a few millimetres."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps)
    masks = {name[4:]: value for name, value in batch.items() if name.startswith("has_")}
    model.train()
    for _ in range(steps):
        optimizer.zero_grad()
        loss(model(batch["pixels"].float()), batch, masks)["total"].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    with torch.no_grad():
        found = model.eval()(batch["pixels"].float()).joints_3d
    return float(pa_mpjpe(found.double().numpy(), batch["joints_3d"].double().numpy()).mean() * 1000)
