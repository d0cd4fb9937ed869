"""smplx behind one door: its layers made from our arrays, as the reference our own skinning is tested and timed against.

smplx is free for non-commercial research only (its licence says so); nothing else in the project needs it.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Mapping
from typing import Any

import numpy as np

from pose_tools.types import Side


def mano_layer(arrays: Mapping[str, Any], side: Side) -> Any:
    """`smplx.MANOLayer`: rotation matrices in (B, 1 and 15, 3, 3), vertices and 16 joints out; no mean pose, no finger tips."""
    import smplx

    with contextlib.redirect_stdout(io.StringIO()):  # it prints a warning about ten shape coefficients
        return smplx.MANOLayer("", is_rhand=side == "right", data_struct=_struct(arrays))


def smpl_layer(arrays: Mapping[str, Any]) -> Any:
    """`smplx.SMPLLayer`: rotation matrices in (B, 1 and 23, 3, 3), vertices and 45 joints out, the first 24 are SMPL's."""
    import smplx

    with contextlib.redirect_stdout(io.StringIO()):
        return smplx.SMPLLayer("", data_struct=_struct(arrays))


def _struct(arrays: Mapping[str, Any]) -> Any:
    from smplx.utils import Struct

    dense = {name: np.asarray(value.toarray()) if hasattr(value, "toarray") else value for name, value in arrays.items()}
    return Struct(**dense)
