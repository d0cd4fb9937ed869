#!/usr/bin/env python
"""Finds every hand's most similar hands in other videos: INDEX → PAIRS.

    python scripts/mine_hands.py SHARDS --out pairs.npz --sheet pairs.jpg            a folder of scripts/extract_hands.py
    python scripts/mine_hands.py annotations.json --out mined.json                   the published annotation format, positives filled in
    python scripts/mine_hands.py pool.npz --out pairs.npz --k 5 --method ivf         arrays: keypoints (N, 21, 2), video_ids (N,) …
    python scripts/mine_hands.py annotations.json --out mined.json --sheet pairs.jpg --images FRAMES

An .npz index holds `keypoints` (left hands mirrored), `video_ids` and, if wanted, `image_ids` and `hand_ids`. Pairs in an .npz are
`indices` (rows of the index, −1 for none) and `distances`. A run that was stopped goes on where it stopped. Machines that share a disk may
share a large pool: each runs the same command with --share 1/8, 2/8 …, and at last one runs it without, which joins their parts.
"""

from __future__ import annotations

import argparse
import logging
import shutil
import sys
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from data.hand_annotations import HandAnnotations, annotations_of, read_hand_annotations, write_hand_annotations
from data.hand_shards import HandShards
from pose_tools.files import atomic_path
from pose_tools.image_io import ImageError, read_image, write_image
from pose_tools.interruption import status_of
from pose_tools.simhand.contact_sheet import contact_sheet
from pose_tools.simhand.faiss_search import PROBES
from pose_tools.simhand.mining import prepare
from pose_tools.simhand.mining_run import MiningRunError, run_mining, run_share
from pose_tools.simhand.views import hand_crop
from pose_tools.tool_protocol import BackendMissing
from pose_tools.user_error import UserError


class IndexFileError(UserError):
    """An index that mining cannot use."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("index", type=Path, help="folder of hand shards, annotations .json, or arrays .npz")
    parser.add_argument("--out", type=Path, required=True, help=".json (the published format; not from arrays) or .npz")
    parser.add_argument("--k", type=int, default=1, help="neighbours per hand")
    parser.add_argument("--dims", type=int, default=14, help="principal directions of the 42 coordinates")
    parser.add_argument("--normalise", choices=("none", "wrist", "wrist_scale"), default="none")
    parser.add_argument("--exclude", choices=("none", "image", "video"), default="video", help="who may not be a neighbour")
    parser.add_argument("--method", choices=("exact", "ivf"), default="exact")
    parser.add_argument("--probes", type=int, default=PROBES, help="ivf: lists that are looked into")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--share", type=_share, metavar="I/N", help="search only this part of the pool, and write no pairs yet")
    parser.add_argument("--sheet", type=Path, help="a contact sheet of 50 pairs (of an .json index with --images)")
    parser.add_argument("--images", type=Path, help="folder of the frames that an .json index names")
    options = parser.parse_args(arguments)
    if options.out.suffix not in (".json", ".npz") or (options.out.suffix == ".json" and options.index.suffix == ".npz"):
        parser.error(f"--out must be .npz, or .json for shards and a .json index; got {options.out}")
    if options.sheet and not (options.index.is_dir() or (options.images and options.index.suffix == ".json")):
        parser.error("--sheet needs a folder of shards, or a .json index with --images")
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    try:
        _mine(options)
    except (MiningRunError, BackendMissing, ImageError, ValueError, OSError) as error:
        print(f"mine_hands: {error}", file=sys.stderr)
        return 1
    return 0


def _share(text: str) -> tuple[int, int]:
    share, _, of = text.partition("/")
    if not (share.isdigit() and of.isdigit() and 1 <= int(share) <= int(of)):
        raise argparse.ArgumentTypeError(f"expected I/N with 1 ≤ I ≤ N, such as 3/8, got {text!r}")
    return int(share), int(of)


def _mine(options: argparse.Namespace) -> None:
    pool = _read(options.index, options.images)
    if len(pool.keypoints) == 0:
        raise IndexFileError(f"{options.index} holds no hand: look at what extract_hands.py counted in videos.json, or lower its --least")
    settings = {name: getattr(options, name) for name in ("dims", "normalise", "exclude", "method", "probes", "seed")}
    parts = options.out.with_name(options.out.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as own:  # machines that share the parts must not share the files they work with
        scratch = Path(own) if options.share else parts
        miner = prepare(pool.keypoints, pool.video_ids, options.k, image_ids=pool.image_ids, **settings, scratch=scratch)
        groups = len(np.unique(miner.groups))
        print(f"{miner.total} hands, {groups} groups; {options.dims} directions hold {miner.space.explained:.1%} of the variance")
        if options.share:
            run_share(miner, parts, settings, *options.share)
            print(f"{parts}: share {options.share[0]} of {options.share[1]} is done; run without --share when all are")
            return
    indices, distances = run_mining(miner, parts, settings)
    if options.out.suffix == ".json":
        assert pool.annotations is not None
        write_hand_annotations(options.out, pool.annotations().with_positives(indices, distances))
    else:
        names = {} if pool.hand_ids is None else {"hand_ids": pool.hand_ids}
        with atomic_path(options.out) as temporary, open(temporary, "wb") as stream:
            np.savez(stream, indices=indices, distances=distances, **names)
    none, damaged = int((indices[:, 0] < 0).sum()), miner.total - len(miner.whole)
    print(f"{options.out}: {miner.total - none} hands with a neighbour, {none} without ({damaged} of them lack key points)")
    if options.method == "ivf":
        print(f"recall@1 on sampled anchors: {miner.recall(seed=options.seed):.4f}")
    if options.sheet and pool.crop is not None:
        _sheet(options, pool.crop, indices[:, 0])
    shutil.rmtree(parts)


@dataclass(frozen=True)
class Pool:
    """What is mined, and where its pictures are: `annotations()` are the hands in the published format, `crop(row)` a hand's picture."""

    keypoints: Any
    video_ids: np.ndarray
    image_ids: np.ndarray | None = None
    hand_ids: np.ndarray | None = None
    annotations: Callable[[], HandAnnotations] | None = None
    crop: Callable[[int], np.ndarray] | None = None


def _read(path: Path, images: Path | None = None) -> Pool:
    if path.is_dir():
        shards = HandShards(path)
        frames = np.unique(np.stack([shards.video_numbers, shards.frames], axis=1), axis=0, return_inverse=True)[1]
        return Pool(shards.keypoint_column(), shards.video_numbers, frames, None, lambda: annotations_of(shards), shards.image)
    if path.suffix == ".json":
        hands = read_hand_annotations(path)
        keypoints, frames = hands.right_hand_keypoints(), np.unique(hands.file_names, return_inverse=True)[1]
        return Pool(keypoints, hands.video_ids, frames, np.array(hands.hand_ids), lambda: hands, partial(_cut, hands, images))
    if path.suffix != ".npz":
        raise IndexFileError(f"{path}: expected a folder of hand shards, .json or .npz")
    try:
        with np.load(path, allow_pickle=False) as arrays:
            pool = {name: arrays[name] for name in arrays.files}
    except Exception as error:  # a cut-off archive can raise nearly anything
        raise IndexFileError(f"{path}: cannot be read as .npz ({error}); is it whole?") from error
    if missing := {"keypoints", "video_ids"} - pool.keys():
        raise IndexFileError(f"{path}: lacks {', '.join(sorted(missing))}; it has {', '.join(pool) or 'nothing'}")
    if "hand_ids" in pool and len(np.unique(pool["hand_ids"])) != len(pool["keypoints"]):
        raise IndexFileError(f"{path}: hand_ids must be {len(pool['keypoints'])} different names")
    return Pool(pool["keypoints"], pool["video_ids"], pool.get("image_ids"), pool.get("hand_ids"))


def _cut(hands: HandAnnotations, images: Path, row: int) -> np.ndarray:
    frame = read_image(images / hands.file_names[row])
    return hand_crop(frame, hands.boxes[row], side="left" if hands.left[row] else "right")[0]


def _sheet(options: argparse.Namespace, crop: Callable[[int], np.ndarray], positives: np.ndarray) -> None:
    known = np.flatnonzero(positives >= 0)
    anchors = np.random.default_rng(options.seed).choice(known, min(50, len(known)), replace=False)
    write_image(options.sheet, contact_sheet([(crop(row), crop(positives[row])) for row in anchors]))
    print(f"{options.sheet}: {len(anchors)} pairs")


if __name__ == "__main__":
    sys.exit(status_of(main))
