"""Labelled pictures per second of the synthetic world, with JPEG and mask written, by all workers and by one; goal ≥ 60. And clips
(ten observed frames, labels written) per second, goal ≥ 15.

The clock runs from the first picture to the last, so starting the workers is left out. One way draws with the rasteriser's plain
numpy kernel, as on a machine without numba. The last lines are what other programs on the machine slow down least: CPU time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path

from data.synthetic import draw, scenes
from data.synthetic.epic_writer import ClipSettings, make_clips
from pose_tools.raster import rasterise
from scripts.benchmarks.timing import interleave, report


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="bench.py synthetic", description=__doc__)
    parser.add_argument("--count", type=int, default=240, help="pictures a round")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=192)
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    stills: Write = partial(_stills, scenes.Settings("train", 0, options.size))
    clips: Write = partial(_clips, ClipSettings("train", 0, options.size))
    cpu: dict[str, list[float]] = {"pictures": [], "clips": []}
    pictures = {
        f"{options.workers} workers": lambda: _rate(stills, options.count, options.workers),
        "1 worker": lambda: _rate(stills, options.count, 1, cpu["pictures"]),
        "1 worker, rasteriser without numba": lambda: _without_numba(stills, max(options.count // 10, 2)),
    }
    films = {
        f"{options.workers} workers": lambda: _rate(clips, max(options.count // 2, 2), options.workers),
        "1 worker": lambda: _rate(clips, max(options.count // 8, 2), 1, cpu["clips"]),
    }
    for unit, ways in (("pictures", pictures), ("clips", films)):
        figures = interleave(ways, options.rounds)
        print(report(figures, f"{unit}/s, {options.size} px, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"))
    for unit, seconds in cpu.items():
        best = min(seconds)
        free = f"{options.workers / best:.0f} {unit}/s on {options.workers} free cores"
        print(f"CPU time: {1000 * best:.1f} ms a {unit.removesuffix('s')} at best, {free}")


Write = Callable[[Path, int, int], Iterator[int]]
"""(folder, count, workers) → how many there are, after each."""


def _stills(settings: scenes.Settings, folder: Path, count: int, workers: int) -> Iterator[int]:
    return scenes.make_scenes(folder, settings, count, workers)


def _clips(settings: ClipSettings, folder: Path, count: int, workers: int) -> Iterator[int]:
    return make_clips(folder, settings, count, workers)


def _rate(write: Write, count: int, workers: int, cpu: list[float] | None = None) -> float:
    """Records per second from the first to the last; the CPU seconds of each are appended to `cpu`."""
    with tempfile.TemporaryDirectory() as folder:
        start, used = time.perf_counter(), time.process_time()
        for there in write(Path(folder) / "made", count, workers):
            if there == 1:
                start, used = time.perf_counter(), time.process_time()
        if cpu is not None:
            cpu.append((time.process_time() - used) / (count - 1))
        return (count - 1) / (time.perf_counter() - start)


def _without_numba(write: Write, count: int) -> float:
    draw.rasterise = partial(rasterise, backend="numpy")
    try:
        return _rate(write, count, 1)
    finally:
        draw.rasterise = rasterise
