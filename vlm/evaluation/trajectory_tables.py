"""Scored paths → numbers with intervals over videos → markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pose_tools.metrics import paired_difference, ratio_of_means, trajectory_errors
from vlm.compat import handsonvlm_reported
from vlm.evaluation.tables import Measure, markdown_table, share
from vlm.evaluation.trajectory import ClipQuestion
from vlm.evaluation.trajectory_scoring import PathErrors, PathReply, path_errors, unit_scale

SHIPPED = "as shipped"
SAME_STARTS = "as shipped, the same clips"
BETTER = "the better of last position and constant velocity"
MOVING = 0.05
"""From this share of its reach on, a hand counts as moving at the last observed frame."""


@dataclass(frozen=True)
class PathLine:
    """One line of the tables; errors in 256-px units, but `px` and `normalised` (ADE, FDE)."""

    condition: str
    questions: int
    clips: int
    invalid: Measure
    ade: Measure
    fde: Measure
    wde: Measure
    futures: int
    min_ade: Measure
    min_fde: Measure
    px: tuple[float, float]
    normalised: tuple[float, float]
    steps: list[Measure]
    left: Measure
    right: Measure
    asked: Measure
    other: Measure


@dataclass(frozen=True)
class Aim:
    """What was aimed at and what was reached."""

    name: str
    reached: Measure
    sign: str
    aim: float

    @property
    def met(self) -> bool | None:
        if self.reached.value is None:
            return None
        return self.reached.value >= self.aim if self.sign == "≥" else self.reached.value <= self.aim


class Scores:
    """The errors of every condition, and comparisons of conditions on the questions that both answered."""

    def __init__(
        self, questions: Sequence[ClipQuestion], replies: Mapping[str, Mapping[str, PathReply]], penalties: Mapping[str, np.ndarray]
    ) -> None:
        self.questions, self.replies, self.penalties = questions, dict(replies), penalties
        self.members = {name: [q for q in questions if q.id in answers] for name, answers in self.replies.items()}
        self.members = {name: asked for name, asked in self.members.items() if asked}
        self.errors = {name: self.score(name, asked) for name, asked in self.members.items()}

    def score(self, condition: str, members: Sequence[ClipQuestion]) -> PathErrors:
        return path_errors(members, self.replies[condition], self.penalties)

    @property
    def better(self) -> str | None:
        """Whichever of last position and constant velocity has the lower ADE."""
        known = [name for name in ("last position", "constant velocity") if name in self.errors]
        return min(known, key=lambda name: np.nanmean(self.errors[name].ade), default=None)

    def lines(self) -> list[PathLine]:
        """One line per condition; behind one that was asked about some of the clips, the model as shipped on the same clips."""
        lines = []
        for name, members in self.members.items():
            lines.append(summarise(name, members, self.errors[name]))
            if len(members) < len(self.questions) and SHIPPED in self.members:
                lines.append(summarise(SAME_STARTS, members, self.score(SHIPPED, members)))
        return lines

    def common(self, first: str, second: str) -> tuple[np.ndarray, np.ndarray, list[str]] | None:
        """ADE of both conditions on every hand that both answered about, and its cluster; None where there is none."""
        if first not in self.members or second not in self.members:
            return None
        members = [q for q in self.members[first] if q.id in self.replies[second]]
        if not members:
            return None
        a, b = (self.score(name, members).ade for name in (first, second))
        counted = np.isfinite(a)
        clusters = [q.cluster for q, hands in zip(members, counted) for hand in hands if hand]
        return (a[counted], b[counted], clusters) if clusters else None

    def ratio(self, above: str | None, below: str | None) -> Measure:
        """ADE of one condition over that of another on the same questions."""
        found = self.common(above, below) if above and below else None
        if found is None:
            return Measure(None)
        a, b, clusters = found
        ratio, low, high = ratio_of_means(a, b, clusters)
        return Measure(ratio) if np.isnan(low) else Measure(ratio, low, high)


def summarise(condition: str, questions: Sequence[ClipQuestion], errors: PathErrors) -> PathLine:
    """The numbers of one line; ADE and FDE with their intervals."""
    asked = np.array([[q.side in (None, side) for side in ("left", "right")] for q in questions])

    def of(values: np.ndarray, kept: np.ndarray | bool = True) -> Measure:
        return Measure(float(values[counted].mean())) if (counted := np.isfinite(values) & kept).any() else Measure(None)

    hand = np.arange(2) == np.array([[0], [1]])
    return PathLine(
        condition=condition,
        questions=len(questions),
        clips=len({question.start for question in questions}),
        invalid=of(errors.invalid.astype(float)),
        ade=_mean(errors.ade, questions),
        fde=_mean(errors.fde, questions),
        wde=of(errors.wde),
        futures=errors.futures,
        min_ade=of(errors.min_ade),
        min_fde=of(errors.min_fde),
        px=errors.other_units["px"],
        normalised=errors.other_units["normalised"],
        steps=[of(errors.per_step[..., step]) for step in range(errors.per_step.shape[-1])],
        left=of(errors.ade, hand[0]),
        right=of(errors.ade, hand[1]),
        asked=of(errors.ade, asked),
        other=of(errors.ade, ~asked),
    )


def _mean(values: np.ndarray, questions: Sequence[ClipQuestion]) -> Measure:
    """Mean over the hands that count of `values` (N, 2), with its interval over videos."""
    counted = np.isfinite(values)
    return share(values[counted].tolist(), [q.cluster for q, hands in zip(questions, counted) for hand in hands if hand])


def aims(scores: Scores) -> list[Aim]:
    """What was aimed at, for the model as shipped."""
    errors, members = scores.errors.get(SHIPPED), scores.members.get(SHIPPED, [])
    invalid = Measure(None) if errors is None else share(errors.invalid.tolist(), [q.cluster for q in members])
    return [
        Aim(f"ADE / {BETTER}", scores.ratio(SHIPPED, scores.better), "≤", 0.5),
        Aim("ADE / past only", scores.ratio(SHIPPED, "past only"), "≤", 0.8),
        Aim("shuffled goal / as shipped", scores.ratio("shuffled goal", SHIPPED), "≥", 1.3),
        Aim("hand tokens off / as shipped", scores.ratio("hand tokens off", SHIPPED), "≥", 1.15),
        Aim("invalid answers", invalid, "≤", 0.01),
        Aim("clips", Measure(float(len({q.start for q in members}))), "≥", 500),
    ]


def sections(scores: Scores, lines: Sequence[PathLine], *, compat: bool = False) -> list[str]:
    """The markdown of a report, a list of its parts."""
    parts = [_aims_table(aims(scores)), "Errors in 256-px units:", "", _main_table(lines), "By step and hand, ADE in 256-px units:", ""]
    parts += [_step_table(scores.questions[0], lines)]
    parts += ["Every row against the model as shipped, on the same questions:", "", _paired(scores)]
    groups = _group_table(scores)
    if groups:
        parts += ["ADE by what the hand was doing at the last observed frame, and whether it reaches at all:", "", groups]
    spread = _spread_line(scores)
    if spread:
        parts += [spread, ""]
    if compat:
        parts += ["As HandsOnVLM's evaluation prints it (normalised, names and means as published):", "", _published_table(scores)]
    return [*parts, NOTES]


NOTES = (
    "256-px units: pixels · 256 / width of the frame. A hand's ADE is its mean distance over its valid steps, FDE the distance at the "
    "last step where that is valid, WDE the mean weighted by the step; each is averaged over hands. One answer per question counts "
    "(greedy, the most likely path); `min@K` is the best of K futures. `invalid`: answers that are not one path of the asked number of "
    "steps; they are scored, hand by hand, as the worse of last position and constant velocity. `no image`: grey frames, with hand tokens. "
    "`shuffled goal`: asked in the words of another action of the same start, scored against its own truth. Baselines start from the data "
    "set's exact past places; where it tells the last observed moment alone, hands stay there. `past only`: a network of 3 × 256 on past "
    "places, trained on the training split; `past + goal point` is also told where the goal is, which no question says: a bound, no rival. "
    "Brackets: 95 % interval over videos."
)


def _aims_table(found: Sequence[Aim]) -> str:
    verdicts = {True: "met", False: "missed", None: "–"}
    rows = [[aim.name, _count(aim.reached), f"{aim.sign} {aim.aim:g}", verdicts[aim.met]] for aim in found]
    return markdown_table(["measure", SHIPPED, "aim", ""], rows)


def _count(measure: Measure) -> str:
    return f"{measure.value:.0f}" if measure.value is not None and measure.low is None and measure.value >= 2 else str(measure)


def _main_table(lines: Sequence[PathLine]) -> str:
    header = ["answered by", "n (clips)", "invalid", "ADE", "FDE", "WDE", "min@K ADE, FDE", "px: ADE, FDE", "normalised: ADE, FDE"]
    rows = []
    for x in lines:
        best = f"{_plain(x.min_ade)}, {_plain(x.min_fde)} (K = {x.futures})" if x.futures > 1 else "–"
        units = [f"{x.px[0]:.2f}, {x.px[1]:.2f}", f"{x.normalised[0]:.4f}, {x.normalised[1]:.4f}"]
        rows.append([x.condition, f"{x.questions} ({x.clips})", x.invalid, _two(x.ade), _two(x.fde), _plain(x.wde), best, *units])
    return markdown_table(header, rows)


def _step_table(question: ClipQuestion, lines: Sequence[PathLine]) -> str:
    last = question.past_times[-1]
    header = ["answered by", *(f"+{time - last:g} s" for time in question.future_times), "left", "right", "asked hand", "other hand"]
    rows = [[x.condition, *map(_plain, x.steps), *map(_plain, (x.left, x.right, x.asked, x.other))] for x in lines]
    return markdown_table(header, rows)


def _paired(scores: Scores) -> str:
    rows = []
    for name in scores.members:
        found = scores.common(name, SHIPPED) if name != SHIPPED else None
        if found is not None:
            rows.append([name, len(found[0]), scores.ratio(name, SHIPPED), difference_cell(*found)])
    return markdown_table(["answered by", "hands", "ADE / as shipped", "difference in ADE"], rows)


def difference_cell(a: np.ndarray, b: np.ndarray, clusters: Sequence[str]) -> str:
    """Mean of a − b with its interval and p-value."""
    if len(set(clusters)) < 2:
        return f"{np.mean(a - b):+.2f}"
    d = paired_difference(a, b, clusters)
    return f"{d.difference:+.2f} [{d.low:+.2f}, {d.high:+.2f}], p = {d.p_value:.2g}"


def _group(question: ClipQuestion) -> str | None:
    """What the hands were about to do, as far as the data set says."""
    action, phase = question.sample.targets.get("action"), question.sample.targets.get("phase")
    if action in ("pause", "turn"):
        return {"pause": "stays", "turn": "turns with the other"}[action]
    return None if phase is None else "not yet moving" if phase < MOVING else "moving"


def _group_table(scores: Scores) -> str | None:
    members: dict[str | None, list[ClipQuestion]] = {}
    for question in scores.questions:
        members.setdefault(_group(question), []).append(question)
    if None in members:
        return None
    groups = {str(name): members[name] for name in sorted(members, key=str)}
    rows = []
    for name, asked in scores.members.items():
        if len(asked) == len(scores.questions):
            rows.append([name, *(_two(_mean(scores.score(name, group).ade, group)) for group in groups.values())])
    return markdown_table(["answered by", *(f"{name} (n = {len(group)})" for name, group in groups.items())], rows)


def _spread_line(scores: Scores) -> str | None:
    """How often the truth lies within one and two of the spreads that the model gave."""
    inside: list[np.ndarray] = []
    for question in scores.members.get(SHIPPED, []):
        reply = scores.replies[SHIPPED][question.id]
        if reply.points is not None and reply.spread is not None:
            distance = np.linalg.norm(reply.points - question.future, axis=-1)
            inside.append((distance / np.maximum(reply.spread, 1e-9))[question.valid])
    ratios = np.concatenate(inside) if inside else np.zeros(0)
    if not len(ratios) or not np.isfinite(ratios).all():
        return None
    one, two = (float((ratios <= bound).mean()) for bound in (1, 2))
    return f"Spread: {one:.2f} of the true points lie within one, {two:.2f} within two of it (a right normal spread: 0.39 and 0.86)."


def published(scores: Scores) -> dict[str, dict[str, float]]:
    """What HandsOnVLM's evaluation prints of each answerer: normalised, names and means as published."""
    found: dict[str, dict[str, float]] = {}
    for name, members in scores.members.items():
        scale = np.stack([unit_scale(q.size, "normalised") for q in members])[:, None, None]
        truth = np.nan_to_num(np.stack([q.future for q in members]), nan=-1.0) * scale
        said = [scores.replies[name][q.id] for q in members]
        steps = truth.shape[2]
        points = np.stack([handsonvlm_reported(r.written if r.points is None else r.points, steps) for r in said]) * scale
        found[name] = trajectory_errors(points[:, None], truth, np.stack([q.labelled for q in members]), compat="handsonvlm")
    return found


def _published_table(scores: Scores) -> str:
    keys = ("ade", "ade_std", "fde", "fde_std", "wde", "wde_std")
    rows = [[name, *(f"{values[key]:.4f}" for key in keys)] for name, values in published(scores).items()]
    return markdown_table(["answered by", *(key.replace("_", " ") for key in keys)], rows)


def _two(measure: Measure) -> str:
    interval = "" if measure.low is None else f" [{measure.low:.2f}, {measure.high:.2f}]"
    return _plain(measure) + interval


def _plain(measure: Measure) -> str:
    return "–" if measure.value is None else f"{measure.value:.2f}"
