"""Scores of bodies → a table with intervals over recordings, what is asked of every body model, and two runs side by side."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from data.ego_body import EgoBody
from pose_tools.egohmr.body import decode_pose, true_pose
from pose_tools.egohmr.evaluate import Sums
from pose_tools.egohmr.stage2 import pose_statistics
from pose_tools.files import atomic_path, write_text
from pose_tools.metrics import Ratio, ratio_of_means
from vlm.evaluation import records, tables
from vlm.evaluation.body import Asked, Bodies

Scores = Mapping[str, Sums]
UNITS = {"collision": "share of points", "contact": "share of bodies"}
MODE = "stage 1, its mode"
"""The row of stage 1's most likely bodies."""


def mean_pose(train: EgoBody, count: int) -> list[Bodies]:
    """The mean of the training labels' rotations (made orthonormal), shapes and translations, for every one of `count` pictures."""
    labels = {name: torch.from_numpy(np.asarray(train.rows[column], np.float32)) for name, column in
              {"global_orient": "global_orient_pv", "body_pose": "pose"}.items()}  # fmt: skip
    mean, _ = pose_statistics(true_pose(labels))
    pose = decode_pose(mean, "row")[None].numpy()
    return [Bodies(pose, train.rows["shape"].mean(0)[None], train.rows["transl_pv"].mean(0)[None])] * count


def measure(sums: Sums, clusters: Sequence[str], unit: float = 1.0) -> str:
    """`12.3 [11.9, 12.8]`, the interval over clusters; a dash where there was nothing to score."""
    digits = 4 if unit < 1 else 1
    value = sums.value
    if not np.isfinite(value):
        return "–"
    found = ratio_of_means(sums.total, sums.weight, clusters)
    bounds = "" if not np.isfinite(found.low) else f" [{found.low:.{digits}f}, {found.high:.{digits}f}]"
    return f"{value:.{digits}f}{bounds}"


def table(rows: Mapping[str, Scores], clusters: Sequence[str]) -> str:
    """Measures down, methods across; lengths in millimetres."""
    names = list(dict.fromkeys(name for scores in rows.values() for name in scores if not name.endswith("(best of 1)")))
    lines = []
    for name in names:
        cells = [measure(scores[name], clusters, 0.001 if name in UNITS else 1.0) if name in scores else "–" for scores in rows.values()]
        if any(cell != "–" for cell in cells):
            lines.append([f"{name}, {UNITS.get(name, 'mm')}", *cells])
    return tables.markdown_table(["measure", *rows], lines)


def facts(rows: Mapping[str, Scores], constant: Scores | None, clusters: Sequence[str]) -> tuple[dict[str, float], list[str]]:
    """What is asked of every body model: against the mean pose, hidden against visible joints, stage 2 against stage 1."""
    numbers: dict[str, float] = {}
    lines: list[str] = []

    def add(key: str, words: str, ratio: Ratio) -> None:
        numbers[key] = ratio.ratio
        lines.append(f"- {words}: {_times(ratio)}")

    for name, scores in rows.items():
        if constant is not None:
            add(f"{name}: visible/mean pose", f"{name}, MPJPE of visible joints over the mean pose's",
                _ratio(scores["MPJPE-vis"], constant["MPJPE-vis"], clusters))  # fmt: skip
        if np.isfinite(scores["APD-invis"].value):
            both = (scores["APD-invis"].weight > 0) & (scores["APD-vis"].weight > 0)
            kept = [c for c, b in zip(clusters, both, strict=True) if b]
            add(f"{name}: spread hidden/visible", f"{name}, mean distance between two samples' hidden joints over that of visible ones",
                ratio_of_means(scores["APD-invis"].total[both], scores["APD-vis"].total[both], kept))  # fmt: skip
    for other in ("stage 1", MODE):
        for name in rows.get("stage 2", {}) if other in rows else ():
            wanted = "-invis (best" in name or name in ("collision", "MPJPE-vis", "MPJPE-invis", "PA-MPJPE")
            if wanted and name in rows[other]:
                add(f"stage 2/{other}: {name}", f"stage 2 over {other}, {name}", _ratio(rows["stage 2"][name], rows[other][name], clusters))
    return numbers, lines


def sureness(asked: Asked, predicted: Sequence[Bodies]) -> list[str]:
    """How often the true translation is within one and two of the standard deviations that the model gave, per axis; [] without any."""
    deviations = [bodies.transl_std for bodies in predicted if bodies.transl_std is not None]
    if len(deviations) < len(predicted):
        return []
    std, true = np.stack(deviations), asked.data.rows["transl_pv"][asked.numbers]
    z, mean = np.abs(np.stack([bodies.transl[0] for bodies in predicted]) - true) / std, 1000 * std.mean(0)
    shares = ", ".join(f"{100 * (z < k).mean():.0f} % within {k} ({expected} % of a normal)" for k, expected in ((1, 68), (2, 95)))
    size = ", ".join(f"{value:.0f}" for value in mean)
    return [f"- translation's standard deviation: {size} mm in x, y, z in the mean; the truth is {shares}"]


def by_place(asked: Asked, rows: Mapping[str, Scores]) -> str:
    """MPJPE and collision by where the person is, where the data say so (the synthetic rooms do)."""
    if "place" not in asked.data.rows:
        return ""
    places = np.asarray(asked.data.rows["place"])[asked.numbers]
    names = ("MPJPE-vis", "MPJPE-invis", "collision")
    lines = []
    for place in sorted(set(places.tolist())):
        chosen = places == place
        cells = []
        for scores in rows.values():
            values = [Sums(scores[name].total[chosen], scores[name].weight[chosen]).value for name in names]
            cells += [f"{values[0]:.1f}", f"{values[1]:.1f}", f"{values[2]:.4f}"]
        lines.append([place, int(chosen.sum()), *cells])
    return tables.markdown_table(["place", "n", *(f"{row}: {name}" for row in rows for name in names)], lines)


def save(rows: Mapping[str, Scores], asked: Asked, out: Path) -> None:
    """scores.json with the values, and measures.npz picture by picture, which `compare` reads."""
    values = {row: {name: _number(sums.value) for name, sums in scores.items()} for row, scores in rows.items()}
    write_text(out / "scores.json", json.dumps({"pictures": len(asked.numbers), "rows": values}, indent=1) + "\n")
    arrays: Any = {f"{row}|{name}": np.stack(sums) for row, scores in rows.items() for name, sums in scores.items()}
    with atomic_path(out / "measures.npz") as path, path.open("wb") as file:
        np.savez_compressed(file, ids=np.array(asked.ids), clusters=np.array(asked.clusters), **arrays)


def compare(first: Path, second: Path) -> str:
    """The second run over the first, measure by measure, on the pictures of both: a table with intervals over recordings."""
    sides = [_read(folder) for folder in (first, second)]
    shared = [name for name in sides[0]["ids"].tolist() if name in set(sides[1]["ids"].tolist())]
    if not shared:
        raise records.RecordsError(f"{first} and {second} have no picture in common")
    places = [np.array([{name: i for i, name in enumerate(side["ids"].tolist())}[name] for name in shared]) for side in sides]
    clusters = sides[0]["clusters"][places[0]].tolist()
    rows = []
    for row in _last_rows(sides):
        for name in [key for key in sides[1] if key.startswith(f"{row[1]}|")]:
            measured = name.split("|", 1)[1]
            other = f"{row[0]}|{measured}"
            if other not in sides[0]:
                continue
            a, b = (Sums(*side[key][:, place]) for side, key, place in zip(sides, (other, name), places, strict=True))
            if a.weight.sum() and b.weight.sum():
                unit = 0.001 if measured in UNITS else 1.0
                rows.append([measured, measure(a, clusters, unit), measure(b, clusters, unit), _times(_ratio(b, a, clusters))])
    head = f"{len(shared)} pictures in {len(set(clusters))} recordings; 95 % intervals over recordings.\n\n"
    return head + tables.markdown_table(["measure", str(first), str(second), "second / first"], rows)


def _last_rows(sides: Sequence[Mapping[str, np.ndarray]]) -> list[tuple[str, str]]:
    """The row of each run that is compared: its last stage."""
    chosen = []
    for side in sides:
        rows = list(dict.fromkeys(key.split("|", 1)[0] for key in side if "|" in key))
        chosen.append([row for row in rows if row != "mean pose"][-1])
    return [(chosen[0], chosen[1])]


def _read(folder: Path) -> dict[str, np.ndarray]:
    path = folder / "measures.npz"
    if not path.is_file():
        raise records.RecordsError(f"{path} is missing: run `evaluate body --out {folder}` first")
    with np.load(path, allow_pickle=False) as file:
        return {name: file[name] for name in file}


def _ratio(above: Sums, below: Sums, clusters: Sequence[str]) -> Ratio:
    """Of two scores of the same pictures. Where both count the same points, their totals' ratio."""
    if np.array_equal(above.weight, below.weight):
        return ratio_of_means(above.total, below.total, clusters)
    mean = [Sums(s.total / max(s.weight.sum(), 1), s.weight) for s in (above, below)]
    return ratio_of_means(mean[0].total, mean[1].total, clusters)


def _times(ratio: Ratio) -> str:
    bounds = "" if not np.isfinite(ratio.low) else f" [{ratio.low:.3f}, {ratio.high:.3f}]"
    return f"{ratio.ratio:.3f}{bounds}"


def _number(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None

