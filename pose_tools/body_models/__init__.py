"""Hand and body models: the licence-free stand-ins, the user's MANO and SMPL files, and linear blend skinning.

mano = load_mano()                                    # the stand-in right hand
mano = load_mano("models/MANO_LEFT.pkl", "left")      # the user's own file
out = mano(global_orient, hand_pose, betas, transl)   # out.vertices (B, 778, 3), out.joints (B, 21, 3), metres
"""

from __future__ import annotations

from pose_tools.body_models.lbs_model import BodyOutput
from pose_tools.body_models.load import load_mano, load_smpl
from pose_tools.body_models.mano import Mano, mirror_arrays
from pose_tools.body_models.read import UnsafePickleError, read_body_pickle
from pose_tools.body_models.smpl import Smpl
from pose_tools.body_models.standin_body import standin_body_arrays
from pose_tools.body_models.standin_hand import standin_hand_arrays

__all__ = [
    "BodyOutput",
    "Mano",
    "Smpl",
    "UnsafePickleError",
    "load_mano",
    "load_smpl",
    "mirror_arrays",
    "read_body_pickle",
    "standin_body_arrays",
    "standin_hand_arrays",
]
