"""Synthetic hand videos as hand shards: 40 hands a video, 25 videos a shard, with key points, 3-D joints and camera of every crop.

`confidence` is the share of the hand that nothing hides.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from data.hand_shards import ShardHand
from data.hand_shards_writer import hand_id, settle, unit_facts, write_index, write_unit
from data.synthetic import factors, scenes
from data.synthetic.hand_videos import FRAMES, hand_video
from data.synthetic.parallel import worker_map
from pose_tools.files import exclusive

VIDEOS = 25
"""Of a shard."""
SIZE = 128
"""Pixels of a crop's side."""


def write_hand_images(folder: str | Path, split: factors.Split, seed: int, count: int, size: int = SIZE, workers: int = 1) -> Iterator[int]:
    """Brings `folder` to `count` hands, the last video cut short; yields how many are there. What a stopped run wrote is kept.

    A folder of fewer hands may be extended, and then equals one that was written in one go. Raises ShardError for a folder of other
    hands, FolderBusyError when another process writes it.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with exclusive(folder):
        settle(folder, {"kind": "hand-images", "split": factors.check_split(split), "seed": seed, "size": size, **scenes.world_version()})
        per_unit, there = VIDEOS * FRAMES, 0
        sizes = [min(per_unit, count - start) for start in range(0, count, per_unit)]
        missing = []
        for unit, wanted in enumerate(sizes):
            facts = unit_facts(folder, _name(split, unit))
            if facts is not None and facts["hands"] == wanted:
                there += wanted
            else:
                missing.append((unit, wanted))
        yield there
        with worker_map(partial(_write, folder, split, seed, size), missing, workers, chunksize=1) as written:
            for hands in written:
                there += hands
                yield there
        write_index(folder, [_name(split, unit) for unit in range(len(sizes))])


def _name(split: str, unit: int) -> str:
    return f"{split}-{unit:05d}"


def _write(folder: Path, split: factors.Split, seed: int, size: int, job: tuple[int, int]) -> int:
    unit, wanted = job
    return write_unit(folder, _name(split, unit), _hands(split, seed, size, unit, wanted), {}, per_shard=VIDEOS * FRAMES)


def _hands(split: factors.Split, seed: int, size: int, unit: int, wanted: int) -> Iterator[ShardHand]:
    for video in range(VIDEOS):
        frames = min(FRAMES, wanted - video * FRAMES)
        if frames < 1:
            return
        name = f"{split}-{unit * VIDEOS + video:06d}"
        for hand in hand_video(seed, split, unit * VIDEOS + video, size, frames):
            yield ShardHand(
                hand_id(name, hand.number, 0), name, hand.number, hand.side, hand.visible, hand.bbox_xyxy, hand.crop_box, hand.image,
                hand.keypoints.astype(np.float32), hand.joints_3d.astype(np.float32), hand.intrinsics.astype(np.float32),
            )  # fmt: skip
