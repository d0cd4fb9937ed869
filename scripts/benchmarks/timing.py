"""What benchmarks share: interleaved rounds, a line with minimum, median and ratio, and this process's peak of memory."""

from __future__ import annotations

import ctypes
import gc
import os
import statistics
from collections.abc import Callable
from pathlib import Path


def interleave(ways: dict[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Runs each way once per round, in turn, so that whatever else the machine does hits all alike; each returns its own figure."""
    figures: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, run in ways.items():
            figures[name].append(run())
    return figures


def report(figures: dict[str, list[float]], unit: str) -> str:
    """A table: every way's lowest, median and highest figure, and its median over that of the last way (nan where that is 0)."""
    base = statistics.median(list(figures.values())[-1])
    lines = [f"{'':34}{'min':>9}{'median':>9}{'max':>9}{'ratio':>8}   {unit}"]
    for name, values in figures.items():
        middle = statistics.median(values)
        lines.append(f"{name:34}{min(values):9.1f}{middle:9.1f}{max(values):9.1f}{middle / base if base else float('nan'):8.2f}")
    return "\n".join(lines)


def restart_peak() -> float:
    """Lets the resident peak start anew; returns the megabytes that are resident now. 0 where there is no /proc (not Linux)."""
    reset = Path("/proc/self/clear_refs")
    if not os.access(reset, os.W_OK):
        return 0.0
    gc.collect()
    if (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)  # what earlier runs freed would else be taken again without a growth
    reset.write_text("5")
    return _status("VmRSS")


def peak_megabytes() -> float:
    """The resident peak since `restart_peak`, megabytes; 0 where there is no /proc."""
    return _status("VmHWM") if os.access("/proc/self/clear_refs", os.W_OK) else 0.0


def peak_growth(run: Callable[[], object]) -> float:
    """Megabytes by which the resident peak of a run lies above what was resident before; 0 where there is no /proc."""
    before = restart_peak()
    run()
    return max(0.0, peak_megabytes() - before)


def _status(name: str) -> float:
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024
