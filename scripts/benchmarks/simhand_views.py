"""SiMHand's augmented views per second on one core: one warp against the published steps (turn, cut, resize, jitter); goal ≥ 2 ×.

The published steps are timed with look-up tables for the colours, as ours are, and with the floating-point arithmetic of the original.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable, Mapping
from typing import Any

import cv2
import numpy as np

from pose_tools.simhand import compat
from pose_tools.simhand.views import make_view
from scripts.benchmarks.timing import interleave, report

View = Callable[..., tuple[np.ndarray, np.ndarray, np.ndarray, dict[str, Any]]]


def main(arguments: list[str]) -> None:
    """Prints the table."""
    parser = argparse.ArgumentParser(prog="bench.py simhand-views", description=__doc__)
    parser.add_argument("--count", type=int, default=300, help="views a round")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    cv2.setNumThreads(1)
    rng = np.random.default_rng(0)
    image = cv2.resize(rng.integers(0, 256, (28, 28, 3), dtype=np.uint8), (224, 224), interpolation=cv2.INTER_CUBIC)
    joints = rng.normal(112, 28, (options.count, 21, 2)).clip(5, 219).astype(np.float32)
    ways = {
        "one warp": lambda: _rate(make_view, image, joints),
        "published steps, colours by table": lambda: _rate(compat.make_view_in_steps, image, joints),
        "published steps": lambda: _with_float_colours(image, joints),
    }
    print(report(interleave(ways, options.rounds), f"views/s of CPU time, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores"))


def _rate(view: View, image: np.ndarray, joints: np.ndarray) -> float:
    start = time.process_time()
    for number, points in enumerate(joints):
        view(image, points, seed=number)
    return len(joints) / (time.process_time() - start)


def _with_float_colours(image: np.ndarray, joints: np.ndarray) -> float:
    table = compat.color_jitter
    compat.color_jitter = _float_colours
    try:
        return _rate(compat.make_view_in_steps, image, joints)
    finally:
        compat.color_jitter = table


def _float_colours(image: np.ndarray, parameters: Mapping[str, Any]) -> np.ndarray:
    hue, saturation, value = cv2.split(cv2.cvtColor(image, cv2.COLOR_BGR2HSV))
    planes = hue * parameters["h"], saturation * parameters["s"], value * parameters["a"] + parameters["b"]
    return cv2.cvtColor(cv2.merge([np.clip(plane, 0, 255) for plane in planes]).astype(np.uint8), cv2.COLOR_HSV2BGR)
