"""Hand poses of a predictor on a labelled set: predictions kept on disk, scored beside the constant hands, as a table and as pictures."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from data.hand_samples import HandSet
from pose_tools.files import write_text
from pose_tools.geometry import project
from pose_tools.image_io import write_image
from pose_tools.mano import evaluate
from pose_tools.mano.evaluate import DISTANCES, MEASURES, MISSED_MM, PredictedHand
from pose_tools.mano.submission import Server, to_server
from pose_tools.metrics import clustered_interval, ratio_of_means
from pose_tools.render import Canvas, contact_sheet
from pose_tools.sampling import evenly
from pose_tools.simhand.evaluate import root_scale_aligned
from pose_tools.types import HandSample
from pose_tools.views import crop
from vlm.evaluation import records, tables

Predictor = Callable[[Sequence[HandSample]], Sequence[PredictedHand | None]]
"""Samples with their pictures → a hand each, None where it was missed."""
DOUBTFUL = 0.2
PAPER = {"mean": "root- and scale-aligned MPJPE (SiMHand's own), mm", "auc_20_50": "AUC 20–50 mm, root- and scale-aligned (SiMHand's own)"}
"""The SiMHand paper's metrics, which are not PA-MPJPE: missed hands count in the AUC alone (see `pose_tools.simhand.evaluate`)."""


@dataclass(frozen=True)
class Asked:
    """What is asked: samples of a set by number, their labels without pictures, ids and clusters."""

    hands: HandSet
    numbers: list[int]
    labels: list[HandSample]

    @property
    def ids(self) -> list[str]:
        return [f"{self.hands.kind}-{number:07d}" for number in self.numbers]

    @property
    def clusters(self) -> list[str]:
        return [self.hands.cluster(number) for number in self.numbers]

    @property
    def labelled(self) -> list[int]:
        """Places of the hands whose truth is known."""
        return [i for i, label in enumerate(self.labels) if label.joints_3d is not None and np.any(label.joints_valid)]


def ask(hands: HandSet, limit: int | None = None) -> Asked:
    """The samples with a truth, or all where none has one; `limit` takes so many, spread over the set."""
    spread = np.arange(len(hands)) if limit is None else evenly(len(hands), limit)
    everything = Asked(hands, spread.tolist(), [hands.label(int(i)) for i in spread])
    kept = everything.labelled or range(len(spread))
    return Asked(hands, [everything.numbers[i] for i in kept], [everything.labels[i] for i in kept])


def predict(asked: Asked, predictor: Callable[[], Predictor], path: Path, batch_size: int) -> list[PredictedHand | None]:
    """The predictions in `path` (jsonl), completed by the predictor, which is only made when some are missing. Call under
    `records.single_writer`."""
    made: list[Predictor] = []

    def answer(batch: Sequence[int]) -> list[dict[str, Any]]:
        if not made:
            made.append(predictor())
        return [_to_record(hand) for hand in made[0]([asked.hands[asked.numbers[i]] for i in batch])]

    ids = asked.ids
    found = records.complete(path, list(range(len(ids))), answer, key=lambda i: ids[i], batch_size=batch_size, title="hand poses")
    return [_from_record(record, path) for record in found.values()]


def _to_record(hand: PredictedHand | None) -> dict[str, Any]:
    """Vertices as base64 of little-endian float32 (778, 3): a fifth of their digits."""
    if hand is None:
        return {"joints": None}
    vertices = None if hand.vertices is None else base64.b64encode(np.asarray(hand.vertices, "<f4").tobytes()).decode()
    return {"joints": np.asarray(hand.joints_3d, float).round(7).tolist(), "vertices": vertices, "confidence": hand.confidence}


def _from_record(record: Mapping[str, Any], path: Path) -> PredictedHand | None:
    if record.get("joints") is None:
        return None
    try:
        vertices = record["vertices"]
        if vertices is not None:
            vertices = np.frombuffer(base64.b64decode(vertices), "<f4").reshape(778, 3).astype(float)
        return PredictedHand(np.array(record["joints"], float).reshape(21, 3), vertices, record["confidence"])
    except (KeyError, TypeError, ValueError) as error:
        raise records.RecordsError(f"{path}: {record.get('id')} is no predicted hand ({error}); delete the file and run again") from error


def report(asked: Asked, predicted: Sequence[PredictedHand | None], constants: Mapping[str, Predictor], about: str, out: Path) -> str:
    """Scores the labelled hands; writes table.md, scores.json and per_hand.csv in `out` and returns the table's text."""
    places = asked.labelled
    truth = [asked.labels[i] for i in places]
    clusters = [asked.clusters[i] for i in places]
    ours = [predicted[i] for i in places]
    rows = {"model": ours} | {f"constant {name}": list(make(truth)) for name, make in constants.items()}
    errors = {name: evaluate.hand_errors(hands, truth) for name, hands in rows.items()}
    cells = {name: {key: _measure(values, clusters, key in DISTANCES) for key, values in found.items()} for name, found in errors.items()}
    found = [hand is not None for hand in ours]
    table = [[title, *(cells[name][key] for name in rows)] for key, title in MEASURES.items()]
    table.append(["hands found", f"{np.mean(found):.3f}", *["1.000"] * len(constants)])
    paper = {name: _paper(hands, truth) for name, hands in rows.items()}
    table += [[title, *(_number(paper[name], key) for name in rows)] for key, title in PAPER.items()]
    facts = _facts(ours, truth, errors, clusters)
    scores: dict[str, Any] = {"hands": len(truth), "clusters": len(set(clusters)), "found": float(np.mean(found)), **facts.numbers}
    scores["rows"] = {name: {key: _mean(values) for key, values in errors[name].items()} for name in rows}
    scores["simhand_paper"] = paper
    missed = f"A missed hand costs {MISSED_MM:.0f} mm, and 0 in scores. " if not all(found) else ""
    parts = [
        about,
        f"{len(truth)} hands in {len(set(clusters))} clusters; 95 % intervals over clusters; alignment never reflects. {missed}"
        "The constants look at no picture: the mean of the training labels after alignment, and the mean of their joints.",
        tables.markdown_table(["measure", *rows], table),
        "\n".join(facts.lines),
    ]
    official = _official(asked, ours, truth)
    if official is not None:
        scores["official"] = official
        numbers = [[key, f"{value:.4f}"] for key, value in official.items()]
        parts.append(f"What {asked.hands.kind}'s own program prints (centimetres; its alignment may reflect):\n")
        parts.append(tables.markdown_table(["official", "value"], numbers))
    write_text(out / "scores.json", json.dumps(scores, indent=1, allow_nan=True) + "\n")
    write_text(out / "per_hand.csv", _csv([asked.ids[i] for i in places], errors["model"], ours))
    text = "\n\n".join(part.strip() for part in parts if part) + "\n"
    write_text(out / "table.md", text)
    return text


def _paper(hands: Sequence[PredictedHand | None], truth: Sequence[HandSample]) -> dict[str, float] | None:
    """The SiMHand paper's own metric over the hands whose wrist and middle base are known; None without one."""
    pairs = [(hand, label, np.ones(21, bool) if label.joints_valid is None else np.asarray(label.joints_valid, bool))
             for hand, label in zip(hands, truth, strict=True)]  # fmt: skip
    pairs = [(hand, label, valid) for hand, label, valid in pairs if valid[0] and valid[9]]
    if not pairs:
        return None
    missing = np.full((21, 3), np.nan)
    pred = np.stack([missing if hand is None else np.asarray(hand.joints_3d, float) for hand, _, _ in pairs])
    found = root_scale_aligned(pred, np.stack([np.asarray(label.joints_3d, float) for _, label, _ in pairs]),
                               valid=np.stack([valid for _, _, valid in pairs]))  # fmt: skip
    return {"mean": found["mean"], "median": found["median"], "auc_20_50": found["auc_20_50"]}


def _number(paper: Mapping[str, float] | None, key: str) -> str:
    if paper is None or not np.isfinite(paper[key]):
        return "–"
    return f"{paper[key]:.{3 if key.startswith('auc') else 2}f}"


@dataclass(frozen=True)
class _Facts:
    numbers: dict[str, float]
    lines: list[str]


def _facts(
    ours: Sequence[PredictedHand | None],
    truth: Sequence[HandSample],
    errors: Mapping[str, Mapping[str, np.ndarray]],
    clusters: Sequence[str],
) -> _Facts:
    """What is asked of every hand regressor: ratios to the constants, spread, whether its doubts are justified."""
    numbers: dict[str, float] = {}
    lines = []
    others = [name for name in errors if name != "model"]
    for key in ("pa_mpjpe", "mpjpe") if others else ():
        kept = np.isfinite(errors["model"][key])
        if not kept.any():
            continue
        best = min(others, key=lambda name: errors[name][key][kept].mean())
        ratio = ratio_of_means(errors["model"][key][kept], errors[best][key][kept], [c for c, k in zip(clusters, kept) if k])
        numbers[f"{key}_ratio"] = ratio.ratio
        times = f"{ratio.ratio:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
        lines.append(f"- {MEASURES[key].removesuffix(', mm')}: {times} times that of the {best}")
    spread = evaluate.spread_ratios(ours, truth)
    if np.isfinite(spread).all():
        numbers |= {"spread_min": float(spread.min()), "spread_mean": float(spread.mean())}
        lines.append(f"- standard deviation of each joint over its labels': {spread.mean():.2f} in the mean, {spread.min():.2f} at least")
    confidence = np.array([np.nan if hand is None or hand.confidence is None else hand.confidence for hand in ours])
    said = np.isfinite(confidence) & np.isfinite(errors["model"]["mpjpe"])
    for key in ("mpjpe", "pa_mpjpe") if said.sum() >= 5 else ():
        values = errors["model"][key][said]
        times, most = (evaluate.doubtful_ratio(values, order, DOUBTFUL) for order in (confidence[said], -values))
        numbers |= {f"doubtful_{key}": times, f"doubtful_{key}_most": most}
        name = MEASURES[key].removesuffix(", mm")
        lines.append(
            f"- {name} of the {DOUBTFUL:.0%} least confident: {times:.2f} times that of the rest ({most:.2f} if they were the worst ones)"
        )
    return _Facts(numbers, lines)


def _measure(values: np.ndarray, clusters: Sequence[str], distance: bool) -> str:
    kept = np.isfinite(values)
    if not kept.any():
        return "–"
    digits = 2 if distance else 3
    mean = f"{values[kept].mean():.{digits}f}"
    chosen = [cluster for cluster, k in zip(clusters, kept) if k]
    if len(set(chosen)) < 2:
        return mean
    low, high = clustered_interval(values[kept], chosen)
    return f"{mean} [{low:.{digits}f}, {high:.{digits}f}]"


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _official(asked: Asked, ours: Sequence[PredictedHand | None], truth: Sequence[HandSample]) -> dict[str, float] | None:
    """The official program's numbers, where it has one and every hand has been answered with a mesh."""
    program = {"freihand": evaluate.freihand, "ho3d": evaluate.ho3d}.get(asked.hands.kind)
    answers = [(hand.joints_3d, hand.vertices) for hand in ours if hand is not None and hand.vertices is not None]
    truths = [(label.joints_3d, label.vertices) for label in truth if label.joints_3d is not None and label.vertices is not None]
    if program is None or not len(answers) == len(truths) == len(truth):
        return None
    server: Server = "ho3d" if asked.hands.kind == "ho3d" else "freihand"
    pred, gt = (to_server(np.stack([j for j, _ in pairs]), np.stack([v for _, v in pairs]), server) for pairs in (answers, truths))
    return program(*pred, *gt)


def _csv(ids: Sequence[str], errors: Mapping[str, np.ndarray], ours: Sequence[PredictedHand | None]) -> str:
    lines = [",".join(["id", *errors, "confidence"])]
    for i, name in enumerate(ids):
        hand = ours[i]
        confidence = "" if hand is None or hand.confidence is None else f"{hand.confidence:.5f}"
        lines.append(",".join([name, *(f"{values[i]:.4f}" for values in errors.values()), confidence]))
    return "\n".join(lines) + "\n"


def write_sheet(asked: Asked, predicted: Sequence[PredictedHand | None], path: Path, each: int = 6) -> None:
    """The best, middling and worst hands by PA-MPJPE, a row each: what was predicted in colours, the truth thin and white."""
    places = [i for i in asked.labelled if predicted[i] is not None and asked.labels[i].intrinsics is not None]
    errors = evaluate.hand_errors([predicted[i] for i in places], [asked.labels[i] for i in places])
    order = [k for k in np.argsort(errors["pa_mpjpe"]) if np.isfinite(errors["pa_mpjpe"][k])]
    each = min(each, max(1, len(order) // 3))
    middle = max(0, len(order) // 2 - each // 2)
    rows = {"best": order[:each], "middle": order[middle : middle + each], "worst": order[-each:]}
    pictures, captions = [], []
    for name, chosen in rows.items():
        for k in chosen:
            sample, hand = asked.hands[asked.numbers[places[k]]], predicted[places[k]]
            assert hand is not None
            pictures.append(_drawn(sample, hand))
            doubt = "" if hand.confidence is None else f", confidence {hand.confidence:.2f}"
            captions.append(f"{name}: {errors['pa_mpjpe'][k]:.1f} mm aligned,\n{errors['mpjpe'][k]:.1f} mm from the wrist{doubt}")
    if pictures:
        title = f"{asked.hands.kind}: predicted in colours, truth in white"
        write_image(path, contact_sheet(pictures, captions, columns=each, cell=280, title=title))


def _drawn(sample: HandSample, hand: PredictedHand) -> np.ndarray:
    """The hand's surroundings with both skeletons, square."""
    assert sample.intrinsics is not None and sample.joints_3d is not None
    truth = project(np.asarray(sample.joints_3d, float), sample.intrinsics)
    # The prediction is put where the true wrist is: a wrong depth would only hide how the fingers lie.
    placed = hand.joints_3d - hand.joints_3d[0] + sample.joints_3d[0]
    points = project(placed, sample.intrinsics)
    low, high = sample.bbox_xyxy[:2], sample.bbox_xyxy[2:]
    half = 0.75 * float((high - low).max())
    middle = (low + high) / 2
    view = crop([*(middle - half), *(middle + half)], 420)
    canvas = Canvas(view.warp(sample.image, fill=40), least=420)
    canvas.skeleton(view.to_grid(points), side=sample.side)
    return canvas.skeleton(view.to_grid(truth), valid=sample.joints_valid, colour=(255, 255, 255)).array()
