"""Which parts of the path head are worth having: heads trained on the same kept states, each with one part left out.

    python scripts/ablate_trajectory_head.py --data cache/clips/test --out runs/head_ablation

The language model answers every question of the folder once; its states behind the path tokens are kept
(`vlm.evaluation.path_states`). The clips should be none that it was trained on, whose goals it knows too well. Then heads alone are
trained, with equal steps and several seeds: each learns from some of the videos and is scored, strictly, on the others (`--folds`). What
is there is not done again. Ends with the table `table.md`: differences on the same hands, seeds averaged, 95 % intervals over videos.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from data.sample import SampleError
from data.tracks import cached_tracks
from pose_tools.files import atomic_path, write_text
from vlm.commands.console import DEFAULT_MODEL, CommandError, run
from vlm.commands.loading import load_model
from vlm.evaluation.path_states import PathStates, path_states
from vlm.evaluation.referral import drawn_order
from vlm.evaluation.tables import into_card, markdown_table
from vlm.evaluation.trajectory import ClipQuestion, read_clip_questions, select_clips
from vlm.evaluation.trajectory_baselines import penalties
from vlm.evaluation.trajectory_scoring import path_errors, unit_scale
from vlm.evaluation.trajectory_tables import difference_cell
from vlm.trajectory import HEADS, Head
from vlm.trajectory_observed import hand_inputs

FUTURES = 20
FULL: dict[str, Any] = {"anchor": True, "shared_latent": 8, "velocity_weight": 0.5, "direction_weight": 0.05}


@dataclass(frozen=True)
class Variant:
    """A head of HEADS, its options, how it is told the last seen place, whether it is told the past at all, and the variant that it is
    compared with."""

    title: str
    head: str = "path"
    options: dict[str, Any] = field(default_factory=lambda: dict(FULL))
    code: str = "fourier"
    past: bool = True
    against: str = "full"


VARIANTS = {
    "full": Variant("full"),
    "published_code": Variant("last place in the published code", code="handsonvlm"),
    "no_code": Variant("last place as coordinates alone", code="none"),
    "no_latent": Variant("no shared latent", options=FULL | {"shared_latent": 0}),
    "no_velocity": Variant("no velocity term", options=FULL | {"velocity_weight": 0.0}),
    "no_direction": Variant("no direction term", options=FULL | {"direction_weight": 0.0}),
    "no_anchor": Variant("no anchor", options=FULL | {"anchor": False}),
    "path_spread": Variant("one deviation for a path", options=FULL | {"spread_by": "path"}),
    "plain": Variant("Fourier code and deviations by step alone", options={}),
    "plain_published_code": Variant("these, last place in the published code", options={}, code="handsonvlm", against="plain"),
    "plain_no_code": Variant("these, last place as coordinates alone", options={}, code="none", against="plain"),
    "plain_path_spread": Variant("these, one deviation for a path", options={"spread_by": "path"}, against="plain"),
    "cvae": Variant("published CVAE, told the past", "cvae", {}, against="plain"),
    "mlp": Variant("published MLP, told the past", "mlp", {}, against="plain"),
    "cvae_blind": Variant("published CVAE, the state alone", "cvae", {}, past=False, against="plain"),
}
MEASURES = {"ade": "ADE", "fde": "FDE", "wde": "WDE", "best": f"best of {FUTURES}", "joint": "best for both hands", "nll": "NLL"}


def inputs(data: PathStates, variant: Variant) -> tuple[Tensor, Tensor | float]:
    """What the variant's head reads, (N, 2, T, width), and what is added to its points."""
    return hand_inputs(data.states, "left_right", data.observed if variant.past else None, variant.code)


def fit(variant: Variant, data: PathStates, seed: int, steps: int, batch_size: int = 64, lr: float = 2e-3) -> Head:
    """A head trained from the beginning on the answered questions of `data`."""
    torch.manual_seed(seed)
    read, origin = inputs(data, variant)
    target, rows = data.target - origin, data.answered.nonzero().flatten()
    head = HEADS[variant.head](read.shape[-1], **variant.options)
    optimizer = torch.optim.AdamW(head.parameters(), lr=lr, weight_decay=0.05)
    warm = max(1, steps // 10)
    schedule = torch.optim.lr_scheduler.LambdaLR(
        optimizer, lambda done: min(1.0, (done + 1) / warm) * 0.5 * (1 + math.cos(math.pi * done / steps))
    )
    for _ in range(steps):
        chosen = rows[torch.randint(len(rows), (batch_size,))]
        loss = head.loss(read[chosen], target[chosen], data.valid[chosen])["total"]
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(head.parameters(), 1.0)
        optimizer.step()
        schedule.step()
    return head.eval()


@torch.no_grad()
def score(variant: Variant, head: Head, data: PathStates, questions: Sequence[ClipQuestion]) -> dict[str, np.ndarray]:
    """Errors in 256-px units, (N, 2) by name, NaN where a hand does not count: `ade`, `fde`, `wde`, `best` of FUTURES futures; `nll` per
    coordinate in nats where the head tells deviations; `joint` (N,) the best future for both hands together; `inside` one deviation."""
    read, origin = inputs(data, variant)
    points = head.predict(read).float() + origin
    latent = getattr(head, "latent", 0)
    drawn: list[Tensor] = []
    if latent:
        steps = read.shape[2] if variant.head == "cvae" else 1
        noise = torch.randn(FUTURES, len(read), 2, steps, latent, generator=torch.Generator().manual_seed(0))
        noise[0] = 0
        drawn = [head.predict(read, one).float() + origin for one in noise]
    futures = torch.stack(drawn, 1) if drawn else None
    spread = head.spread(read) if hasattr(head, "spread") else None
    replies = {
        question.id: data.reply(n, points[n], None if futures is None else futures[n], None if spread is None else spread[n])
        for n, question in enumerate(questions)
    }
    errors = path_errors(questions, replies, penalties(questions))
    found = {"ade": errors.ade, "fde": errors.fde, "wde": errors.wde}
    if futures is not None:
        found |= {"best": errors.min_ade, "joint": _best_together(questions, replies)}
    if spread is not None:
        found |= _likelihood(questions, replies)
    return found


def _best_together(questions: Sequence[ClipQuestion], replies: dict) -> np.ndarray:
    """(N,) mean distance over all valid steps of both hands, of the future where it is least; NaN without an answer or a valid step."""
    found = np.full(len(questions), np.nan)
    for n, question in enumerate(questions):
        futures = replies[question.id].futures
        if futures is not None and question.valid.any():
            apart = np.linalg.norm(futures - question.future, axis=-1)[:, question.valid]
            found[n] = apart.mean(1).min() * 256 / question.size[0]
    return found


def _likelihood(questions: Sequence[ClipQuestion], replies: dict) -> dict[str, np.ndarray]:
    nll, inside = np.full((len(questions), 2), np.nan), np.full((len(questions), 2), np.nan)
    for n, question in enumerate(questions):
        reply = replies[question.id]
        for hand in np.flatnonzero(question.valid.any(1)) if reply.points is not None else ():
            steps = question.valid[hand]
            scale = unit_scale(question.size, "256 px")
            apart = ((reply.points - question.future)[hand][steps] * scale).astype(float)
            sigma = reply.spread[hand][steps] * scale[0]
            each = 0.5 * (apart / sigma[:, None]) ** 2 + np.log(sigma)[:, None] + 0.5 * math.log(2 * math.pi)
            nll[n, hand], inside[n, hand] = each.mean(), (np.linalg.norm(apart, axis=-1) < sigma).mean()
    return {"nll": nll, "inside": inside}


def folds(questions: Sequence[ClipQuestion], count: int) -> list[int]:
    """The part (0 … `count` - 1) that each question's video is in; parts have equally many videos, drawn by their names."""
    order = drawn_order({question.cluster for question in questions}, 0, key=str)
    part = {cluster: number % count for number, cluster in enumerate(order)}
    return [part[question.cluster] for question in questions]


def ablate(
    data: PathStates, questions: Sequence[ClipQuestion], out: Path, names: Sequence[str], seeds: int, steps: int, count: int
) -> None:
    """A file of errors per variant and seed: every question is judged by a head that learnt from the other parts' videos."""
    parts = np.array(folds(questions, count))
    wanted = [(seed, name) for seed in range(seeds) for name in names if not _file(out, name, seed, steps).is_file()]
    for seed, name in tqdm(wanted, desc="heads", mininterval=5):
        if _file(out, name, seed, steps).is_file():  # by now: of another process
            continue
        found: dict[str, np.ndarray] = {}
        for part in range(count):
            rows = np.flatnonzero(parts == part)
            head = fit(VARIANTS[name], data.of(np.flatnonzero(parts != part).tolist()), seed, steps)
            for key, values in score(VARIANTS[name], head, data.of(rows.tolist()), [questions[row] for row in rows]).items():
                found.setdefault(key, np.full((len(questions), *values.shape[1:]), np.nan))[rows] = values
        with atomic_path(_file(out, name, seed, steps)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **found)


def _file(out: Path, name: str, seed: int, steps: int) -> Path:
    return out / "heads" / f"{name}-{seed}-{steps}.npz"


def table(questions: Sequence[ClipQuestion], out: Path, names: Sequence[str], seeds: int, steps: int) -> str:
    """Markdown: every variant's means, and its differences to the one that it is compared with."""
    means = {name: _mean_errors(out, name, seeds, steps) for name in names}
    rows, differences = [], []
    for name, errors in means.items():
        cells = [f"{np.nanmean(errors[key]):.2f}" if key in errors else "–" for key in [*MEASURES, "inside"]]
        rows.append([VARIANTS[name].title, *cells])
        base = VARIANTS[name].against
        if name != base and base in means:
            cells = [_difference(errors[key], means[base][key], questions) if key in errors else "–" for key in MEASURES]
            differences.append([VARIANTS[name].title, VARIANTS[base].title, *cells])
    return "\n".join([
        markdown_table(["head", *MEASURES.values(), "inside"], rows),
        "Differences on the same hands (negative: the first head is better):", "",
        markdown_table(["head", "less", *MEASURES.values()], differences),
    ])  # fmt: skip


def _mean_errors(out: Path, name: str, seeds: int, steps: int) -> dict[str, np.ndarray]:
    found = [np.load(_file(out, name, seed, steps)) for seed in range(seeds)]
    return {key: np.mean([one[key] for one in found], 0) for key in found[0].files}


def _difference(a: np.ndarray, b: np.ndarray, questions: Sequence[ClipQuestion]) -> str:
    a, b = a.reshape(len(questions), -1), b.reshape(len(questions), -1)
    counted = np.isfinite(a) & np.isfinite(b)
    return difference_cell(a[counted], b[counted], [q.cluster for q, hands in zip(questions, counted) for hand in hands if hand])


def main(arguments: Sequence[str] | None = None) -> int:
    """Returns the exit status; CommandError for what cannot be done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="a folder of clips that the model was not trained on")
    parser.add_argument("--split", default="test", help="of the folder (default test)")
    parser.add_argument("--clips", type=int, help="at most so many clips")
    parser.add_argument("--model", type=Path, default=DEFAULT_MODEL, help="whose states (default: the shipped small model)")
    parser.add_argument("--out", type=Path, required=True, help="states, errors and the table; the same folder goes on where it stopped")
    parser.add_argument("--folds", type=int, default=2, help="parts of the videos; a head learns from all but the one it is judged on")
    parser.add_argument("--heads", nargs="+", default=list(VARIANTS), choices=list(VARIANTS), help="some of them alone")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=200, help="of each head's training (default 200)")
    parser.add_argument("--card", type=Path, help="a document: the table goes between its markers <!-- evaluate:path-head -->")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)  # products this small lose more by waiting for a second thread than it brings
    try:
        questions = select_clips(read_clip_questions(options.data, split=options.split), options.clips)
        tracks = cached_tracks(options.data, [(q.start, [Path(frame) for frame in q.frames]) for q in questions])
        kept = options.out / f"states_{options.split}_{options.clips or 'all'}"
        data = path_states(*load_model(options.model), questions, lambda question: tracks[question.start], kept)
    except (SampleError, ValueError) as error:
        raise CommandError(str(error)) from error
    ablate(data, questions, options.out, options.heads, options.seeds, options.steps, options.folds)
    about = (
        f"{len(questions)} answers about `{options.data}` ({int((~data.answered).sum())} without a path), videos in {options.folds} parts; "
        f"{options.seeds} seeds, {options.steps} steps of 64 paths."
    )
    text = about + "\n\n" + table(questions, options.out, options.heads, options.seeds, options.steps)
    write_text(options.out / "table.md", text + "\n")
    print(text)
    if options.card:
        into_card(options.card, "path-head", text)
    return 0


if __name__ == "__main__":
    sys.exit(run(main))
