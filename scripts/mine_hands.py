#!/usr/bin/env python
"""Finds every hand's most similar hands in other videos: INDEX → PAIRS.

    python scripts/mine_hands.py annotations.json --out mined.json                   the published annotation format, positives filled in
    python scripts/mine_hands.py pool.npz --out pairs.npz --k 5 --method ivf         arrays: keypoints (N, 21, 2), video_ids (N,) …
    python scripts/mine_hands.py annotations.json --out mined.json --sheet pairs.jpg --images FRAMES

An .npz index holds `keypoints` (left hands mirrored), `video_ids` and, if wanted, `image_ids` and `hand_ids`; its pairs are `indices`
(rows, −1 for none) and `distances`. A run that was stopped goes on where it stopped.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.hand_annotations import AnnotationError, HandAnnotations, read_hand_annotations, write_hand_annotations
from pose_tools.files import atomic_path
from pose_tools.image_io import ImageError, read_image, write_image
from pose_tools.simhand.contact_sheet import contact_sheet
from pose_tools.simhand.mining import prepare
from pose_tools.simhand.mining_run import MiningRunError, run_mining
from pose_tools.simhand.views import hand_crop


class IndexFileError(ValueError):
    """An index that mining cannot use."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="annotations .json, or arrays .npz")
    parser.add_argument("--out", type=Path, required=True, help=".json (from .json) or .npz")
    parser.add_argument("--k", type=int, default=1, help="neighbours per hand")
    parser.add_argument("--dims", type=int, default=14, help="principal directions of the 42 coordinates")
    parser.add_argument("--normalise", choices=("none", "wrist", "wrist_scale"), default="none")
    parser.add_argument("--exclude", choices=("none", "image", "video"), default="video", help="who may not be a neighbour")
    parser.add_argument("--method", choices=("exact", "ivf"), default="exact")
    parser.add_argument("--probes", type=int, default=64, help="ivf: lists that are looked into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--sheet", type=Path, help="a contact sheet of 50 pairs (needs --images)")
    parser.add_argument("--images", type=Path, help="folder of the frames that the annotations name")
    options = parser.parse_args(arguments)
    if options.out.suffix not in (".json", ".npz") or (options.out.suffix == ".json" and options.index.suffix != ".json"):
        parser.error(f"--out must be .npz, or .json for a .json index; got {options.out}")
    if options.sheet and not (options.images and options.index.suffix == ".json"):
        parser.error("--sheet needs a .json index and --images")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _mine(options)
    except (AnnotationError, IndexFileError, MiningRunError, ImageError, ValueError, OSError) as error:
        print(f"mine_hands: {error}", file=sys.stderr)
        return 1
    return 0


def _mine(options: argparse.Namespace) -> None:
    hands, pool = _read(options.index)
    settings = {name: getattr(options, name) for name in ("dims", "normalise", "exclude", "method", "probes", "seed")}
    miner = prepare(pool["keypoints"], pool["video_ids"], options.k, image_ids=pool.get("image_ids"), **settings)
    groups = len(np.unique(miner.groups))
    print(f"{miner.total} hands, {groups} groups; {options.dims} directions hold {miner.space.explained:.1%} of the variance")
    parts = options.out.with_name(options.out.name + ".parts")
    indices, distances = run_mining(miner, parts, settings)
    if hands is not None and options.out.suffix == ".json":
        write_hand_annotations(options.out, hands.with_positives(indices, distances))
    else:
        names = {"hand_ids": pool["hand_ids"]} if "hand_ids" in pool else {}
        with atomic_path(options.out) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, indices=indices, distances=distances, **names)
    shutil.rmtree(parts)
    none = int((indices[:, 0] < 0).sum())
    damaged = miner.total - len(miner.whole)
    print(f"{options.out}: {miner.total - none} hands with a neighbour, {none} without ({damaged} of them lack key points)")
    if options.method == "ivf":
        print(f"recall@1 on sampled anchors: {miner.recall(seed=options.seed):.4f}")
    if options.sheet and hands is not None:
        _sheet(options, hands, indices[:, 0])


def _read(path: Path) -> tuple[HandAnnotations | None, dict[str, Any]]:
    if path.suffix == ".json":
        hands = read_hand_annotations(path)
        pool = {"keypoints": hands.right_hand_keypoints(), "video_ids": hands.video_ids, "hand_ids": np.array(hands.hand_ids)}
        return hands, pool | {"image_ids": np.unique(hands.file_names, return_inverse=True)[1]}
    if path.suffix != ".npz":
        raise IndexFileError(f"{path}: expected .json or .npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pool = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a cut-off archive can raise nearly anything
        raise IndexFileError(f"{path}: cannot be read as .npz ({error}); is it whole?") from error
    if missing := {"keypoints", "video_ids"} - pool.keys():
        raise IndexFileError(f"{path}: lacks {', '.join(sorted(missing))}; it has {', '.join(pool) or 'nothing'}")
    if "hand_ids" in pool and len(np.unique(pool["hand_ids"])) != len(pool["keypoints"]):
        raise IndexFileError(f"{path}: hand_ids must be {len(pool['keypoints'])} different names")
    return None, pool


def _sheet(options: argparse.Namespace, hands: HandAnnotations, positives: np.ndarray) -> None:
    known = np.flatnonzero(positives >= 0)
    anchors = np.random.default_rng(options.seed).choice(known, min(50, len(known)), replace=False)

    def crop(row: int) -> np.ndarray:
        frame = read_image(options.images / hands.file_names[row])
        return hand_crop(frame, hands.boxes[row], side="left" if hands.left[row] else "right")[0]

    write_image(options.sheet, contact_sheet([(crop(row), crop(positives[row])) for row in anchors]))
    print(f"{options.sheet}: {len(anchors)} pairs")


if __name__ == "__main__":
    sys.exit(main())
