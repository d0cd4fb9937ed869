"""Data sets of hands → HandSample, opened by kind; what all of their readers share.

    hands = open_hands("dexycb", folder, "test", models=hand_models("MANO folder"), setup="s1")
    hands[0]           # with its picture
    hands.label(0)     # the same without reading the picture

A picture in which the data set has no hand, or none that may be known, is a sample whose `joints_3d` is None.
"""

from __future__ import annotations

import hashlib
import json
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from pose_tools.image_io import read_image
from pose_tools.sampling import evenly
from pose_tools.types import HandPose, HandSample, Side
from pose_tools.user_error import UserError

if TYPE_CHECKING:
    from pose_tools.body_models import Mano

logger = logging.getLogger(__name__)
Split = Literal["train", "val", "test"]
SPLITS: tuple[Split, ...] = ("train", "val", "test")
HandModels = Mapping[Side, "Mano"]
NO_PICTURE = np.zeros((0, 0, 3), np.uint8)
"""What stands for the picture in a label."""
CHECKED = 64
"""How many samples are posed to see whether parameters and joints agree."""


class HandDataError(UserError):
    """A data set of hands that cannot be used; the message names the file or sample and the remedy."""


class HandSet(ABC):
    """Samples by number: `len(hands)`, `hands[i]`, iteration in order. Pictures are read one at a time."""

    kind: str
    tolerance = 0.001
    """Metres; how far posed joints may be from the stored ones, in the median of either side."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def label(self, index: int) -> HandSample:
        """Sample `index` without its picture (`image` is `NO_PICTURE`)."""

    @abstractmethod
    def picture(self, index: int) -> Path:
        """The file of sample `index`'s picture."""

    @abstractmethod
    def cluster(self, index: int) -> str:
        """What sample `index` shares with those that are not independent of it: an annotation or a recording."""

    def __getitem__(self, index: int) -> HandSample:
        label = self.label(index)
        return replace(label, image=read_image(self.picture(index)))

    def __iter__(self) -> Iterator[HandSample]:
        return (self[i] for i in range(len(self)))

    def place(self, index: int) -> int:
        """`index` itself; IndexError outside the set."""
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        return index


class Subset(HandSet):
    """Some samples of a set, by number."""

    def __init__(self, whole: HandSet, indices: Sequence[int]) -> None:
        self.whole, self.indices = whole, list(indices)
        self.kind, self.tolerance = whole.kind, whole.tolerance

    def __len__(self) -> int:
        return len(self.indices)

    def label(self, index: int) -> HandSample:
        return self.whole.label(self.indices[self.place(index)])

    def picture(self, index: int) -> Path:
        return self.whole.picture(self.indices[self.place(index)])

    def cluster(self, index: int) -> str:
        return self.whole.cluster(self.indices[self.place(index)])

    def __getitem__(self, index: int) -> HandSample:
        return self.whole[self.indices[self.place(index)]]


def open_hands(
    kind: str,
    folder: str | Path,
    split: str = "train",
    *,
    models: HandModels | None = None,
    val_share: float = 0.1,
    seed: int = 0,
    check: bool = True,
    **options: Any,
) -> HandSet:
    """Opens a data set of hands.

    Args:
        kind: one of `KINDS`.
        folder: where the data set was unpacked.
        split: "train", "val" or "test". A data set without a validation part gives a share of its training part: whole annotations or
            recordings, chosen by their name and the seed, so that no two pictures of one fall on both sides.
        models: the hand models the parameters were fitted with, `hand_models(path)`; None leaves `pose` (and vertices that are not
            stored) out.
        check: pose some samples and refuse a set whose parameters do not give its joints.
        options: further arguments of the reader (`setup="s1"` of DexYCB, `versions=(0,)` of FreiHAND …).

    Raises HandDataError.
    """
    if kind not in KINDS:
        raise HandDataError(f"hand data set {kind!r}: expected one of {', '.join(KINDS)}")
    if split not in SPLITS:
        raise HandDataError(f"split {split!r}: expected one of {', '.join(SPLITS)}")
    if not Path(folder).is_dir():
        raise HandDataError(f"{folder}: no such folder; unpack {kind} there, or write a synthetic one with scripts/make_synthetic.py")
    opened = KINDS[kind]
    hands = opened.read(Path(folder), "train" if split == "val" and not opened.has_val else split, models, options)
    if split != "test" and not opened.has_val:
        wanted = split == "val"
        hands = Subset(hands, [i for i in range(len(hands)) if in_share(hands.cluster(i), val_share, seed) == wanted])
    if not len(hands):
        raise HandDataError(
            f"{folder}: {kind} has no samples of the split {split!r} there; is the part unpacked, or val_share too small?"
        )
    if check and models is not None:
        check_parameters(hands)
    return hands


def in_share(name: str, share: float, seed: int = 0) -> bool:
    """Whether a name belongs to a share (0–1) of all names; depends on the name and the seed alone."""
    digest = hashlib.sha256(f"{seed}:{name}".encode()).digest()
    return int.from_bytes(digest[:8], "big") < share * 2**64


def hand_models(path: str | Path | None = None) -> dict[Side, Mano]:
    """Both hands: MANO_LEFT and MANO_RIGHT of a folder, one file and its mirror image, or (None) the stand-in hands.

    Raises as `load_mano` does."""
    from pose_tools.body_models import Mano, load_mano, mirror_arrays
    from pose_tools.body_models.read import read_arrays

    if path is None or Path(path).is_dir():
        return {"left": load_mano(path, "left"), "right": load_mano(path, "right")}
    try:
        there, given, other = load_mano(path, "right"), "right", "left"
    except ValueError as error:
        if "this is a left hand" not in str(error):
            raise
        there, given, other = load_mano(path, "left"), "left", "right"
    return {given: there, other: Mano.from_arrays(mirror_arrays(read_arrays(path)), other)}  # type: ignore[dict-item, arg-type]


@dataclass(frozen=True)
class PosedHand:
    """Parameters with what the hand model makes of them: `vertices` (778, 3) metres, camera frame; the joints are `pose.joints_3d`."""

    pose: HandPose
    vertices: np.ndarray


def pose_hand(
    model: Mano, global_orient: Any, hand_pose: Any, betas: Any, transl: Any, *, tips: str, rotation: Any = None, shift: Any = None
) -> PosedHand:
    """Poses a hand, `hand_pose` (45,) absolute axis-angle, and moves it into the camera's frame by `rotation` (3, 3) and `shift` (3,).

    x ↦ R x + s takes a hand with orientation G and translation t, which turns about its wrist J₀ at rest, to one with orientation R G and
    translation R (J₀ + t) + s − J₀; J₀ depends on `betas`.
    """
    import torch

    from pose_tools.geometry import axis_angle_to_matrix, matrix_to_axis_angle

    orient, betas, transl = (np.asarray(v, np.float64).reshape(-1) for v in (global_orient, betas, transl))
    if rotation is not None:
        turn = torch.as_tensor(np.array(rotation, np.float64))
        orient = matrix_to_axis_angle(turn @ axis_angle_to_matrix(torch.from_numpy(orient))).numpy()
        rest = rest_wrist(model, betas)
        transl = np.asarray(rotation) @ (rest + transl) + np.asarray(shift, np.float64) - rest
    absolute = np.asarray(hand_pose, np.float64).reshape(45)
    with torch.no_grad():
        output = model(*(torch.from_numpy(v)[None] for v in (orient, absolute, betas, transl)), tips=tips)
    pose = HandPose(model.side, orient, absolute, betas, transl, output.joints[0].numpy())
    return PosedHand(pose, output.vertices[0].numpy())


def with_vertices(label: HandSample, models: HandModels) -> HandSample:
    """The sample with the vertices that the hand model makes of its parameters, where it has parameters and no vertices."""
    pose = label.pose
    if label.vertices is not None or pose is None:
        return label
    posed = pose_hand(models[label.side], pose.global_orient, pose.hand_pose, pose.betas, pose.transl, tips="freihand")
    return replace(label, vertices=posed.vertices)


def rest_wrist(model: Mano, betas: np.ndarray) -> np.ndarray:
    """(3,) metres: where the wrist of a hand with this shape lies before it is moved; the hand turns about it."""
    import torch

    with torch.no_grad():
        output = model(torch.zeros(1, 3).double(), torch.zeros(1, 45).double(), torch.from_numpy(np.asarray(betas, np.float64))[None])
    return output.joints[0, 0].numpy()


def mean_pose(model: Mano) -> np.ndarray:
    """(45,) axis-angle: what FreiHAND, InterHand2.6M and DexYCB leave out of their poses."""
    return model.hands_mean.detach().double().numpy()


def check_parameters(hands: HandSet, count: int = CHECKED, tolerance: float | None = None) -> dict[str, float]:
    """Whether the joints of the posed model are the stored ones, on `count` samples spread over the set.

    Returns, in metres, the median of the samples' mean distance for each side there is, and `worst`. Raises HandDataError, naming the
    worst sample, when a side's median is above `tolerance` (the set's own by default). Samples without parameters don't count.
    """
    tolerance = hands.tolerance if tolerance is None else tolerance
    errors: dict[str, list[float]] = {}
    worst, worst_index = -1.0, -1
    for index in evenly(len(hands), count):
        label = hands.label(int(index))
        if label.pose is None or label.joints_3d is None or label.pose.joints_3d is None:
            continue
        kept = label.joints_valid if label.joints_valid is not None else np.ones(21, bool)
        if not kept.any():
            continue
        error = float(np.linalg.norm(label.pose.joints_3d - label.joints_3d, axis=1)[kept].mean())
        errors.setdefault(label.side, []).append(error)
        if error > worst:
            worst, worst_index = error, int(index)
    medians = {side: float(np.median(found)) for side, found in errors.items()}
    for side, median in medians.items():
        if not median <= tolerance:
            raise HandDataError(
                f"{hands.kind}: the hand model puts the joints of {side} hands {median * 1000:.1f} mm (median) from the stored ones, "
                f"the worst, {hands.picture(worst_index)}, {worst * 1000:.1f} mm; at most {tolerance * 1000:g} mm are expected. Give the "
                "model that the parameters were fitted with: for a published set the folder of MANO_RIGHT.pkl and MANO_LEFT.pkl"
            )
    if worst > 10 * tolerance:
        logger.warning("%s: %s is %.1f mm from its parameters", hands.kind, hands.picture(worst_index), worst * 1000)
    return {**medians, "worst": worst} if medians else {}


def read_json(path: Path, hint: str) -> Any:
    """A json file; HandDataError when it is missing (`hint` says how to get it) or not whole."""
    try:
        return json.loads(path.read_bytes())
    except FileNotFoundError:
        raise HandDataError(f"{path} is missing: {hint}") from None
    except ValueError as error:
        raise HandDataError(f"{path}: not a whole json file ({error}); copy or unpack it again") from None


def numbers(value: Any, shape: tuple[int, ...], what: str) -> np.ndarray:
    """Finite float64 numbers of a shape; HandDataError says what was got."""
    try:
        array = np.asarray(value, dtype=np.float64)
    except (TypeError, ValueError):
        array = None
    if array is None or array.size != int(np.prod(shape)) or not np.isfinite(array).all():
        got = "other things" if array is None else f"{array.shape}" + ("" if np.isfinite(array).all() else ", not all finite")
        raise HandDataError(f"{what}: finite numbers {shape} expected, got {got}")
    return array.reshape(shape)


def box_of(points: np.ndarray) -> np.ndarray:
    """The tight box (4,) xyxy of points (N, 2)."""
    return np.concatenate([points.min(0), points.max(0)])


@dataclass(frozen=True)
class Kind:
    """How a data set is opened: `read(folder, split, models, options)`, and whether it has a validation part of its own."""

    read: Callable[[Path, str, HandModels | None, dict[str, Any]], HandSet]
    has_val: bool


def _freihand(folder: Path, split: str, models: HandModels | None, options: dict[str, Any]) -> HandSet:
    from data.freihand import FreiHAND

    return FreiHAND(folder, "evaluation" if split == "test" else "training", mano=models["right"] if models else None, **options)


def _ho3d(folder: Path, split: str, models: HandModels | None, options: dict[str, Any]) -> HandSet:
    from data.ho3d import HO3D

    return HO3D(folder, "evaluation" if split == "test" else "train", model=models["right"] if models else None, **options)


def _interhand(folder: Path, split: str, models: HandModels | None, options: dict[str, Any]) -> HandSet:
    from data.interhand import InterHand

    return InterHand(folder, split, models=models, **options)


def _dexycb(folder: Path, split: str, models: HandModels | None, options: dict[str, Any]) -> HandSet:
    from data.dexycb import DexYCB

    return DexYCB(folder, split, models=models, **options)


def _assembly_hands(folder: Path, split: str, models: HandModels | None, options: dict[str, Any]) -> HandSet:
    from data.assembly_hands import AssemblyHands

    return AssemblyHands(folder, split, **options)


KINDS: dict[str, Kind] = {
    "freihand": Kind(_freihand, has_val=False),
    "ho3d": Kind(_ho3d, has_val=False),
    "interhand": Kind(_interhand, has_val=True),
    "dexycb": Kind(_dexycb, has_val=True),
    "assembly_hands": Kind(_assembly_hands, has_val=True),
}
