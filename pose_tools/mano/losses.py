"""What a regressor is taught: terms that each know which samples they apply to, and three named mixtures of them.

A term gives (sum, count) over the values its masks allow, so that several processes can divide by the counts of the whole batch. A
sample without MANO parameters still teaches its joints; one with 2-D joints only teaches these.

    target: rotations (B, 16, 3, 3), betas (B, 10), joints_3d (B, 21, 3), vertices (B, 778, 3), joints_2d (B, 21, 2), projection (B, 3, 3)
    masks:  pose (B,), betas (B,), joints_3d (B, 21), vertices (B,), joints_2d (B, 21)

all in the crop's camera and units (see `prediction.py`). A missing entry of either leaves out the terms that need it; values that a
mask forbids may be anything, NaN included.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from pose_tools.geometry import matrix_to_axis_angle, project
from pose_tools.mano.prediction import HandPrediction

Tensors = Mapping[str, Tensor]
SumAndCount = tuple[Tensor, Tensor]


def _rotation(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Squared difference of the 16 rotation matrices, summed over their entries."""
    return _masked((pred.rotations - target["rotations"]).square().sum((-1, -2)), masks["pose"][:, None])


def _geodesic(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Angle in radians between the rotations: 2·atan2, with a slope that stays finite at 0 and π (acos has none there)."""
    half = (pred.rotations - target["rotations"]).square().sum((-1, -2)).clamp(max=8.0) / 8  # sin² of half the angle
    angle = 2 * torch.atan2((half + 1e-8).sqrt(), (1 - half + 1e-8).sqrt())
    return _masked(angle, masks["pose"][:, None])


def _axis_angle(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Squared difference of the 45 axis-angle numbers; the root is left out, whose angle may jump at π."""
    difference = matrix_to_axis_angle(pred.rotations[:, 1:]) - matrix_to_axis_angle(target["rotations"][:, 1:])
    return _masked(difference.square().flatten(1), masks["pose"][:, None])


def _betas(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Squared difference of the shape numbers."""
    return _masked((pred.betas - target["betas"]).square(), masks["betas"][:, None])


def _joints_3d(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Distance per axis in metres, relative to the wrist; needs the wrist."""
    truth = target["joints_3d"] - target["joints_3d"][:, :1]
    return _masked((pred.joints_3d - truth).abs().mean(-1), masks["joints_3d"] * masks["joints_3d"][:, :1])


def _local_joints(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """As `joints_3d`, each hand turned back by its own root rotation: how it is bent and shaped, whichever way it points."""
    truth = (target["joints_3d"] - target["joints_3d"][:, :1]) @ target["rotations"][:, 0]
    allowed = masks["joints_3d"] * masks["joints_3d"][:, :1] * masks["pose"][:, None]
    return _masked((pred.joints_3d @ pred.rotations[:, 0] - truth).abs().mean(-1), allowed)


def _vertices(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Distance per axis in metres, relative to the wrist."""
    if "vertices" not in target:
        return pred.betas.sum() * 0, pred.betas.new_zeros(())
    allowed = masks["vertices"] * masks["joints_3d"][:, 0]
    return _masked((pred.vertices - (target["vertices"] - target["joints_3d"][:, :1])).abs().mean(-1), allowed[:, None])


def _joints_2d(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Distance per axis in crop units between the posed hand seen by the crop's camera and the joints in the picture."""
    seen = pred.joints_3d + pred.wrist(target["projection"])[:, None]
    # a hand that reaches behind the camera in the first steps must not tear the gradient
    seen = torch.cat([seen[..., :2], seen[..., 2:].clamp(min=0.05)], -1)
    return _masked((project(seen, target["projection"]) - target["joints_2d"]).abs().clamp(max=2.0).mean(-1), masks["joints_2d"])


def _key_points(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Negative log-likelihood of the joints in the picture under the network's own key points (Laplace, per axis), plus their distance:
    the likelihood alone teaches places it is unsure of too slowly."""
    distance = (pred.joints_2d - target["joints_2d"]).abs().mean(-1)
    return _masked(distance / pred.log_scale_2d.exp() + pred.log_scale_2d + 10 * distance, masks["joints_2d"])


def _expected_error(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Negative log-likelihood of the 3-D joints' errors under their predicted scale; it moves the scale only, not the joints."""
    truth = target["joints_3d"] - target["joints_3d"][:, :1]
    error = torch.linalg.vector_norm(pred.joints_3d.detach() - truth, dim=-1)
    allowed = masks["joints_3d"] * masks["joints_3d"][:, :1]
    return _masked(error / pred.log_scale_3d.exp() + pred.log_scale_3d, allowed)


def _size(pred: HandPrediction, target: Tensors, masks: Tensors) -> SumAndCount:
    """Mean square of the 45 axis-angle numbers plus that of the shape: keeps the answer near a hand. Applies to every sample."""
    squares = matrix_to_axis_angle(pred.rotations[:, 1:]).square().flatten(1).mean(1) + pred.betas.square().mean(1)
    return squares.sum(), squares.new_tensor(float(len(squares)))


TERMS: dict[str, Callable[[HandPrediction, Tensors, Tensors], SumAndCount]] = {
    "rotation": _rotation, "geodesic": _geodesic, "axis_angle": _axis_angle, "betas": _betas,
    "joints_3d": _joints_3d, "local_joints": _local_joints, "vertices": _vertices,
    "joints_2d": _joints_2d, "key_points": _key_points, "expected_error": _expected_error, "size": _size,
}  # fmt: skip


class HandLoss(nn.Module):
    """A weighted mixture of TERMS. `loss(pred, target, masks)` → {term: mean, …, "total"}; a term without a sample counts 0."""

    def __init__(self, weights: Mapping[str, float]) -> None:
        super().__init__()
        unknown = set(weights) - set(TERMS)
        if unknown or not weights:
            raise ValueError(f"loss terms {sorted(unknown)} do not exist: expected some of {', '.join(TERMS)}")
        wrong = {name: weight for name, weight in weights.items() if not (math.isfinite(weight) and weight >= 0)}
        if wrong:
            raise ValueError(f"loss weights must be finite and at least 0, got {wrong}")
        self.weights = {name: float(weight) for name, weight in weights.items() if weight}

    def sums(self, pred: HandPrediction, target: Tensors, masks: Tensors) -> dict[str, SumAndCount]:
        """{term: (sum over what its mask allows, how many values that is)}."""
        target = _allowed(target, masks)
        return {name: TERMS[name](pred, target, masks) for name in self.weights}

    def forward(self, pred: HandPrediction, target: Tensors, masks: Tensors) -> dict[str, Tensor]:
        means = {name: total / count.clamp(min=1) for name, (total, count) in self.sums(pred, target, masks).items()}
        return means | {"total": torch.stack([self.weights[name] * value for name, value in means.items()]).sum()}


class SimpleMANOLoss(HandLoss):
    """Parameters only: λ_param·(MSE(θ) + 0.1·MSE(β)) + λ_reg·(mean θ² + mean β²)."""

    def __init__(self, param: float = 1.0, regularisation: float = 0.01) -> None:
        super().__init__({"axis_angle": param, "betas": 0.1 * param, "size": regularisation})


class MANOLoss(HandLoss):
    """`SimpleMANOLoss` with joints, on request vertices and angles. Joints count relative to the wrist, in metres."""

    def __init__(
        self, param: float = 1.0, joint: float = 25.0, vertex: float = 0.0, angular: float = 0.0, regularisation: float = 0.01
    ) -> None:
        weights = {"axis_angle": param, "betas": 0.1 * param, "joints_3d": joint, "vertices": vertex, "geodesic": angular}
        super().__init__(weights | {"size": regularisation})


RECIPE = {
    "rotation": 0.3, "betas": 0.02, "joints_3d": 30.0, "local_joints": 40.0, "vertices": 15.0, "joints_2d": 4.0, "key_points": 0.1,
    "expected_error": 0.05,
}  # fmt: skip
"""L1 of 3-D joints, vertices and re-projected joints, squared rotation matrices, shape, the network's own key points, its own doubt
(after HaMeR, rescaled for means; gradients of the terms are comparable at the start)."""


def _masked(values: Tensor, mask: Tensor) -> SumAndCount:
    mask = mask.to(values.dtype).expand_as(values)
    return (values * mask).sum(), mask.sum()


def _allowed(target: Tensors, masks: Tensors) -> Tensors:
    """`target` with harmless values where a mask forbids its own: a function of NaN has a NaN gradient even where it is not used."""
    asked = {"rotations": "pose", "betas": "betas", "joints_3d": "joints_3d", "joints_2d": "joints_2d", "vertices": "vertices"}
    masks_of = {name: masks[mask] for name, mask in asked.items() if name in target and mask in masks}
    if "projection" in target and "joints_2d" in masks:
        masks_of["projection"] = masks["joints_2d"].amax(1)
    harmless = dict(target)
    for name, mask in masks_of.items():
        value = target[name]
        instead = torch.eye(3, dtype=value.dtype, device=value.device) if name in ("rotations", "projection") else value.new_zeros(())
        harmless[name] = torch.where(mask.reshape(*mask.shape, *[1] * (value.dim() - mask.dim())) > 0, value, instead)
    return harmless
