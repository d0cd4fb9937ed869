"""Short videos of one hand each, for learning from similar hands: what a video's frames share, and what recurs from video to video.

The frames of a video share room, camera, light, lens, person and side, and move between two poses of a bank (or wander around one
grip, with the thing in it). The bank is one for a split, so a pose comes again with other skin, rooms, lights and cameras.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from scipy.spatial.transform import Rotation

from data.synthetic import background, draw, factors, hands
from data.synthetic.frame import Frame
from data.synthetic.placing import Thing, put_in_hand
from data.synthetic.reaching import HAND_IDS, Person, PlacedHand, Posed, place
from data.synthetic.world import draw_light, picture_rng
from pose_tools.geometry import project
from pose_tools.simhand.views import hand_crop, hand_crop_box
from pose_tools.types import SIDES, Side

FRAMES = 40
"""Hands of a video."""
BANK = 150
"""Poses of a split."""
MEMORY = 0.85
"""Correlation of a video's wandering from frame to frame."""
STRIDE = 30
"""Between the numbers of neighbouring frames, as in the published data."""
_SHARE = (0.36, 0.5)
_BANK_VIDEO = 2_000_000
"""The video number whose generator draws the bank."""


@dataclass(frozen=True)
class HandFrame:
    """A frame of a video as cut out: `image` (S, S, 3) uint8 with a left hand mirrored; `keypoints` (21, 2) pixels of it, `joints_3d`
    (21, 3) metres and `intrinsics` (3, 3), mirrored alike; `bbox_xyxy`, `crop_box` (4,) pixels of the frame; `visible` 0..1."""

    number: int
    side: Side
    image: np.ndarray
    bbox_xyxy: np.ndarray
    crop_box: np.ndarray
    keypoints: np.ndarray
    joints_3d: np.ndarray
    intrinsics: np.ndarray
    visible: float


@dataclass(frozen=True)
class BankPose:
    """A right hand's `pose` (45,) and how it is turned: `angle` of the fingers in the picture, `depth` of their direction, `roll`, radians;
    the `thing` that this grip is made for, or None."""

    pose: np.ndarray
    angle: float
    depth: float
    roll: float
    thing: Thing | None

    @property
    def numbers(self) -> np.ndarray:
        """(48,) pose, angle, depth, roll."""
        return np.array([*self.pose, self.angle, self.depth, self.roll])


@lru_cache(maxsize=2)
def pose_bank(seed: int, split: factors.Split) -> tuple[BankPose, ...]:
    """The poses that recur in a split's videos: two fifths are grips."""
    rng = picture_rng(seed, split, _BANK_VIDEO, 0)
    pairs = factors.pairs(split)
    bank = []
    for _ in range(BANK):
        thing = Thing.draw(rng, pairs[rng.integers(len(pairs))], split) if rng.random() < 0.4 else None
        pose = thing.grasp.hand_pose if thing else hands.free_pose(rng)
        # mostly one's own hands, fingers up and inwards; some of a person opposite
        angle = rng.normal(-0.25, 0.5) + (np.pi if rng.random() < 0.15 else 0.0)
        bank.append(BankPose(pose, angle, rng.uniform(-0.3, 0.7), rng.normal(0.95, 0.4) if thing else rng.uniform(-0.4, 3.0), thing))
    return tuple(bank)


def hand_video(seed: int, split: factors.Split, video: int, size: int, frames: int = FRAMES) -> list[HandFrame]:
    """Video number `video` of a split as crops of `size` pixels; the first frames of a longer one are those of a shorter one."""
    rng = picture_rng(seed, split, _BANK_VIDEO + 1 + video, 0)
    frame = Frame.draw(rng, int(rng.choice(factors.camera_bins(split))), (2 * size, 2 * size))
    person, side = Person.draw(rng), SIDES[int(rng.integers(2))]
    start, end = (pose_bank(seed, split)[i] for i in rng.integers(BANK, size=2))
    room, shadow, lens = factors.draw_background_seed(rng, split), rng.uniform(0.15, 0.5), draw.Lens.draw(rng)
    thing = start.thing if rng.random() < 0.7 else None
    placed = _place(rng, frame, person, side, start, start if start.thing else end)
    frame = frame.with_table_below([hand.vertices for hand in placed], float(rng.uniform(0.0, 0.15)))
    light = draw_light(rng, frame)
    behind = background.draw(room, frame.size, frame.focal, frame.up, frame.height)
    found = []
    for number, hand in enumerate(placed[:frames]):
        parts = list(hand.parts)
        held = put_in_hand(np.random.default_rng([seed, video]), thing, hand) if thing else None
        parts += [held.part(0)] if held else []
        layers = [layer for part in parts if (layer := draw.draw_layer(part, frame.focal, frame.size, light)) is not None]
        owner = draw.lay_together(layers, frame.size)
        floor = draw.cast_shadows(behind, [layer.part for layer in layers], frame.focal, frame.up, frame.height, light, shadow)
        picture = lens.see(draw.paint(layers, owner, floor), picture_rng(seed, split, _BANK_VIDEO + 1 + video, 1 + number))
        seen = dict(zip([layer.part.id for layer in layers], draw.seen_shares(layers, owner), strict=True))
        found.append(_cut(number * STRIDE, frame, hand, picture, size, float(seen.get(HAND_IDS[side], 0.0))))
    return found


def _place(rng: np.random.Generator, frame: Frame, person: Person, side: Side, start: BankPose, end: BankPose) -> list[PlacedHand]:
    """The hand of every frame before the camera, with its forearm."""
    sign = 1 if side == "right" else -1
    # most frames are near either pose
    along = np.clip(1.6 * np.linspace(0, 1, FRAMES) - 0.3, 0, 1)[:, None]
    along = along**2 * (3 - 2 * along)
    numbers = start.numbers * (1 - along) + end.numbers * along
    numbers += _wander(rng, 48) * [*np.full(45, 0.03 if start.thing else 0.06), 0.12, 0.08, 0.12]
    betas = np.clip(rng.normal(0, 0.7, 10), -2, 2)
    turns = [hands.rotation_to(_forward(row[45], row[46], sign), row[47], side) for row in numbers]
    orient = Rotation.from_matrix(np.stack(turns)).as_rotvec()
    bent = np.stack([hands.for_side(row[:45], side) for row in numbers])
    vertices, joints = hands.pose_hands(side, orient, bent, np.tile(betas, (FRAMES, 1)), np.zeros((FRAMES, 3)))
    share, spots = rng.uniform(*_SHARE) * np.exp(0.06 * _wander(rng, 1)[:, 0]), 0.5 + rng.uniform(-0.08, 0.08, 2) + 0.02 * _wander(rng, 2)
    placed, arm_seed = [], int(rng.integers(2**31))
    for number in range(FRAMES):
        low, high = vertices[number, :, :2].min(0), vertices[number, :, :2].max(0)
        depth = max(0.16, frame.focal * (high - low).max() / (share[number] * frame.short))
        centre = spots[number] * frame.extent
        transl = frame.ray(centre) * depth - [*(low + high) / 2, vertices[number, :, 2].mean()]
        entry = centre - 0.95 * frame.short * _forward(numbers[number, 45], 0.0, sign)[:2]
        parameters = {"global_orient": orient[number].tolist(), "hand_pose": bent[number].tolist(), "betas": betas.tolist()}
        posed = Posed(side, vertices[number], joints[number], turns[number] @ hands.skeleton(side).axes, parameters)
        placed.append(place(np.random.default_rng(arm_seed), frame, person, posed, transl, entry))
    return placed


def _forward(angle: float, depth: float, sign: int) -> np.ndarray:
    """(3,) where the fingers point: `angle` radians from up, to the thumb's side of a right hand where negative."""
    return np.array([sign * np.sin(angle), -np.cos(angle), depth])


def _wander(rng: np.random.Generator, width: int) -> np.ndarray:
    """(FRAMES, width) slow noise of deviation 1."""
    steps = rng.standard_normal((FRAMES, width))
    for row in range(1, FRAMES):
        steps[row] = MEMORY * steps[row - 1] + np.sqrt(1 - MEMORY**2) * steps[row]
    return steps


def _cut(number: int, frame: Frame, hand: PlacedHand, picture: np.ndarray, size: int, visible: float) -> HandFrame:
    """The hand's crop with its labels."""
    shown = frame.project(hand.vertices)
    box = np.clip([*shown.min(0), *shown.max(0)], 0, frame.short)
    crop, matrix = hand_crop(picture, box, side=hand.side, size=size)
    flip = np.diag([-1.0, 1, 1]) if hand.side == "left" else np.eye(3)
    joints, intrinsics = hand.joints @ flip, matrix @ frame.intrinsics @ flip
    crop_box = np.array(hand_crop_box(frame.size, box), float)
    return HandFrame(number, hand.side, crop, box, crop_box, project(joints, intrinsics), joints, intrinsics, visible)
