"""Errors, diversity and scene plausibility of several bodies per picture: strict definitions, and the published ones by `compat`.

What differs in compat mode: PA-MPJPE aligns on visible joints with zeros in the others' place, APD is half the mean pairwise distance, and
contact compares a *squared* distance with 0.02.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from pose_tools.geometry import similarity

CONTACT = 0.02
"""Metres between the nearest vertex and scene point that count as contact."""

RESULTS = {"pred_betas_list": (10,), "pred_global_orient_list": (1, 3, 3), "pred_body_pose_list": (23, 3, 3)}


def in_frame(points: Any, focal: Any, principal: Any, image_size: tuple[float, float] = (1920.0, 1080.0)) -> np.ndarray:
    """(n, P) bool: do points (n, P, 3), camera frame, project into the picture? Neither depth's sign nor occlusion is looked at."""
    points, focal, principal = _array(points), _array(focal), _array(principal)
    with np.errstate(divide="ignore", invalid="ignore"):
        pixels = points[..., :2] / points[..., 2:] * focal[:, None, None] + principal[:, None]
    return ((pixels >= 0) & (pixels < np.asarray(image_size))).all(-1)


def contact_distance(vertices: Any, scene: Any) -> np.ndarray:
    """(n, S) metres from each body's nearest vertex, (n, S, V, 3), to the scene's points (n, N, 3)."""
    from scipy.spatial import cKDTree

    trees = [cKDTree(points) for points in _array(scene)]
    return np.array([[tree.query(body)[0].min() for body in bodies] for tree, bodies in zip(trees, _array(vertices), strict=True)])


def touches(distance: Any, published: bool = False) -> Any:
    """Is a body at this distance (metres) from the scene in contact with it? Published: the *squared* distance is below `CONTACT`."""
    return distance**2 < CONTACT if published else distance < CONTACT


class Sums(NamedTuple):
    """A score of n pictures: it is `total` (n,) over `weight` (n,), how much was scored, each summed over whichever pictures are meant."""

    total: np.ndarray
    weight: np.ndarray

    @property
    def value(self) -> float:
        """The score of all pictures; NaN where nothing was to be scored."""
        weight = self.weight.sum()
        return float(self.total.sum() / weight) if weight else float("nan")


def joined(parts: Sequence[Mapping[str, Sums]]) -> dict[str, Sums]:
    """The scores of several lots of pictures as those of all, in order."""
    return {name: Sums(*(np.concatenate([getattr(part[name], field) for part in parts]) for field in Sums._fields)) for name in parts[0]}


def metrics(
    pred: Mapping[str, Any], truth: Mapping[str, Any], *, collision: Any = None, contact: Any = None, compat: bool | str | None = None
) -> dict[str, float]:
    """All scores of n pictures with S bodies each; errors in millimetres. Arguments and names as in `measures`.

    A score without anything to score (no invisible joint, one sample's spread) is NaN.
    """
    return {
        name: sums.value for name, sums in measures(pred, truth, collision=collision, contact=contact, compat=compat).items()
    }


def measures(
    pred: Mapping[str, Any],
    truth: Mapping[str, Any],
    *,
    collision: Any = None,
    contact: Any = None,
    compat: bool | str | None = None,
    masked_alignment: bool | None = None,
) -> dict[str, Sums]:
    """All scores, picture by picture.

    Args:
        pred: "joints" (n, S, 24, 3) and, for V2V, "vertices" (n, S, V, 3): metres, camera frame, translation added.
        truth: "joints" (n, 24, 3), "visible" (n, 24) bool, and "vertices" (n, V, 3), "vertices_visible" (n, V) bool.
        collision: (n, S) share of scene points inside each body. contact: (n, S) metres, see `contact_distance`.
        masked_alignment: PA aligned on visible joints with zeros in the others' place; None: in compat mode (stage 2's published
            program does so, stage 1's does not).

    Returns G-MPJPE, MPJPE, PA-MPJPE, G-V2V, V2V, PA-V2V, each also "-vis" and "-invis" (over all visible or invisible points); translation
    (of the pelvis); std and APD over the samples, also "-vis", "-invis"; "MPJPE-invis (best of S)", by each picture's best sample in its
    invisible joints, and likewise "MPJPE (best of S)", "PA-MPJPE (best of S)", "V2V (best of S)"; collision, contact (shares).
    Raises ValueError for shapes that do not fit and for 0 samples.
    """
    joints, true_joints = _array(pred["joints"]), _array(truth["joints"])
    visible = np.asarray(_plain(truth["visible"])).astype(bool)
    if (
        joints.ndim != 4
        or not joints.shape[1]
        or true_joints.shape != (len(joints), *joints.shape[2:])
        or visible.shape != true_joints.shape[:2]
    ):
        raise ValueError(f"joints (n, S, 24, 3) with S ≥ 1, true joints (n, 24, 3) and visible (n, 24) are needed, got {joints.shape}, "
                         f"{true_joints.shape} and {visible.shape}")  # fmt: skip
    published = bool(compat)
    centred, true_centred = joints - joints[:, :, :1], true_joints - true_joints[:, :1]
    masked = visible if (published if masked_alignment is None else masked_alignment) else None
    placed, local = _errors(joints, true_joints), _errors(centred, true_centred)
    aligned = _errors(_aligned(centred, true_centred, masked), true_centred)
    found = _parts("G-MPJPE", placed, visible) | _parts("MPJPE", local, visible) | _parts("PA-MPJPE", aligned, visible)
    found["translation"] = _mean(placed[:, :, 0])
    samples = joints.shape[1]
    hidden = (local * ~visible[:, None]).sum(-1)
    found[f"MPJPE-invis (best of {samples})"] = Sums(hidden.min(1), (~visible).sum(1))
    best = {"MPJPE": local, "PA-MPJPE": aligned}
    if "vertices" in pred:
        vertices, true_vertices = _array(pred["vertices"]), _array(truth["vertices"])
        seen = np.asarray(_plain(truth["vertices_visible"])).astype(bool)
        found |= _parts("G-V2V", _errors(vertices, true_vertices), seen)
        vertices, true_vertices = vertices - joints[:, :, :1], true_vertices - true_joints[:, :1]
        best["V2V"] = _errors(vertices, true_vertices)
        found |= _parts("V2V", best["V2V"], seen)
        found |= _parts("PA-V2V", _errors(_aligned(vertices, true_vertices, None), true_vertices), seen)
    found |= {f"{name} (best of {samples})": _mean(errors.mean(-1).min(1, keepdims=True)) for name, errors in best.items()}
    found |= _diversity(centred, visible, published)
    if collision is not None:
        found["collision"] = _mean(_array(collision))
    if contact is not None:
        found["contact"] = _mean(touches(_array(contact), published).astype(float))
    return found


def read_results(path: str | Path) -> dict[str, np.ndarray]:
    """The arrays of a published `results….pkl` of either stage, read without running anything that the file may hold.

    Raises ValueError when it is neither stage's.
    """
    from pose_tools.body_models import read_body_pickle

    found = {name: np.asarray(value) for name, value in read_body_pickle(path).items()}
    if "pred_cam_full_list" in found and len(found) == 1:
        return found
    wrong = [name for name, shape in RESULTS.items() if name not in found or found[name].shape[2:] != shape]
    if wrong:
        raise ValueError(f"{path}: not a results file of EgoHMR: {', '.join(wrong)} missing or of another shape; it has {', '.join(found)}")
    return found


def _parts(name: str, errors: np.ndarray, visible: np.ndarray) -> dict[str, Sums]:
    """Errors (n, S, P) in millimetres: the mean over pictures and samples of each body's mean, and over all (in)visible points."""
    parts = {name: _mean(errors.mean(-1))}
    for suffix, mask in (("-vis", visible), ("-invis", ~visible)):
        parts[name + suffix] = Sums((errors * mask[:, None]).sum(-1).mean(1), mask.sum(1))
    return parts


def _mean(values: np.ndarray) -> Sums:
    """Of values (n, S), every picture alike."""
    return Sums(values.mean(1), np.ones(len(values)))


def _diversity(centred: np.ndarray, visible: np.ndarray, published: bool) -> dict[str, Sums]:
    """Spread of pelvis-aligned joints (n, S, 24, 3) over a picture's samples, in millimetres: standard deviation, and pairwise distance."""
    samples = centred.shape[1]
    if samples < 2:
        nothing = Sums(np.zeros(len(centred)), np.zeros(len(centred)))
        return {name + suffix: nothing for name in ("std", "APD") for suffix in ("", "-vis", "-invis")}
    deviation = 1000 * centred.std(1, ddof=1).mean(-1)  # (n, 24)
    pairs = sum(np.linalg.norm(centred[:, a] - centred[:, b], axis=-1) for a in range(samples) for b in range(a))
    distance = 1000 * np.asarray(pairs) / (samples * (samples - 1) / 2) * (0.5 if published else 1.0)
    found = {}
    for name, value in (("std", deviation), ("APD", distance)):
        for suffix, mask in (("", np.ones_like(visible)), ("-vis", visible), ("-invis", ~visible)):
            # a picture's mean over its joints of that kind; one without such a joint says nothing
            found[name + suffix] = Sums((value * mask).sum(1) / np.maximum(mask.sum(1), 1), mask.any(1).astype(float))
    return found


def _aligned(pred: np.ndarray, truth: np.ndarray, visible: np.ndarray | None) -> np.ndarray:
    """Every sample (n, S, J, 3) moved onto its truth (n, J, 3) by a similarity; with `visible`, one that sees zeros for hidden joints."""
    truth = np.broadcast_to(truth[:, None], pred.shape)
    seen = 1.0 if visible is None else visible[:, None, :, None].astype(float)
    return similarity(pred * seen, truth * seen).apply(pred)


def _errors(pred: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return 1000 * np.linalg.norm(pred - truth[:, None], axis=-1)


def _plain(value: Any) -> Any:
    return value.detach().cpu() if hasattr(value, "detach") else value


def _array(value: Any) -> np.ndarray:
    return np.asarray(_plain(value), dtype=np.float64)
