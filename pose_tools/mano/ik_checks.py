"""What `ik.fit` was given, brought to one form, or refused with the reason."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch

from pose_tools.body_models import Mano
from pose_tools.joints import ORDERS, indices
from pose_tools.mano.ik_camera import View

LARGEST, SMALLEST = 1.0, 0.01
"""Metres between which the landmarks of one hand may span."""
FEWEST = 4


class Given(NamedTuple):
    """`view` of B hands in float64 and MANO's order (unit 1); `betas` (B, 10); `init` field → (B, …); `dtype` of the answer."""

    view: View
    betas: torch.Tensor
    init: dict[str, torch.Tensor]
    dtype: torch.dtype

    @property
    def picture(self) -> bool:
        return self.view.target.shape[2] == 2


def check(
    joints: Any, mano: Mano, intrinsics: Any, confidence: Any, fit_scale: bool, betas: Any, init: Any, noise: float | None
) -> Given:
    """See `ik.fit`."""
    joints = torch.as_tensor(joints)
    dtype = joints.dtype if joints.is_floating_point() else torch.float32
    device = mano.template.device
    if joints.ndim != 3 or joints.shape[1] != 21 or joints.shape[2] not in (2, 3):
        few = f"; {joints.shape[1]} joints are not a hand's 21" if joints.ndim == 3 and joints.shape[1] != 21 else ""
        one = "; put a single hand into a batch: joints[None]" if joints.ndim == 2 else ""
        raise ValueError(f"joints have shape {tuple(joints.shape)}: expected (B, 21, 3) metres or (B, 21, 2) pixels{few}{one}")
    batch = len(joints)
    order = indices("freihand", "mano16_plus_tips")
    target = joints.detach().to(device, torch.float64)
    weight = _weights(confidence, batch, device)
    _check_points(target, weight, fit_scale)
    target = torch.where(weight[..., None] > 0, target, 0.0)
    matrix = _intrinsics(intrinsics, batch, joints.shape[2], fit_scale, device)
    if noise is not None and not noise > 0:
        raise ValueError(f"noise={noise}: expected a standard deviation above 0, or None to estimate it")
    fields = _init(init, batch, device)
    shape = _sized(betas, "betas", batch, 10, device) if betas is not None else fields.get("betas", target.new_zeros(batch, 10))
    view = View(target[:, order], weight[:, order], target.new_ones(batch), matrix)
    return Given(view, shape, fields, dtype if dtype in (torch.float32, torch.float64) else torch.float32)


def _weights(confidence: Any, batch: int, device: torch.device) -> torch.Tensor:
    if confidence is None:
        return torch.ones(batch, 21, dtype=torch.float64, device=device)
    weight = torch.as_tensor(confidence).detach().to(device, torch.float64)
    if tuple(weight.shape) not in ((batch, 21), (21,)):
        raise ValueError(f"confidence has shape {tuple(weight.shape)}: expected ({batch}, 21) or (21,)")
    if not weight.isfinite().all() or (weight < 0).any():
        raise ValueError("confidence must be finite and ≥ 0: it is a weight; use 0 for landmarks that are not there")
    return weight.expand(batch, 21)


def _check_points(target: torch.Tensor, weight: torch.Tensor, fit_scale: bool) -> None:
    names = ORDERS["freihand"]
    wrong = (~target.isfinite().all(2)) & (weight > 0)
    if wrong.any():
        hand, joint = wrong.nonzero()[0].tolist()
        raise ValueError(
            f"hand {hand}: {names[joint]} is {target[hand, joint].tolist()} with confidence {weight[hand, joint]:g}; "
            "give landmarks that are not there the confidence 0"
        )
    count = (weight > 0).sum(1)
    if (count < FEWEST).any():
        hand = int((count < FEWEST).nonzero()[0])
        raise ValueError(f"hand {hand}: {int(count[hand])} landmarks have a confidence above 0, at least {FEWEST} are needed")
    there = (weight > 0)[..., None]
    high = torch.where(there, target, -torch.inf).amax(1)
    low = torch.where(there, target, torch.inf).amin(1)
    span = (high - low).norm(dim=1)
    size = torch.where(there, target, 0).abs().amax((1, 2))
    for hand, extent in enumerate(span.tolist()):
        if extent <= 1e-9 * max(1.0, float(size[hand])):
            place = target[hand, weight[hand] > 0][0].tolist()
            raise ValueError(f"hand {hand}: all landmarks are equal ({place}): nothing was detected there")
        if target.shape[2] == 3 and not fit_scale and extent > LARGEST:
            unit = "millimetres: divide by 1000" if extent > 20 else "another unit: bring them to metres, or use fit_scale=True"
            raise ValueError(f"hand {hand}: the landmarks span {extent:.4g} m, a hand spans about 0.2 m; they seem to be in {unit}")
        if target.shape[2] == 3 and not fit_scale and extent < SMALLEST:
            raise ValueError(
                f"hand {hand}: the landmarks span {extent:.2g} m, a hand spans about 0.2 m; bring them to metres, or use fit_scale=True"
            )


def _intrinsics(intrinsics: Any, batch: int, size: int, fit_scale: bool, device: torch.device) -> torch.Tensor | None:
    if intrinsics is None:
        return None
    if size == 3:
        raise ValueError("intrinsics go with (B, 21, 2) pixels; landmarks in space need none")
    if fit_scale:
        raise ValueError("fit_scale with intrinsics: a larger hand farther away looks the same; give `betas`, or use fit_shape=True")
    matrix = torch.as_tensor(intrinsics).detach().to(device, torch.float64)
    if tuple(matrix.shape) not in ((3, 3), (batch, 3, 3)):
        raise ValueError(f"intrinsics have shape {tuple(matrix.shape)}: expected (3, 3) or ({batch}, 3, 3)")
    focal = torch.stack([matrix[..., 0, 0], matrix[..., 1, 1]])
    last = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64, device=device)
    if not matrix.isfinite().all() or (focal <= 0).any() or not torch.equal(matrix[..., 2, :], last.expand_as(matrix[..., 2, :])):
        raise ValueError(f"intrinsics {matrix.tolist()}: expected [[fx, s, cx], [0, fy, cy], [0, 0, 1]] with fx, fy > 0, pixels")
    return matrix.expand(batch, 3, 3)


def _init(init: Any, batch: int, device: torch.device) -> dict[str, torch.Tensor]:
    if init is None:
        return {}
    fields = dict(init) if isinstance(init, Mapping) else init._asdict() if hasattr(init, "_asdict") else None
    if fields is None:
        raise ValueError(f"init is a {type(init).__name__}: expected an IKResult or a mapping of its fields")
    widths = {"global_orient": 3, "hand_pose": 45, "betas": 10, "transl": 3, "scale": None}
    unknown = set(fields) - {*widths, "residual", "iterations"}
    if unknown:
        raise ValueError(f"init has {', '.join(sorted(unknown))}: expected some of {', '.join(widths)}")
    return {name: _sized(fields[name], name, batch, width, device) for name, width in widths.items() if fields.get(name) is not None}


def _sized(value: Any, name: str, batch: int, width: int | None, device: torch.device) -> torch.Tensor:
    """`value` as (batch, width), or (batch,) where `width` is None. Rotation matrices of `global_orient` become axis-angle."""
    value = torch.as_tensor(value).detach().to(device, torch.float64)
    if name == "global_orient" and value.shape[-2:] == (3, 3):
        from pose_tools.geometry import matrix_to_axis_angle

        value = matrix_to_axis_angle(value)
    tail = () if width is None else (width,)
    if tuple(value.shape) not in ((batch, *tail), (1, *tail), tail):
        raise ValueError(f"{name} has shape {tuple(value.shape)}: expected {(batch, *tail)}")
    if not value.isfinite().all():
        raise ValueError(f"{name} holds values that are not finite")
    return value.expand(batch, *tail)
