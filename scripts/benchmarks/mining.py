"""Mining of similar hands: seconds, peak memory, recall; goals 200,000 exact ≤ 180 s, 2 million by ivf ≤ 20 min and ≤ 8 GB.

The pool is that of `make_synthetic.py keypoints` (2,000 videos, whose hands are never each other's neighbours), on disk; memory is the
process's resident peak (Linux; 0 elsewhere), from the opening of the pool on.
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from data.synthetic.keypoints import VIDEOS, keypoint_pool
from pose_tools.simhand.faiss_search import PROBES
from pose_tools.simhand.mining import prepare
from pose_tools.simhand.mining_run import run_mining
from scripts.benchmarks.timing import peak_megabytes, restart_peak


def main(arguments: list[str]) -> None:
    """Prints one line a step."""
    parser = argparse.ArgumentParser(prog="bench.py mining", description=__doc__)
    parser.add_argument("--count", type=int, default=200_000)
    parser.add_argument("--videos", type=int, default=VIDEOS)
    parser.add_argument("--method", choices=("exact", "ivf"), default="exact")
    parser.add_argument("--k", type=int, default=1)
    parser.add_argument("--probes", type=int, default=PROBES)
    parser.add_argument("--chunks", type=int, help="stop after so many chunks (for looking at memory)")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keypoints, videos = keypoint_pool(options.count, videos=options.videos)
        np.save(folder / "keypoints.npy", keypoints)
        del keypoints
        restart_peak()
        began = time.perf_counter()
        pool = np.load(folder / "keypoints.npy", mmap_mode="r")
        miner = prepare(pool, videos, options.k, method=options.method, probes=options.probes, scratch=folder)
        place = f"{options.count} poses, {options.videos} videos, {options.method}, {torch.get_num_threads()} threads"
        print(f"{place}, load {os.getloadavg()[0]:.1f} on {os.cpu_count()} cores")
        _tell("ready", began)
        if options.chunks:
            miner.search.chunks = miner.search.chunks[: options.chunks]
        indices, _ = run_mining(miner, folder / "parts", {})
        _tell(f"{len(miner)} chunks mined, {(indices[:, 0] >= 0).sum()} hands with a neighbour", began)
        if options.method == "ivf":
            print(f"recall@1 of 2,000 anchors {miner.recall():.4f}")


def _tell(what: str, began: float) -> None:
    print(f"{time.perf_counter() - began:8.1f} s  peak {peak_megabytes() / 1024:5.2f} GB  {what}", flush=True)
