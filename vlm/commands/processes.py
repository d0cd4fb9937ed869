"""A command as one of several processes under torchrun. In an evaluation each answers its share, and the first puts them together."""

from __future__ import annotations

import os
from pathlib import Path

from pose_tools.process_group import end_process_group


def rank_and_world() -> tuple[int, int]:
    """This process' number and how many there are: (0, 1) for one alone."""
    return int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))


def share_folder(folder: Path, rank: int, world: int) -> Path:
    """Where one process of several keeps its answers."""
    return folder / f"{rank}-of-{world}"


def share_folders(folder: Path, world: int) -> list[Path]:
    """Where all of them keep theirs."""
    return [share_folder(folder, rank, world) for rank in range(world)]


def all_done(rank: int) -> bool:
    """Waits for every process; True in the first, which goes on."""
    import torch.distributed as dist

    dist.init_process_group("gloo")
    dist.barrier()
    end_process_group()
    return rank == 0
