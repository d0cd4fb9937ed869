"""What benchmarks share: interleaved rounds, and a line with minimum, median and ratio."""

from __future__ import annotations

import statistics
from collections.abc import Callable


def interleave(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs each way once per round, in turn, so that whatever else the machine does hits all alike; each returns its own figure."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            figures[name].append(run())
    return figures


def report(figures: dict[str, list[float]], unit: str) -> str:
    """A table: every way's lowest, median and highest figure, and its median over that of the last way."""
    base = statistics.median(list(figures.values())[-1])
    lines = [f"{'':34}{'min':>9}{'median':>9}{'max':>9}{'ratio':>8}   {unit}"]
    for name, values in figures.items():
        middle = statistics.median(values)
        lines.append(f"{name:34}{min(values):9.1f}{middle:9.1f}{max(values):9.1f}{middle / base:8.2f}")
    return "\n".join(lines)
