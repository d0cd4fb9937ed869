"""Pictures of scored bodies: the input with the person's box, the body over it, the body in the scan; samples one below the other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from tqdm import tqdm

from data.ego_body import EgoBody
from data.ego_body_scenes import true_bodies
from data.ego_body_truth import scan_around
from pose_tools.egohmr import pictures
from pose_tools.egohmr.export import export_bodies
from pose_tools.image_io import write_image
from pose_tools.render import Canvas
from pose_tools.sampling import evenly
from pose_tools.types import Box
from vlm.evaluation.body import Asked, Bodies, Scoring, posed

SPAN = 4.0
"""Edge of the box of the scan that is drawn, metres."""


def draw(
    asked: Asked,
    found: Mapping[str, Sequence[Bodies]],
    scoring: Scoring,
    out: Path,
    count: int,
    samples: bool = False,
    meshes: str | None = None,
) -> Path:
    """Draws `count` of the pictures, spread over what was asked, and returns their folder.

    OUT/render/STAGE_REC_FRAME.jpg, and with `meshes` ("ply" or "glb") OUT/meshes/STAGE_REC_FRAME.…. One row for the first sample, or one
    for each with `samples`.
    """
    places = evenly(len(asked.numbers), count).tolist()
    faces = scoring.smpl.faces.numpy()
    for place in tqdm(places, desc="drawing", disable=None):
        number = asked.numbers[place]
        pelvis = true_bodies(asked.data, [number]).joints[0, 0].double().numpy()
        scan = scan_around(asked.data, number, pelvis, SPAN)
        for stage, answers in found.items():
            vertices = posed(scoring.smpl, [answers[place]]).vertices.double().numpy()
            name = f"{stage.replace(' ', '')}_{_name(asked.data, number)}"
            write_image(out / "render" / f"{name}.jpg", _drawn(asked.data, number, vertices if samples else vertices[:1], faces, scan))
            if meshes:
                export_bodies(out / "meshes" / f"{name}.{meshes}", vertices if samples else vertices[:1], faces, scan)
    return out / "render"


def _drawn(data: EgoBody, number: int, bodies: np.ndarray, faces: np.ndarray, scan: np.ndarray) -> np.ndarray:
    image, box = data.picture(number), box_of(data, number)
    up = data.cameras.scene_to_camera(data.name(number))[:3, 1]  # the scan's y axis points up
    first = Canvas(image).boxes([Box(box)], colours=[pictures.BOX]).array()
    blank = np.full_like(first, 255)
    rows = []
    for place, vertices in enumerate(bodies):
        over = pictures.in_picture(image, vertices, faces, data.intrinsics(number))
        rows.append([first if not place else blank, over, pictures.in_scene(vertices, faces, scan, up=up)])
    return pictures.panels(rows)


def box_of(data: EgoBody, number: int) -> tuple[float, float, float, float]:
    """The person's square box, xyxy pixels."""
    x, y = data.rows["center"][number].tolist()
    half = 100 * float(data.rows["scale"][number])
    return x - half, y - half, x + half, y + half


def _name(data: EgoBody, number: int) -> str:
    """REC_FRAME of a picture."""
    return f"{data.cluster(number)}_{Path(data.name(number)).stem.split('_', 1)[-1]}"
