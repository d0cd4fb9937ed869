"""Hands in photographs by MediaPipe's two networks: palms in many windows, then 21 landmarks in a turned crop of each.

The palm network sees 192 × 192 pixels, so a hand that is small in a photograph is lost to it: it looks at the whole picture, at the
picture with a border (for hands that are cut off), and at overlapping tiles of three sizes. Every look of both networks is taken
twice, as it is and mirrored, so that a mirrored picture has the mirrored hands with their sides swapped.

Facts of the networks (input, anchors, output order, crop rules) are those of MediaPipe 0.10.21's graphs; the code is our own.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pose_tools.grounding import Numbers
from pose_tools.mediapipe_models import LANDMARK, PALM, network
from pose_tools.metrics import box_iou
from pose_tools.types import Side
from pose_tools.views import View, crop, squash

PALM_SIZE = PALM.input_shape[0]
LANDMARK_SIZE = LANDMARK.input_shape[0]
TILES = (1.0, 1 / 1.5, 1 / 2.5)
"""Sides of the square tiles, as parts of the picture's shorter side."""
SMALLEST_TILE = 160
"""Pixels: smaller tiles show the palm network enlarged pixels, in which it sees hands that are not there."""
LARGEST_SIDE = 1600
"""Pixels: larger pictures are shrunk first; the smallest tile still has more pixels than the network sees."""
PALM_THRESHOLD = 0.2
PROMISING = 0.1
"""Least presence at the first look for a second one."""
MARGIN = 0.06
"""Skin beyond the landmarks, as a part of the box's longer side."""


@dataclass(frozen=True)
class Palm:
    """`bbox_xyxy` (4,), `keypoints` (7, 2): wrist, then index, middle, ring and little knuckle, then two of the thumb; pixels."""

    bbox_xyxy: np.ndarray
    keypoints: np.ndarray
    score: float


@dataclass(frozen=True)
class Hand:
    """`landmarks` (21, 2) pixels, FreiHAND order; `right`: probability that it is a right hand; `score` in 0..1."""

    landmarks: np.ndarray
    right: float
    score: float


def anchors() -> np.ndarray:
    """(2016, 2) centres of the palm network's anchors, input pixels: 2 in each of 24 × 24 cells, then 6 in each of 12 × 12."""
    layers = []
    for stride, count in ((8, 2), (16, 6)):
        centres = (np.arange(PALM_SIZE // stride) + 0.5) * stride
        layers.append(np.stack(np.meshgrid(centres, centres), axis=-1).reshape(-1, 2).repeat(count, axis=0))
    return np.concatenate(layers)


def decode_palms(raw: np.ndarray, logits: np.ndarray, threshold: float) -> list[Palm]:
    """The palm network's outputs (2016, 18) and (2016, 1) → palms in input pixels with score ≥ `threshold`, not yet merged.

    A row is the centre relative to its anchor, width, height, then 7 points relative to the anchor, all in input pixels.
    """
    scores = 1 / (1 + np.exp(-np.clip(logits[:, 0].astype(np.float64), -100, 100)))
    rows = np.flatnonzero((scores >= threshold) & (raw[:, 2:4] > 0).all(1))
    points = raw[rows].astype(np.float64).reshape(-1, 9, 2)
    places = anchors()[rows]
    centres, half = points[:, 0] + places, points[:, 1] / 2
    boxes = np.concatenate([centres - half, centres + half], axis=1)
    return [Palm(box, kp + place, float(scores[row])) for box, kp, place, row in zip(boxes, points[:, 2:], places, rows, strict=True)]


def merge_palms(palms: list[Palm], least_iou: float = 0.3) -> list[Palm]:
    """Palms that overlap the best one become one: boxes and points averaged by score, the best score kept."""
    merged, left = [], sorted(palms, key=lambda palm: -palm.score)
    while left:
        boxes = np.stack([palm.bbox_xyxy for palm in left])
        same = box_iou(boxes[0], boxes) > least_iou
        same[0] = True
        group = [palm for palm, one in zip(left, same, strict=True) if one]
        weights = np.array([palm.score for palm in group])
        box = np.average([palm.bbox_xyxy for palm in group], axis=0, weights=weights)
        points = np.average([palm.keypoints for palm in group], axis=0, weights=weights)
        merged.append(Palm(box, points, group[0].score))
        left = [palm for palm, one in zip(left, same, strict=True) if not one]
    return merged


def windows(size: tuple[int, int]) -> list[Numbers]:
    """Squares (x1, y1, x2, y2), original pixels, that the palm network looks at, for a picture of `size` (width, height)."""
    width, height = size
    squares = [_square(width / 2, height / 2, max(size) * scale) for scale in (1.0, 1.25)]
    for part in TILES:
        side = min(size) * part
        if SMALLEST_TILE <= side < max(size):
            squares += [_square(x, y, side) for y in _spread(height, side) for x in _spread(width, side)]
    return squares


def _square(x: float, y: float, side: float) -> Numbers:
    return (x - side / 2, y - side / 2, x + side / 2, y + side / 2)


def _spread(length: int, side: float) -> np.ndarray:
    """Centres of tiles that cover `length`, neighbours sharing half or more."""
    count = int(np.ceil((length - side) / (side / 2) - 1e-6)) + 1
    return np.linspace(side / 2, length - side / 2, count) if count > 1 else np.array([length / 2])


def find_palms(image: np.ndarray, threshold: float = PALM_THRESHOLD) -> list[Palm]:
    """Palms in all windows, merged; pixels of `image`."""
    run, palms = network(PALM), []
    for window in windows((image.shape[1], image.shape[0])):
        for flip in (False, True):
            view = crop(window, PALM_SIZE, flip=flip)
            raw, logits = run(view.warp(image))
            for palm in decode_palms(raw, logits, threshold):
                palms.append(Palm(view.box_to_original(palm.bbox_xyxy), view.to_original(palm.keypoints), palm.score))
    return merge_palms(palms)


def palm_region(palm: Palm, flip: bool = False) -> View:
    """The square around the whole hand, turned so that the fingers point up: 2.6 palms wide, half a palm towards the fingers."""
    ahead = palm.keypoints[2] - palm.keypoints[0]
    side = (palm.bbox_xyxy[2:] - palm.bbox_xyxy[:2]).max()
    middle = (palm.bbox_xyxy[:2] + palm.bbox_xyxy[2:]) / 2 + 0.5 * side * ahead / max(np.linalg.norm(ahead), 1e-9)
    return crop(_square(middle[0], middle[1], 2.6 * side), LANDMARK_SIZE, rotation=_turn_up(ahead), flip=flip)


def landmark_region(landmarks: np.ndarray, flip: bool = False) -> View:
    """As `palm_region`, from the landmarks (21, 2) themselves: twice their turned box, a tenth of its height towards the fingers."""
    ahead = (landmarks[5] + landmarks[13]) / 4 + landmarks[9] / 2 - landmarks[0]
    rotation = _turn_up(ahead)
    angle = np.deg2rad(rotation)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    turned = landmarks @ turn.T
    low, high = turned.min(0), turned.max(0)
    middle = ((low + high) / 2 - [0, 0.1 * (high - low)[1]]) @ turn
    return crop(_square(middle[0], middle[1], 2 * max((high - low).max(), 1.0)), LANDMARK_SIZE, rotation=rotation, flip=flip)


def _turn_up(direction: np.ndarray) -> float:
    """Degrees, from x towards y, that turn `direction` (2,) upwards."""
    return float(-90 - np.rad2deg(np.arctan2(direction[1], direction[0])))


def look(image: np.ndarray, region: Callable[[bool], View]) -> Hand:
    """The landmark network on a region, as it is and mirrored, averaged by how sure it is that there is a hand."""
    run, looks = network(LANDMARK), []
    for flip in (False, True):
        view = region(flip)
        points, presence, right, _ = run(view.warp(image))
        side = float(right[0])
        looks.append(Hand(view.to_original(points.reshape(21, 3)[:, :2]), 1 - side if flip else side, float(presence[0])))
    weights = np.array([one.score for one in looks]) + 1e-6
    landmarks = np.average([one.landmarks for one in looks], axis=0, weights=weights)
    right_probability = float(np.average([one.right for one in looks], weights=weights))
    return Hand(landmarks, right_probability, float(np.mean([one.score for one in looks])))


def look_twice(image: np.ndarray, palm: Palm) -> Hand | None:
    """The hand of a palm: a look at the palm's region, a closer one at the landmarks' own. None if the first sees none.

    Its score is the product of both looks' presence: what is not a hand rarely looks like one from two regions.
    """
    first = look(image, lambda flip: palm_region(palm, flip))
    if first.score < PROMISING:
        return None
    second = look(image, lambda flip: landmark_region(first.landmarks, flip))
    return Hand(second.landmarks, second.right, first.score * second.score)


def tight_box(landmarks: np.ndarray, size: tuple[int, int]) -> Numbers:
    """xyxy: the landmarks' box with a margin of skin, cut at the picture's edge; `size` (width, height)."""
    low, high = landmarks.min(0), landmarks.max(0)
    margin = MARGIN * (high - low).max()
    (x1, y1), (x2, y2) = np.clip(low - margin, 0, size), np.clip(high + margin, 0, size)
    return (float(x1), float(y1), float(x2), float(y2))


def drop_duplicates(hands: list[Hand]) -> list[Hand]:
    """The best of hands that are one hand: boxes that mostly coincide, or centres closer than a quarter of the hand, whatever the side."""
    kept: list[Hand] = []
    for hand in sorted(hands, key=lambda hand: -hand.score):
        if not any(_same_hand(hand.landmarks, other.landmarks) for other in kept):
            kept.append(hand)
    return kept


def _same_hand(one: np.ndarray, other: np.ndarray) -> bool:
    boxes = [np.concatenate([points.min(0), points.max(0)]) for points in (one, other)]
    size = np.sqrt(np.prod(boxes[1][2:] - boxes[1][:2]))
    return bool(box_iou(boxes[0], boxes[1]) > 0.4 or np.linalg.norm(one - other, axis=1).mean() < 0.25 * size)


SAME_SIDE = -4.0
CROSSED = -2.5
"""Log-odds of two hands in a picture being both left or both right, and of arms that cross."""


def sides(hands: list[Hand]) -> list[Side]:
    """The side of each hand. Two hands are judged together: most likely one person's, and not crossed.

    Fingers up, as one sees one's own hands, the left hand is on the left; fingers down, as on someone facing the camera, on the right.
    """
    odds = [float(np.log(p / (1 - p))) for p in np.clip([hand.right for hand in hands], 0.01, 0.99)]
    if len(hands) != 2:
        return ["right" if value > 0 else "left" for value in odds]
    up = [float(np.sign(hand.landmarks[0, 1] - hand.landmarks[9, 1])) for hand in hands]
    order = float(np.sign(hands[1].landmarks[:, 0].mean() - hands[0].landmarks[:, 0].mean()))
    expected = order * up[0] if up[0] == up[1] else 0.0  # +1: hand 0 should be the left one, 0: nothing is expected

    def likelihood(pair: tuple[int, int]) -> float:
        prior = SAME_SIDE if pair[0] == pair[1] else CROSSED if expected and pair[1] != expected else 0.0
        return prior + (pair[0] * odds[0] + pair[1] * odds[1]) / 2

    best = max(((-1, 1), (1, -1), (-1, -1), (1, 1)), key=likelihood)
    return ["right" if sign > 0 else "left" for sign in best]


def find_hands(image: np.ndarray, threshold: float = 0.5) -> list[tuple[Hand, Side]]:
    """Hands in RGB uint8 (H, W, 3) with score ≥ `threshold`, best first; landmarks in pixels of `image`.

    Raises BackendMissing when the networks or their runtime are not there.
    """
    size = (image.shape[1], image.shape[0])
    shrink = min(1.0, LARGEST_SIDE / max(size))
    view = squash(size, (max(1, round(size[0] * shrink)), max(1, round(size[1] * shrink))))
    small = view.warp(image)
    seen = [look_twice(small, palm) for palm in find_palms(small)]
    hands = drop_duplicates([hand for hand in seen if hand is not None and hand.score >= threshold])
    hands = [Hand(view.to_original(hand.landmarks), hand.right, hand.score) for hand in hands]
    return list(zip(hands, sides(hands), strict=True))
