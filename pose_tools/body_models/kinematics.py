"""Kinematic trees, joint orders and finger-tip vertices of MANO and SMPL: facts of the file formats, shared by all models here."""

from __future__ import annotations

import numpy as np

from pose_tools.joints import indices

NO_PARENT = 4294967295
"""What both file formats write as the root's parent (−1 as an unsigned 32-bit number)."""

MANO_PARENTS = (-1, 0, 1, 2, 0, 4, 5, 0, 7, 8, 0, 10, 11, 0, 13, 14)
"""Parents of MANO's 16 joints: wrist, then index, middle, pinky, ring, thumb with three joints each."""

MANO_FINGERS = ("index", "middle", "pinky", "ring", "thumb")
"""MANO's finger order: finger k owns joints 3k+1 … 3k+3."""

SMPL_PARENTS = (-1, 0, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 9, 9, 12, 13, 14, 16, 17, 18, 19, 20, 21)
"""Parents of SMPL's 24 joints."""

FREIHAND_FROM_MANO = tuple(indices("mano16_plus_tips", "freihand"))
"""Gather: which of [16 MANO joints, tips of thumb, index, middle, ring, pinky] fills each FreiHAND slot."""

TIP_VERTICES = {  # thumb, index, middle, ring, pinky; up to 5 mm apart, so the data set decides
    "freihand": (744, 320, 443, 555, 672),
    "smplx": (744, 320, 443, 554, 671),
    "manopth": (745, 317, 444, 556, 673),
    "ho3d": (744, 333, 444, 555, 672),
}


def kintree_table(parents: tuple[int, ...]) -> np.ndarray:
    """`parents` (root first, −1) as the files' table (2, J) uint32: parents, then joint numbers."""
    first = [NO_PARENT if p < 0 else p for p in parents]
    return np.array([first, range(len(parents))], dtype=np.uint32)
