#!/usr/bin/env python
"""Writes the synthetic world to disk: `stills` scenes with every label, or the same world as other data sets.

    python scripts/make_synthetic.py stills --out cache/synthetic --count 12000 --seed 0 --split train

`stills` writes OUT/SPLIT, `clips` too: ten observed frames a clip in EPIC-KITCHENS' layout, and the paths that follow. `hoi-qa`
and the data sets of hands (`freihand`, `ho3d`, `interhand`, `dexycb`, `assembly-hands`) write their published layout under OUT (FreiHAND's
and HO-3D's evaluation set is the test split), `rooms` people in furnished rooms in EgoBody's. `hand-images` writes crops of hands in short
videos as tar shards with an index (data/hand_shards.py), `keypoints` a pool of 2-D hand poses in 2,000 videos
(OUT/keypoints-SPLIT.npz): both for scripts/mine_hands.py. A run that was stopped goes on where it stopped; what is already there is kept.
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from tqdm import tqdm  # noqa: E402

from data.hand_shards import ShardError  # noqa: E402
from data.synthetic import factors, scenes  # noqa: E402
from data.synthetic.assembly_hands_writer import write_assembly_hands  # noqa: E402
from data.synthetic.dexycb_writer import write_dexycb  # noqa: E402
from data.synthetic.ego_body_writer import RoomError, write_ego_body  # noqa: E402
from data.synthetic.epic_writer import ClipSettings, make_clips  # noqa: E402
from data.synthetic.freihand_writer import write_freihand  # noqa: E402
from data.synthetic.hand_images_writer import write_hand_images  # noqa: E402
from data.synthetic.ho3d_writer import write_ho3d  # noqa: E402
from data.synthetic.hoi_qa_writer import write_hoi_qa  # noqa: E402
from data.synthetic.interhand_writer import write_interhand  # noqa: E402
from data.synthetic.journal import FolderError  # noqa: E402
from data.synthetic.keypoints import write_keypoint_pool  # noqa: E402
from pose_tools.files import FolderBusyError  # noqa: E402
from pose_tools.interruption import status_of  # noqa: E402

HAND_SETS = {
    "freihand": write_freihand, "ho3d": write_ho3d, "interhand": write_interhand, "dexycb": write_dexycb,
    "assembly-hands": write_assembly_hands,
}  # fmt: skip
"""Data sets of hands, each in its published layout."""


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=("stills", "clips", "hoi-qa", "rooms", "hand-images", "keypoints", *HAND_SETS))
    parser.add_argument("--out", type=Path, required=True, help="the data set's folder")
    parser.add_argument("--count", type=int, required=True, help="how many pictures (clips) there shall be")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--split", choices=factors.SPLITS, default="train")
    parser.add_argument("--size", type=int, help="width and height of a picture in pixels (stills, clips: 192; hand-images: 128)")
    parser.add_argument("--workers", type=int, default=os.cpu_count() or 1)
    options = parser.parse_args(arguments)
    if options.size is None:
        options.size = 128 if options.kind == "hand-images" else 192
    for name, least in (("count", 1), ("size", 48), ("seed", 0), ("workers", 1)):
        if getattr(options, name) < least:
            parser.error(f"--{name} is {getattr(options, name)}, expected at least {least}")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    folder, counts = _writer(options)
    try:
        with tqdm(total=options.count, unit="picture", desc=str(folder)) as bar:
            for there in counts:
                bar.update(there - bar.n)
    except (FolderError, FolderBusyError, RoomError, ShardError, OSError) as error:
        print(f"make_synthetic: {error}", file=sys.stderr)
        return 1
    return 0


def _writer(options: argparse.Namespace) -> tuple[Path, Iterator[int]]:
    """The folder to write and the generator that writes it."""
    if options.kind == "hoi-qa":
        return options.out, write_hoi_qa(options.out, options.split, options.seed, options.count, options.workers)
    if options.kind == "rooms":
        return options.out, write_ego_body(options.out, options.split, options.seed, options.count, options.workers)
    if options.kind in HAND_SETS:
        return options.out, HAND_SETS[options.kind](options.out, options.split, options.seed, options.count, options.workers)
    if options.kind == "hand-images":
        return options.out, write_hand_images(options.out, options.split, options.seed, options.count, options.size, options.workers)
    if options.kind == "keypoints":
        return options.out, write_keypoint_pool(options.out, options.split, options.seed, options.count)
    folder = options.out / options.split
    if options.kind == "clips":
        return folder, make_clips(folder, ClipSettings(options.split, options.seed, options.size), options.count, options.workers)
    settings = scenes.Settings(options.split, options.seed, options.size)
    return folder, scenes.make_scenes(folder, settings, options.count, options.workers)


if __name__ == "__main__":
    sys.exit(status_of(main))
