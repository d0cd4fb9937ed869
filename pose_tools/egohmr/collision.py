"""How far scene points are inside a body, differentiably: capsules from the body's own bones, or the user's COAP or VolumetricSMPL.

All points and bodies are in one frame, metres. A field is what has `penetration` and `inside`.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import cached_property
from importlib import import_module
from typing import Any, Protocol

import torch
from torch import Tensor

from pose_tools.body_models import Smpl
from pose_tools.body_models.kinematics import SMPL_PARENTS
from pose_tools.egohmr.body import PosedBody, vertex_owners
from pose_tools.geometry import matrix_to_axis_angle


class BodyField(Protocol):
    """What guidance, losses and metrics ask about bodies and points (B, N, 3)."""

    def penetration(self, body: PosedBody, points: Tensor) -> Tensor:
        """(B, N), 0 outside, growing inwards; differentiable in the body."""

    def inside(self, body: PosedBody, points: Tensor) -> Tensor:
        """(B, N) bool."""


class CapsuleField:
    """Signed distance (B, N) metres, negative inside, to the union of capsules along the body's bones.

    A bone runs from a joint to its child; leaves (head, hands, feet) run to the mean of their farthest vertices. Its radius is the median
    distance at rest of the vertices that follow the joint most and are nearest to it.
    """

    def __init__(self, smpl: Smpl):
        rest = smpl(torch.zeros(1, 3), torch.zeros(1, 69), torch.zeros(1, 10))
        owner = vertex_owners(smpl)
        self.starts = [parent for parent in SMPL_PARENTS if parent >= 0]
        self.ends = [joint for joint, parent in enumerate(SMPL_PARENTS) if parent >= 0]
        self.tips: list[tuple[int, Tensor]] = []
        for joint in sorted(set(range(len(SMPL_PARENTS))) - set(self.starts)):
            own = torch.nonzero(owner == joint)[:, 0]
            if len(own):
                far = (rest.vertices[0, own] - rest.joints[0, joint]).norm(dim=-1).argsort(descending=True)
                self.tips.append((joint, own[far[: max(1, len(own) // 10)]]))
        first, last = self._bones(PosedBody(rest.vertices, rest.joints, torch.eye(3).expand(1, 24, 3, 3)))
        distance = _to_segments(rest.vertices, first, last)[0]  # (V, bones)
        roots = torch.tensor(self.starts + [joint for joint, _ in self.tips])
        # hips, collars and the like start at a joint that others own as well: a vertex counts for its nearest own bone only
        nearest = distance.masked_fill(owner[:, None] != roots, torch.inf).argmin(1)
        radii = [distance[nearest == bone, bone].median() if (nearest == bone).any() else torch.tensor(0.02) for bone in range(len(roots))]
        self.radius = torch.stack(radii)
        self.smpl = smpl

    @cached_property
    def lean(self) -> LeanCapsules:
        """The same capsules on a body of few vertices."""
        return LeanCapsules(self)

    def _bones(self, body: PosedBody) -> tuple[Tensor, Tensor]:
        tips = [body.vertices[:, rows].mean(1) for _, rows in self.tips]
        ends = torch.cat([body.joints[:, self.ends], *(tip[:, None] for tip in tips)], 1)
        return body.joints[:, self.starts + [joint for joint, _ in self.tips]], ends

    def signed_distance(self, body: PosedBody, points: Tensor) -> Tensor:
        first, last = self._bones(body)
        return (_to_segments(points, first, last) - self.radius.to(points)).amin(-1)

    def penetration(self, body: PosedBody, points: Tensor) -> Tensor:
        return (-self.signed_distance(body, points)).clamp_min(0)

    def inside(self, body: PosedBody, points: Tensor) -> Tensor:
        return self.signed_distance(body, points) < 0


class LeanCapsules(CapsuleField):
    """A field's capsules for `body`, which has only the vertices that they depend on: posing it costs a fortieth of the whole.

    Bodies made by it have no box of their own; `box` is the capsules'.
    """

    def __init__(self, field: CapsuleField):
        rows = torch.cat([own for _, own in field.tips]).unique()
        self.body = field.smpl.with_vertices(rows)
        self.starts, self.ends, self.radius = field.starts, field.ends, field.radius
        self.tips = [(joint, torch.searchsorted(rows, own)) for joint, own in field.tips]

    def box(self, body: PosedBody) -> tuple[Tensor, Tensor]:
        """Corners (B, 3), (B, 3) of the box around the capsules."""
        first, last = (ends.detach() for ends in self._bones(body))
        radius = self.radius.to(first)[:, None]
        return (torch.minimum(first, last) - radius).amin(1), (torch.maximum(first, last) + radius).amax(1)


@dataclass
class _SmplxOutput:
    """What COAP and VolumetricSMPL read of smplx's output."""

    vertices: Tensor
    joints: Tensor
    full_pose: Tensor


class CoapField:
    """The user's COAP: an SMPL model that `coap.attach_coap` has prepared (`model.coap.query`, occupancy in 0–1)."""

    def __init__(self, model: Any):
        self.model = model

    def occupancy(self, body: PosedBody, points: Tensor) -> Tensor:
        return self.model.coap.query(points, _smplx_output(body))

    def penetration(self, body: PosedBody, points: Tensor) -> Tensor:
        return (self.occupancy(body, points) - 0.5).clamp_min(0)

    def inside(self, body: PosedBody, points: Tensor) -> Tensor:
        return self.occupancy(body, points) > 0.5


class VolumetricSmplField:
    """The user's VolumetricSMPL: an SMPL model that `attach_volume` has prepared (`model.volume.query`, signed distance)."""

    def __init__(self, model: Any):
        self.model = model

    def signed_distance(self, body: PosedBody, points: Tensor) -> Tensor:
        return self.model.volume.query(points, _smplx_output(body))

    def penetration(self, body: PosedBody, points: Tensor) -> Tensor:
        return (-self.signed_distance(body, points)).clamp_min(0)

    def inside(self, body: PosedBody, points: Tensor) -> Tensor:
        return self.signed_distance(body, points) < 0


def packaged_field(package: str, smpl_folder: str | os.PathLike[str]) -> BodyField:
    """The field of an installed package on the user's neutral SMPL file: "coap" (github.com/markomih/COAP) or "volumetric-smpl"
    (VolumetricSMPL). Both need smplx and pytorch3d and fetch weights of their own. Raises ImportError that says what is missing.
    """
    try:
        import smplx

        model = smplx.create(str(smpl_folder), model_type="smpl", gender="neutral")
        if package == "coap":
            return CoapField(import_module("coap").attach_coap(model))
        return VolumetricSmplField(import_module("VolumetricSMPL").attach_volume(model))
    except ImportError as error:
        raise ImportError(f"{error}; install it with smplx and pytorch3d, or use the capsules, which need nothing") from error


def inside_box(body: PosedBody, points: Tensor, box: tuple[Tensor, Tensor] | None = None) -> Tensor:
    """(B, N) bool: which points (B, N, 3) lie in the body's axis-aligned box, or in the `box` given by its corners (B, 3)."""
    corners = torch.aminmax(body.vertices, dim=1) if box is None else box
    low, high = (value.detach()[:, None] for value in corners)
    return ((points >= low) & (points <= high)).all(-1)


def near_points(
    body: PosedBody, points: Tensor, most: int | None = None, box: tuple[Tensor, Tensor] | None = None
) -> tuple[Tensor, Tensor]:
    """The points in each body's box, packed: (B, K, 3) and which of them count (B, K); `most` keeps evenly spread ones of each body."""
    chosen = inside_box(body, points, box)
    if most is not None:
        place = chosen.cumsum(1)
        stride = (place[:, -1:] + most - 1).div(most, rounding_mode="floor").clamp_min(1)
        chosen = chosen & (place % stride == 0)
    count = int(chosen.sum(1).max()) if chosen.numel() else 0
    rows = chosen.to(torch.uint8).argsort(dim=1, descending=True, stable=True)[:, :count]
    return points.gather(1, rows[..., None].expand(-1, -1, 3)), chosen.gather(1, rows)


def penetration(field: BodyField, body: PosedBody, points: Tensor, most: int | None = None) -> Tensor:
    """Sum of penetrations (B,) of the scene points (B, N, 3) in each body's box."""
    near, valid = near_points(body, points, most, field.box(body) if isinstance(field, LeanCapsules) else None)
    if not near.shape[1]:
        return body.joints.sum((1, 2)) * 0  # nothing near: zero, but still a function of the body
    return torch.where(valid, field.penetration(body, near), torch.zeros(())).sum(1)


def collision_ratio(field: BodyField, body: PosedBody, points: Tensor) -> Tensor:
    """(B,) share of the scene points (B, N, 3) inside each body."""
    near, valid = near_points(body, points)
    if not near.shape[1]:
        return points.new_zeros(len(points))
    return (valid & field.inside(body, near)).sum(1) / points.shape[1]


def _to_segments(points: Tensor, first: Tensor, last: Tensor) -> Tensor:
    """Distances (B, N, K) of points (B, N, 3) to segments with ends (B, K, 3), a segment at a time: no (B, N, K, 3) ever exists."""
    found = []
    for start, end in zip(first.unbind(1), last.unbind(1), strict=True):
        along = end - start
        relative = points - start[:, None]
        place = (relative @ along[..., None])[..., 0] / (along * along).sum(-1, keepdim=True).clamp_min(1e-12)
        offset = relative - place.clamp(0, 1)[..., None] * along[:, None]
        found.append((offset * offset).sum(-1).clamp_min(1e-12).sqrt())
    return torch.stack(found, -1)


def _smplx_output(body: PosedBody) -> _SmplxOutput:
    return _SmplxOutput(body.vertices, body.joints, matrix_to_axis_angle(body.pose).flatten(1))
