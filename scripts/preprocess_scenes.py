#!/usr/bin/env python
"""Cuts out the scanned room's points for every picture of an EgoBody folder, once, into the files that EgoHMR's stages read.

    python scripts/preprocess_scenes.py s1       --data EGOBODY --out cache/scenes_s1 --split train
    python scripts/preprocess_scenes.py s2-train --data EGOBODY --out cache/scenes_s2 --split train --smpl SMPL_FOLDER
    python scripts/preprocess_scenes.py s2-test  --data EGOBODY --out cache/scenes_s2 --split test --stage1-results results.pkl

s1: everything in front of the camera. s2-train: a 2 m cube around the true body (splits train and val), shifted at random. s2-test: the
same around the translation that stage 1 found (`evaluate.py body --save-transl` writes it). Scans of any number of points, pictures of any
size; a run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm  # noqa: E402

from data.ego_body_scenes import SPACING, preprocess_stage1, preprocess_stage2  # noqa: E402
from data.synthetic.journal import FolderError  # noqa: E402
from pose_tools.egohmr.scene import TARGET  # noqa: E402
from pose_tools.files import FolderBusyError  # noqa: E402
from pose_tools.interruption import status_of  # noqa: E402


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("s1", "s2-train", "s2-test"))
    parser.add_argument("--data", type=Path, required=True, help="EgoBody's root")
    parser.add_argument("--out", type=Path, required=True, help="where the points go")
    parser.add_argument("--split", choices=("train", "val", "test"), required=True)
    parser.add_argument("--points", type=int, default=TARGET, help="points a picture (default 20000, as published)")
    parser.add_argument("--spacing", type=int, default=SPACING, help="s1: pictures that share their points (default 15)")
    parser.add_argument("--size", type=float, default=2.0, help="s2: the cube's edge in metres")
    parser.add_argument("--seed", type=int, default=0, help="s2: of the cubes' turns and shifts")
    parser.add_argument("--smpl", type=Path, help="folder of SMPL files, for s2-train (default: the stand-in body)")
    parser.add_argument("--stage1-results", type=Path, help="s2-test: stage 1's results.pkl")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    for name, least in (("points", 1), ("spacing", 1), ("workers", 1), ("seed", 0)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least {least}")
    if (options.kind == "s2-test") != (options.stage1_results is not None):
        parser.error("--stage1-results goes with s2-test, and s2-test needs it: the cubes are laid around stage 1's translations")
    if options.kind == "s1":
        counts = preprocess_stage1(
            options.data, options.split, options.out, target=options.points, spacing=options.spacing, workers=options.workers
        )
    else:
        counts = preprocess_stage2(
            options.data, options.split, options.out, smpl=None if options.smpl is None else str(options.smpl),
            transl=options.stage1_results, target=options.points, size=options.size, seed=options.seed, workers=options.workers,
        )  # fmt: skip
    try:
        with tqdm(unit="cloud", desc=f"{options.kind} {options.split}") as bar:
            for there in counts:
                bar.update(there - bar.n)
    except (FolderError, FolderBusyError, OSError, ValueError) as error:
        print(f"preprocess_scenes: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(status_of(main))
