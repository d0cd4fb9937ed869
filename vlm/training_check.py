"""What a run would do, before any step: its data sets, missing pictures, token budget, what is learnt (as text), what trains."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from data.groups import DatasetError
from vlm.packing import IGNORED
from vlm.parts import embedding_prefix, format_plan, plan
from vlm.training import choose_what_trains, make_start, planned_steps
from vlm.training_data import TrainingRows, show_row
from vlm.training_settings import FinetuneSettings

SAMPLE_ROWS = 200
SHOWN_ROWS = 3


def check(settings: FinetuneSettings, processes: int = 1) -> Iterator[str]:
    """Yields the report's paragraphs; writes nothing but the detection caches of data sets that use pose tokens.

    Raises what the run itself would raise, and DatasetError when pictures are missing.
    """
    yield _files(TrainingRows(settings.data, None, seed=settings.seed, length=0))
    model, processor = make_start(settings)
    rows = TrainingRows(settings.data, processor, seed=settings.seed, length=0)
    steps = planned_steps(settings, rows, processes)
    per_step = settings.batch_size * settings.accumulate * processes
    shape = f"{settings.batch_size} × {settings.accumulate} × {processes} processes"
    yield f"{steps:,} steps of {per_step} pictures ({shape}): {steps * per_step:,} pictures"
    packed, seconds = _sample(rows, steps * per_step)
    yield _budget(packed, seconds, steps * per_step)
    if settings.validation is not None:
        held_out = TrainingRows(settings.validation, processor, seed=settings.seed, length=settings.validation_rows)
        yield "validation:\n" + _files(held_out)
        held_out[0]
    shown = "\n".join(f"{name}\n{show_row(row, processor)}" for name, row in packed[:SHOWN_ROWS])
    yield f"what is learnt stands in 【】:\n{shown}"
    prefix = embedding_prefix(model)
    model = choose_what_trains(model, settings, processor, Path(settings.model or settings.output))
    yield format_plan(plan(model, settings.parts, prefix, settings.optimizer.lr, processor))


def _files(rows: TrainingRows) -> str:
    lines = [f"{'data set':<24}{'pictures':>10}{'share':>8}  path"]
    for name, groups in rows.groups.items():
        path = rows.datasets[name].path
        missing = [picture for picture in groups.pictures() if not Path(picture).is_file()]
        if missing:
            raise DatasetError(f"data set {name!r} ({path}): {len(missing)} of {len(groups)} pictures are missing, first {missing[0]}")
        lines.append(f"{name:<24}{len(groups):>10,}{rows.mixture.shares[name]:>8.1%}  {path}")
    return "\n".join(lines)


def _sample(rows: TrainingRows, total: int) -> tuple[list[tuple[str, dict[str, Any]]], float]:
    """Rows from all over the run, with the name of their data set and samples, and the seconds that making one takes."""
    positions = np.unique(np.linspace(0, total - 1, min(SAMPLE_ROWS, total)).astype(int))
    packed, start = [], time.perf_counter()
    for position in positions:
        samples, name, generator = rows.draw(int(position))
        packed.append((f"{name}: {', '.join(sample.id for sample in samples)}", rows.pack(samples, name, generator)))
    return packed, (time.perf_counter() - start) / len(positions)


def _budget(packed: list[tuple[str, dict[str, Any]]], seconds: float, total: int) -> str:
    lengths = np.array([len(row["input_ids"]) for _, row in packed])
    learnt = np.array([sum(label != IGNORED for label in row["labels"]) for _, row in packed])
    samples = np.array([max(row["branches"]) or 1 for _, row in packed])
    lines = [f"{f'{len(packed)} rows':<20}{'least':>8}{'median':>8}{'95 %':>8}{'most':>8}{'in the run':>16}"]
    for name, values in (("tokens", lengths), ("learnt tokens", learnt), ("samples", samples)):
        low, middle, high, top = np.percentile(values, [0, 50, 95, 100])
        lines.append(f"{name:<20}{low:>8.0f}{middle:>8.0f}{high:>8.0f}{top:>8.0f}{values.mean() * total:>16,.0f}")
    return "\n".join([*lines, f"one process makes {1 / seconds:.0f} rows a second"])
