"""Labelled pictures per second of the synthetic world, with JPEG and mask written, by all workers and by one; goal ≥ 60.

The clock runs from the first picture to the last, so starting the workers is left out. One way draws with the rasteriser's plain
numpy kernel, as on a machine without numba. The last line is what other programs on the machine cannot slow down: CPU time.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from functools import partial
from pathlib import Path

from data.synthetic import draw, scenes
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
    settings = scenes.Settings("train", 0, options.size)
    cpu: list[float] = []
    ways = {
        f"{options.workers} workers": lambda: _rate(settings, options.count, options.workers),
        "1 worker": lambda: _rate(settings, options.count, 1, cpu),
        "1 worker, rasteriser without numba": lambda: _without_numba(settings, max(options.count // 10, 2)),
    }
    print(
        report(interleave(ways, options.rounds), f"pictures/s, {options.size} px, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
    )
    best = min(cpu)
    print(f"CPU time: {1000 * best:.1f} ms a picture at best, {options.workers / best:.0f} pictures/s on {options.workers} free cores")


def _rate(settings: scenes.Settings, count: int, workers: int, cpu: list[float] | None = None) -> float:
    """Pictures per second from the first record to the last; the CPU seconds of each are appended to `cpu`."""
    with tempfile.TemporaryDirectory() as folder:
        start, used = time.perf_counter(), time.process_time()
        for there in scenes.make_scenes(Path(folder) / "scenes", settings, count, workers):
            if there == 1:
                start, used = time.perf_counter(), time.process_time()
        if cpu is not None:
            cpu.append((time.process_time() - used) / (count - 1))
        return (count - 1) / (time.perf_counter() - start)


def _without_numba(settings: scenes.Settings, count: int) -> float:
    draw.rasterise = partial(rasterise, backend="numpy")
    try:
        return _rate(settings, count, 1)
    finally:
        draw.rasterise = rasterise
