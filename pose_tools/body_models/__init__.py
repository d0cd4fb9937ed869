"""Hand and body models: the licence-free stand-ins, the user's MANO and SMPL files, and linear blend skinning.

    mano = load_mano()                       # the stand-in right hand
    mano = load_mano("MANO_LEFT.pkl", "left")
    out = mano(global_orient, hand_pose, betas, transl)   # out.vertices (B, 778, 3), out.joints (B, 21, 3), metres
"""

from __future__ import annotations

from pathlib import Path

from pose_tools.body_models.checks import side_of
from pose_tools.body_models.lbs_model import BodyOutput
from pose_tools.body_models.mano import Mano, mirror_arrays
from pose_tools.body_models.standin_hand import standin_hand_arrays
from pose_tools.types import Side

__all__ = ["BodyOutput", "Mano", "load_mano", "mirror_arrays", "standin_hand_arrays"]


def load_mano(path: str | Path | None = None, side: Side = "right") -> Mano:
    """The hand model of one side; `path=None` is the stand-in hand."""
    arrays = standin_hand_arrays()
    return Mano.from_arrays(arrays if side == "right" else mirror_arrays(arrays), side)
