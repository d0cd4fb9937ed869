"""The 21-joint orders of a hand, by name, with maps between them.

Ours is FreiHAND's: wrist, then thumb, index, middle, ring, pinky, each from base to tip. Every other order is a list of the
same 21 names; for the two-handed data sets (42 joints) it is the right hand's half, the left hand's is the same list.
"""

from __future__ import annotations

from typing import Any

CANONICAL = "freihand"
FINGERS = ("thumb", "index", "middle", "ring", "pinky")


def _fingers(parts: tuple[str, ...], fingers: tuple[str, ...] = FINGERS) -> tuple[str, ...]:
    return tuple(f"{finger}_{part}" for finger in fingers for part in parts)


_FREIHAND = ("wrist", *_fingers(("1", "2", "3", "tip")))
_MANO_TIPS = ("wrist", *_fingers(("1", "2", "3"), ("index", "middle", "pinky", "ring", "thumb")), *_fingers(("tip",)))
_TIP_TO_BASE = (*_fingers(("tip", "3", "2", "1")), "wrist")

ORDERS: dict[str, tuple[str, ...]] = {
    "freihand": _FREIHAND,
    "mediapipe": _FREIHAND,  # its points are landmarks on the skin, a few millimetres from MANO's joints
    "openpose_hand": _FREIHAND,
    "dexycb": _FREIHAND,
    "mano16_plus_tips": _MANO_TIPS,
    "ho3d": _MANO_TIPS,
    "interhand26m_right": _TIP_TO_BASE,
    "assemblyhands_right": _TIP_TO_BASE,
    "ait": ("wrist", *(f"{finger}_{part}" for part in ("1", "2", "3", "tip") for finger in FINGERS)),  # PeCLR; its nets' wrist is the palm
}
"""Joint names of each order, 21 of them."""

BONES: tuple[tuple[int, int], ...] = tuple((0 if i % 4 == 1 else i - 1, i) for i in range(1, 21))
"""(parent, child) of the 20 bones, FreiHAND order."""


def indices(source: str, target: str) -> list[int]:
    """`points[indices(source, target)]` puts 21 points of order `source` into order `target`."""
    for name in (source, target):
        if name not in ORDERS:
            raise ValueError(f"unknown joint order {name!r}, expected one of {', '.join(ORDERS)}")
    return [ORDERS[source].index(name) for name in ORDERS[target]]


def convert(points: Any, source: str, target: str) -> Any:
    """Points (…, 21, d), NumPy or torch, from order `source` to order `target` (names as in `ORDERS`); always a copy."""
    shape = tuple(points.shape)
    if len(shape) < 2 or shape[-2] != 21:
        raise ValueError(f"convert: expected points (…, 21, d), got {shape}; cut one hand out of 42 joints first")
    return points[..., indices(source, target), :]
