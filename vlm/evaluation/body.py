"""Bodies found in EgoBody's pictures: who is asked about, what is kept of an answer, and its scores picture by picture."""

from __future__ import annotations

import base64
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from tqdm import tqdm

from data.ego_body import EgoBody
from data.ego_body_scenes import true_bodies
from data.ego_body_truth import Seen, scan_around, truth_of
from pose_tools.body_models import Smpl
from pose_tools.egohmr.body import PosedBody, pose_body
from pose_tools.egohmr.collision import BodyField, collision_ratio
from pose_tools.egohmr.evaluate import Sums, contact_distance, joined, measures, touches
from vlm.evaluation import records

Protocol = Literal["strict", "compat"]
CHUNK = 16
"""Pictures scored at a time: their meshes are in memory together."""


@dataclass(frozen=True)
class Bodies:
    """S bodies of one picture: `pose` (S, 24, 3, 3) rotations, root first, `betas` (S, 10), `transl` (S, 3) metres, camera frame;
    `transl_std` (3,) metres where the model says how sure it is of the translation."""

    pose: np.ndarray
    betas: np.ndarray
    transl: np.ndarray
    transl_std: np.ndarray | None = None

    def first(self) -> Bodies:
        """The first of them alone."""
        return Bodies(self.pose[:1], self.betas[:1], self.transl[:1], self.transl_std)


@dataclass(frozen=True)
class Asked:
    """Some pictures of a split, by number."""

    data: EgoBody
    numbers: list[int]

    @property
    def ids(self) -> list[str]:
        return [f"{self.data.split}-{number:06d}" for number in self.numbers]

    @property
    def clusters(self) -> list[str]:
        return [self.data.cluster(number) for number in self.numbers]


Predictor = Callable[[Sequence[int]], Sequence[Bodies]]
"""Numbers of pictures → S bodies each."""


def ask(data: EgoBody, limit: int | None = None) -> Asked:
    """All pictures of a split; `limit` takes so many, spread over it."""
    count = len(data)
    return Asked(data, np.unique(np.linspace(0, count - 1, min(limit or count, count)).astype(int)).tolist())


def predict(asked: Asked, predictor: Callable[[], Predictor], path: Path, batch_size: int, title: str) -> list[Bodies]:
    """The predictions in `path` (jsonl), completed by the predictor, which is only made when some are missing. Call under
    `records.single_writer`."""
    made: list[Predictor] = []

    def answer(batch: Sequence[int]) -> list[dict[str, Any]]:
        if not made:
            made.append(predictor())
        return [_to_record(bodies) for bodies in made[0]([asked.numbers[place] for place in batch])]

    ids = asked.ids
    found = records.complete(path, list(range(len(ids))), answer, key=lambda i: ids[i], batch_size=batch_size, title=title)
    return [_from_record(record, path) for record in found.values()]


_SHAPES = {"pose": (-1, 24, 3, 3), "betas": (-1, 10), "transl": (-1, 3)}


def _to_record(bodies: Bodies) -> dict[str, Any]:
    """Arrays as base64 of little-endian float32: a third of their digits."""
    record: dict[str, Any] = {
        name: base64.b64encode(np.asarray(getattr(bodies, name), "<f4").tobytes()).decode() for name in _SHAPES
    }
    return record | {"transl_std": None if bodies.transl_std is None else np.asarray(bodies.transl_std, float).round(6).tolist()}


def _from_record(record: Mapping[str, Any], path: Path) -> Bodies:
    try:
        arrays = {name: np.frombuffer(base64.b64decode(record[name]), "<f4").reshape(shape) for name, shape in _SHAPES.items()}
        std = record["transl_std"]
        if len({len(array) for array in arrays.values()}) != 1:
            raise ValueError("its arrays have different numbers of samples")
        return Bodies(**arrays, transl_std=None if std is None else np.array(std, float).reshape(3))
    except (KeyError, TypeError, ValueError) as error:
        raise records.RecordsError(f"{path}: {record.get('id')} holds no bodies ({error}); delete the file and run again") from error


@dataclass(frozen=True)
class Scoring:
    """How bodies are scored.

    `protocol`: "strict", or "compat", the published definitions, collisions counted among the points that the network was given.
    `masked`: whether the published alignment sees visible joints only (stage 2's does). `smpl`: the body that predictions pose.
    `field`: what is inside a body. `seen`: what makes a joint visible. `points(number)` (N, 3): what the network was given.
    """

    smpl: Smpl
    field: BodyField
    protocol: Protocol = "strict"
    masked: bool | None = None
    seen: Seen = "labels"
    points: Callable[[int], np.ndarray] | None = None


def posed(smpl: Smpl, bodies: Sequence[Bodies]) -> PosedBody:
    """All bodies of some pictures one after the other, (n · S, …)."""
    pose, betas, transl = (torch.from_numpy(np.concatenate([getattr(b, name) for b in bodies])).float() for name in _SHAPES)
    with torch.no_grad():
        return pose_body(smpl, pose, betas, transl)


def score(
    asked: Asked, predicted: Sequence[Bodies], scoring: Scoring, title: str = "scoring", *, scene: bool = True
) -> dict[str, Sums]:
    """Every measure of `pose_tools.egohmr.evaluate.measures`, picture by picture; without `scene` no collisions and contacts."""
    parts = []
    with tqdm(total=len(asked.numbers), desc=title, disable=None) as bar:
        for start in range(0, len(asked.numbers), CHUNK):
            numbers, bodies = asked.numbers[start : start + CHUNK], predicted[start : start + CHUNK]
            parts.append(_score_some(asked.data, numbers, bodies, scoring, scene))
            bar.update(len(numbers))
    return joined(parts)


def _score_some(data: EgoBody, numbers: Sequence[int], bodies: Sequence[Bodies], scoring: Scoring, scene: bool) -> dict[str, Sums]:
    truth, body = truth_of(data, numbers, scoring.seen), posed(scoring.smpl, bodies)
    samples = len(bodies[0].pose)
    collision, contact = [], []
    for place, number in enumerate(numbers if scene else ()):
        rows = slice(place * samples, (place + 1) * samples)
        one = PosedBody(body.vertices[rows], body.joints[rows], body.pose[rows])
        inside, distance = in_scene(scoring, data, number, one, truth.body.joints[place, 0].double().numpy())
        collision.append(inside)
        contact.append(distance)
    pred = {name: getattr(body, name).unflatten(0, (-1, samples)) for name in ("joints", "vertices")}
    true = {"joints": truth.body.joints, "visible": truth.visible, "vertices": truth.body.vertices,
            "vertices_visible": truth.vertices_visible}  # fmt: skip
    around = {"collision": np.stack(collision), "contact": np.stack(contact)} if scene else {}
    return measures(pred, true, **around, compat=scoring.protocol == "compat", masked_alignment=scoring.masked)


def in_scene(scoring: Scoring, data: EgoBody, number: int, body: PosedBody, centre: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(S,) share of scene points inside each body, (S,) metres from its nearest vertex to one; strict: points of the scan around `centre`,
    the true pelvis (3,)."""
    given = scoring.points if scoring.protocol == "compat" else None
    points = scan_around(data, number, centre) if given is None else given(number)
    cloud = torch.from_numpy(np.asarray(points, np.float32)).expand(len(body.joints), -1, -1)
    with torch.no_grad():
        inside = collision_ratio(scoring.field, body, cloud)
    return inside.numpy().astype(float), contact_distance(body.vertices[None], points[None])[0]


def in_scene_of_truth(asked: Asked, scoring: Scoring) -> dict[str, Sums]:
    """Collision and contact of the annotated bodies themselves: what a perfect answer would score."""
    found = []
    for number in asked.numbers:
        body = true_bodies(asked.data, [number])
        inside, distance = in_scene(scoring, asked.data, number, body, body.joints[0, 0].double().numpy())
        found.append((inside[0], touches(distance[0], scoring.protocol == "compat")))
    collision, contact = np.array(found, float).T
    return {"collision": Sums(collision, np.ones(len(found))), "contact": Sums(contact, np.ones(len(found)))}
