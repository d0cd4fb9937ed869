"""What a body that was found in a picture of EgoBody is compared with: the annotated body, what of it is seen, the scan around it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from PIL import Image

from data.ego_body import EgoBody
from data.ego_body_cameras import EgoBodyError
from data.ego_body_scenes import scan_of, true_bodies
from pose_tools.egohmr.body import PosedBody, vertex_owners
from pose_tools.egohmr.evaluate import in_frame
from pose_tools.egohmr.scene import transform

Seen = Literal["labels", "frame"]
"""What makes a joint visible: "frame", it lies in the picture (as published); "labels", nothing hides it either, where the data say so."""


@dataclass(frozen=True)
class Truth:
    """The annotated people of n pictures: their `body` (camera frame, metres), which of its joints (n, 24) and vertices (n, V) are seen."""

    body: PosedBody
    visible: np.ndarray
    vertices_visible: np.ndarray


def truth_of(data: EgoBody, indices: Sequence[int], seen: Seen = "labels") -> Truth:
    """Truth of some pictures. Vertices are hidden by things where the joint that they follow most is."""
    body = true_bodies(data, indices)
    visible, vertices = _in_frame(data, indices, body.joints), _in_frame(data, indices, body.vertices)
    if seen == "labels" and "joints_visible" in data.rows:
        visible = data.rows["joints_visible"][list(indices)].astype(bool)
        vertices &= visible[:, vertex_owners(data.bodies["neutral"]).numpy()]
    return Truth(body, visible, vertices)


def scan_around(data: EgoBody, index: int, centre: np.ndarray, size: float = 2.0) -> np.ndarray:
    """Points (N, 3) of the scan in an upright box of `size` metres around `centre` (3,), from the lowest one up; camera frame.

    The same for every method, whatever points it was given: collisions and contacts of different methods are compared by them.
    """
    to_camera = data.cameras.scene_to_camera(data.name(index))
    points = scan_of(data.folder, data.cameras.scene(data.name(index)))
    middle = transform(centre[None], np.linalg.inv(to_camera))[0]
    near = points[(np.abs(points - middle)[:, [0, 2]] <= size / 2).all(1)]
    if not len(near):
        raise EgoBodyError(f"picture {data.name(index)}: the scan has no point within {size / 2} m of the person; are they its cameras?")
    return transform(near[near[:, 1] <= near[:, 1].min() + size], to_camera)


def picture_size(data: EgoBody, index: int) -> tuple[int, int]:
    """(width, height), of the file's head alone."""
    with Image.open(data.folder / data.name(index)) as image:
        return image.size


def _in_frame(data: EgoBody, indices: Sequence[int], points: torch.Tensor) -> np.ndarray:
    found = []
    for index, row in zip(indices, points.numpy(), strict=True):
        camera = data.intrinsics(index)
        found.append(in_frame(row[None], camera[:1, 0], camera[None, :2, 2], picture_size(data, index))[0])
    return np.array(found)
