"""Bodies drawn for people: over the picture they were found in, and among the scanned points from the side. No display is needed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import cv2
import numpy as np
from scipy.spatial import cKDTree

from pose_tools.lettering import Colour
from pose_tools.raster import rasterise
from pose_tools.render import Canvas
from pose_tools.types import Box

BODY: Colour = (255, 193, 193)
OTHERS: tuple[Colour, ...] = ((180, 205, 255), (190, 235, 190), (250, 225, 165), (220, 200, 250))
BOX: Colour = (60, 210, 90)
AROUND = 1.6
"""Metres around a body within which the scene is drawn."""
_PAPER = 244


def in_picture(
    image: np.ndarray, vertices: np.ndarray, faces: np.ndarray, intrinsics: np.ndarray, *, box: Any = None, opacity: float = 0.8
) -> np.ndarray:
    """A body (V, 3), camera frame, over its picture (RGB uint8), with the person's `box` xyxy where one is given."""
    canvas = Canvas(image)
    canvas.mesh(vertices, faces, intrinsics, colour=BODY, opacity=opacity)
    if box is not None:
        canvas.boxes([Box(tuple(np.asarray(box, float).tolist()))], colours=[BOX])
    return canvas.array()


def in_scene(
    vertices: np.ndarray,
    faces: np.ndarray,
    points: np.ndarray,
    *,
    up: Any = (0.0, -1.0, 0.0),
    others: Sequence[np.ndarray] = (),
    size: tuple[int, int] = (640, 640),
    turn: float = 65.0,
    rise: float = 22.0,
) -> np.ndarray:
    """A body (V, 3) among the scene's points (N, 3), RGB uint8: seen from `turn` degrees beside the camera and `rise` above the horizon;
    `others` are more bodies, in other colours.

    Everything in the camera's frame, metres; `up` is its upward direction. Points are drawn as small patches of the surface that their
    neighbours lie on; those between the viewer and the body are left out.
    """
    middle = (vertices.min(0) + vertices.max(0)) / 2
    look = _viewer(middle, np.asarray(up, float), turn, rise)
    distance = 2.6 * max(1.0, float(np.linalg.norm(vertices - middle, axis=1).max()))
    body = (vertices - middle) @ look.T + [0, 0, distance]
    near = (points - middle)[np.linalg.norm(points - middle, axis=1) < AROUND]
    placed = near @ look.T + [0, 0, distance]
    height = near @ np.asarray(up, float)
    floor = (vertices @ np.asarray(up, float) - middle @ np.asarray(up, float)).min() + 0.35
    placed = placed[(placed[:, 2] > distance - 0.75) | (height < floor)]
    corners, quads, colours = _patches(placed, look @ np.asarray(up, float))
    focal = 1.15 * min(size)
    camera = np.array([[focal, 0, size[0] / 2], [0, focal, size[1] / 2], [0, 0, 1.0]])
    meshes = [body, *((other - middle) @ look.T + [0, 0, distance] for other in others), corners]
    painted = [np.tile(np.array(BODY if not k else OTHERS[k % len(OTHERS)]) / 255, (len(body), 1)) for k in range(len(meshes) - 1)]
    ends = np.cumsum([0, *(len(mesh) for mesh in meshes[:-1])])
    drawn = rasterise(
        np.concatenate(meshes), np.concatenate([*(faces + end for end in ends[:-1]), quads + ends[-1]]),
        np.diag([2.0, 2.0, 1.0]) @ camera, (2 * size[0], 2 * size[1]), colours=np.concatenate([*painted, colours]),
        light=(-0.4, -0.7, -0.6), ambient=0.5,
    )  # fmt: skip
    assert drawn.colour is not None
    picture = np.where(np.isfinite(drawn.depth)[..., None], 255 * drawn.colour, _PAPER)
    return cv2.resize(np.clip(picture, 0, 255).astype(np.uint8), size, interpolation=cv2.INTER_AREA)


def panels(pictures: Sequence[Sequence[np.ndarray]], height: int = 420) -> np.ndarray:
    """Rows of pictures of one height each, side by side, with thin white lines between; narrower rows are filled up in white."""
    rows = []
    for row in pictures:
        fitted = [cv2.resize(p, (round(p.shape[1] * height / p.shape[0]), height), interpolation=cv2.INTER_AREA) for p in row]
        gap = np.full((height, 4, 3), 255, np.uint8)
        rows.append(np.concatenate([part for picture in fitted for part in (picture, gap)][:-1], 1))
    width = max(row.shape[1] for row in rows)
    filled = [np.pad(row, ((0, 4), (0, width - row.shape[1]), (0, 0)), constant_values=255) for row in rows]
    return np.concatenate(filled)[:-4]


def _viewer(middle: np.ndarray, up: np.ndarray, turn: float, rise: float) -> np.ndarray:
    """The rotation (3, 3) from the camera's frame into that of a viewer who looks at `middle` from the side."""
    up = up / np.linalg.norm(up)
    ahead = middle - up * (middle @ up)
    ahead = ahead / max(float(np.linalg.norm(ahead)), 1e-9)
    side = np.cross(ahead, up)
    angle, height = np.radians(turn), np.radians(rise)
    level = np.cos(angle) * ahead + np.sin(angle) * side
    z = np.cos(height) * level - np.sin(height) * up
    x = np.cross(z, up)
    x = x / np.linalg.norm(x)
    return np.stack([x, np.cross(z, x), z])


def _patches(points: np.ndarray, up: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Points (N, 3) as squares in the plane of their neighbours: corners (4 N, 3), faces (2 N, 3), colours (4 N, 3) of 0–1."""
    if len(points) < 4:
        return np.zeros((0, 3)), np.zeros((0, 3), int), np.zeros((0, 3))
    tree = cKDTree(points)
    distance, rows = tree.query(points, k=min(10, len(points)))
    around = points[rows] - points[rows].mean(1, keepdims=True)
    _, axes = np.linalg.eigh(np.einsum("nki,nkj->nij", around, around))
    half = 0.62 * np.clip(distance[:, 1:5].mean(1), 0.004, 0.08)[:, None]
    first, second = axes[:, :, 1] * half, axes[:, :, 2] * half
    corners = np.stack([points - first - second, points + first - second, points + first + second, points - first + second], 1)
    base = 4 * np.arange(len(points))[:, None]
    faces = np.concatenate([base + [0, 1, 2], base + [0, 2, 3]], 0)
    facing = np.einsum("ni,ni->n", axes[:, :, 0], points) > 0
    faces[np.concatenate([facing, facing])] = faces[np.concatenate([facing, facing])][:, ::-1]
    level = points @ up
    share = (level - level.min()) / max(float(np.ptp(level)), 0.3)
    colours = np.array([0.62, 0.68, 0.74]) + share[:, None] * np.array([0.22, 0.16, 0.06])
    return corners.reshape(-1, 3), faces, np.repeat(colours, 4, 0)
