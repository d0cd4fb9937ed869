"""Opens a hand or a body model by path, or the stand-in where there is none."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any, Literal

from pose_tools.body_models import checks
from pose_tools.body_models.mano import Mano, mirror_arrays
from pose_tools.body_models.read import read_arrays
from pose_tools.body_models.smpl import Smpl
from pose_tools.body_models.standin_body import standin_body_arrays
from pose_tools.body_models.standin_hand import standin_hand_arrays
from pose_tools.types import Side


def load_mano(path: str | Path | None = None, side: Side = "right") -> Mano:
    """The hand model of one side.

    Args:
        path: a MANO file (`.pkl`, `.npz`), or the folder with MANO_LEFT.pkl and MANO_RIGHT.pkl; None is the stand-in hand.
        side: which hand. A right file does not become a left hand by itself: the error says how to mirror it.

    Raises FileNotFoundError, UnsafePickleError, or ValueError for a file that is not this side's hand.
    """
    if side not in ("left", "right"):
        raise ValueError(f"side={side!r}: expected 'left' or 'right'")
    if path is None:
        arrays = standin_hand_arrays()
        return Mano.from_arrays(arrays if side == "right" else mirror_arrays(arrays), side)
    path = _in_folder(Path(path), {"left": ("MANO_LEFT",), "right": ("MANO_RIGHT",)}[side])
    arrays = read_arrays(path)
    checks.check_mano(arrays, side, str(path))
    shown = checks.side_of(arrays) or _named_side(path)
    if shown and shown != side:
        raise ValueError(
            f"{path}: this is a {shown} hand, asked for the {side} one. Load it with side={shown!r}, give the {side} file, or mirror it: "
            f"Mano.from_arrays(mirror_arrays(read_body_pickle(path)), {side!r})"
        )
    return Mano.from_arrays(arrays, side)


def load_smpl(path: str | Path | None = None, gender: Literal["neutral", "male", "female"] = "neutral") -> Smpl:
    """The body model.

    Args:
        path: a SMPL file (`.pkl`, `.npz`), or the folder with SMPL_NEUTRAL.pkl, SMPL_MALE.pkl, SMPL_FEMALE.pkl or with the files as
            they are downloaded (basicmodel_neutral_lbs_10_207_0_v1.1.0.pkl, …); None is the stand-in body, the same for every gender.
        gender: which file of a folder to take, and what a file's name must not contradict.

    Raises FileNotFoundError, and ValueError for a file that is no SMPL body, or is named as another gender's.
    """
    if gender not in ("neutral", "male", "female"):
        raise ValueError(f"gender={gender!r}: expected 'neutral', 'male' or 'female'")
    if path is None:
        return Smpl.from_arrays(standin_body_arrays())
    kind = "neutral" if gender == "neutral" else gender[0]
    downloads = [f"basic{model}_{kind}_lbs_10_207_0_v1.{n}.0" for model in ("Model", "model") for n in (0, 1)]
    path = _in_folder(Path(path), (f"SMPL_{gender.upper()}", *downloads))
    named = named_gender(path)
    if named not in (None, gender):
        raise ValueError(f"{path}: by its name this is the {named} body, asked for the {gender} one; give the folder of all three")
    arrays: dict[str, Any] = read_arrays(path)
    checks.check_smpl(arrays, str(path))
    return Smpl.from_arrays(arrays)


def _in_folder(path: Path, names: tuple[str, ...]) -> Path:
    """`path`, or the file of one of these names in it where it is a folder."""
    if not path.is_dir():
        return path
    for name in names:
        for suffix in (".pkl", ".npz"):
            if (path / (name + suffix)).is_file():
                return path / (name + suffix)
    raise FileNotFoundError(f"{path}: no {' or '.join(name + '.pkl' for name in names[:2])} in this folder")


def named_gender(path: Path) -> Literal["neutral", "male", "female"] | None:
    """The gender that a file's name speaks of (SMPL_MALE, basicModel_f_lbs_…), None where it names none."""
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    if "basicmodel" in words:
        words |= {gender for gender in ("male", "female", "neutral") if gender[0] in words}
    genders: list[Literal["neutral", "male", "female"]] = ["neutral", "male", "female"]
    found = [gender for gender in genders if gender in words]
    return found[0] if len(found) == 1 else None


def _named_side(path: Path) -> str | None:
    words = set(re.split(r"[^a-z]+", path.stem.lower()))
    sides = words & {"left", "right"}
    return sides.pop() if len(sides) == 1 else None
