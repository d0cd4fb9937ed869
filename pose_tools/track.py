"""The wearer's hands over a clip: one path for the left hand, one for the right.

The frames' detections are joined so that each hand keeps its identity (`track_association.py`): a frame in which the detector takes
one side for the other is put right, hands that cross stay who they are, what is seen for one doubtful moment is left out. Short
gaps are filled and marked, and boxes are smoothed as far as a hand can move between two frames. `smooth=False` is the raw detector.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from pose_tools.detect import (
    THRESHOLDS,
    TOKEN_WIDTH,
    HandDetection,
    best_of_side,
    check_image,
    detect_hands,
    resolve_backend,
    sort_detections,
)
from pose_tools.kalman import MotionModel, kalman_smoother
from pose_tools.track_association import associate
from pose_tools.types import SIDES, Side

VERSION = 1
"""Raised whenever the same detections give other tracks, for caches."""
LONGEST_GAP = 0.6
"""Seconds without a detection that are filled."""
MOTION = MotionModel(process_noise=40.0, measurement_noise=0.05, prior=(3.0,))
"""How a hand moves and how exact its box is, in hand sizes: at 4 Hz boxes stay nearly as they are, at 30 Hz they lose their jitter."""
BATCH = 32

Detector = Callable[[Sequence[np.ndarray]], Sequence[Sequence[HandDetection]]]


@dataclass(frozen=True, eq=False)
class HandTrack:
    """One hand of the wearer over the T frames of a clip, each box in the pixels of its own frame.

    `times` (T,) seconds. `bbox_xyxy` (T, 4) float64, NaN where there is no hand. `seen` (T,) bool: detected in that frame; a box that
    is not seen fills a gap. `score` (T,) 0..1: the detection's; a filled one has half the lesser of the scores beside the gap; 0 without
    a box. `object_bbox` (T, 4): what the hand holds, NaN if nothing; `object_score` (T,).
    """

    side: Side
    times: np.ndarray
    bbox_xyxy: np.ndarray
    score: np.ndarray
    seen: np.ndarray
    object_bbox: np.ndarray
    object_score: np.ndarray

    @property
    def points(self) -> np.ndarray:
        """(T, 2) centres of the boxes, NaN where there is no hand."""
        return (self.bbox_xyxy[:, :2] + self.bbox_xyxy[:, 2:]) / 2

    @property
    def present(self) -> np.ndarray:
        """(T,) bool: there is a box, seen or filled."""
        return np.isfinite(self.bbox_xyxy[:, 0])


def track_hands(
    frames: Sequence[np.ndarray],
    fps: float,
    *,
    detector: Detector | None = None,
    smooth: bool = True,
    times: Sequence[float] | None = None,
) -> list[HandTrack]:
    """The wearer's hands in a clip.

    Args:
        frames: RGB uint8 (H, W, 3), in order; frames with the same pixels are looked at once.
        fps: frames per second.
        detector: frames → detections of each; None is `detect_frames`, the detector that `detect_hands` uses.
        smooth: keep identities, fill gaps and smooth; False gives the best detection of each side in each frame as it is.
        times: (T,) seconds of the frames where these are not evenly spaced; they must rise.

    Returns:
        At most one track per side, left first; none for a side that is in no frame.

    Raises:
        BackendMissing: the detector's weights or runtime are not there.
        ValueError: frames that are no pictures, an fps that is not positive, or times that do not rise.
    """
    if times is None:
        if not (np.isfinite(fps) and fps > 0):
            raise ValueError(f"track_hands: fps is {fps}, expected frames per second, above 0")
        times = (np.arange(len(frames)) / fps).tolist()
    distinct: dict[bytes, int] = {}
    numbers = [distinct.setdefault(_digest(frame), len(distinct)) for frame in frames]
    firsts = [numbers.index(i) for i in range(len(distinct))]
    found = (detector or detect_frames)([frames[i] for i in firsts])
    return join([found[i] for i in numbers], times, smooth=smooth)


def detect_frames(frames: Sequence[np.ndarray]) -> list[list[HandDetection]]:
    """`detect_hands` for each frame, the small detector in batches."""
    if resolve_backend() != "small":
        return [detect_hands(frame) for frame in frames]
    from pose_tools.small_detector import load_small_detector

    model = load_small_detector()
    batches = (frames[first : first + BATCH] for first in range(0, len(frames), BATCH))
    return [sort_detections(hands) for batch in batches for hands in model.detect_batch(batch, least=THRESHOLDS["small"])]


def join(detections: Sequence[Sequence[HandDetection]], times: Sequence[float], *, smooth: bool = True) -> list[HandTrack]:
    """Tracks from the detections of each frame, at `times` (T,) seconds; see `track_hands`."""
    moments = np.asarray(times, np.float64)
    if moments.shape != (len(detections),) or not np.isfinite(moments).all() or (np.diff(moments) <= 0).any():
        raise ValueError(f"{len(detections)} frames need as many rising times, got {moments.tolist()[:12]}")
    if smooth:
        chosen = associate(detections, moments.tolist())
        hands = [[frame[i] if i >= 0 else None for frame, i in zip(detections, chosen[:, row], strict=True)] for row in range(2)]
    else:
        hands = [[best_of_side(frame, side) for frame in detections] for side in SIDES]
    tracks = [_raw(side, moments, path) for side, path in zip(SIDES, hands, strict=True) if any(path)]
    return [_smoothed(track) for track in tracks] if smooth else tracks


def track_tokens(tracks: Sequence[HandTrack], count: int) -> np.ndarray:
    """(2 · count, 11) float32 for a clip of `count` frames: frame after frame, left hand then right, columns as in `detection_tokens`.

    A frame without a hand is a row of NaN; a filled gap is a row like others, with its low score.
    """
    tokens = np.full((count, 2, TOKEN_WIDTH), np.nan, np.float32)
    for track in tracks:
        if len(track.times) != count:
            raise ValueError(f"the {track.side} track has {len(track.times)} frames, the clip {count}")
        row = SIDES.index(track.side)
        there = track.present
        side = np.full(count, 2.0 * row - 1)
        columns = [track.bbox_xyxy, side[:, None], track.score[:, None], track.object_bbox, track.object_score[:, None]]
        tokens[there, row] = np.hstack(columns)[there]
    return tokens.reshape(2 * count, TOKEN_WIDTH)


def _raw(side: Side, times: np.ndarray, hands: Sequence[HandDetection | None]) -> HandTrack:
    count = len(hands)
    boxes, things = np.full((2, count, 4), np.nan)
    score, thing_score = np.zeros((2, count))
    for t, hand in enumerate(hands):
        if hand is not None:
            boxes[t], score[t] = hand.bbox_xyxy, hand.score
            if hand.object_bbox is not None:
                things[t], thing_score[t] = hand.object_bbox, 1.0 if hand.object_score is None else hand.object_score
    return HandTrack(side, times, boxes, score, np.array([hand is not None for hand in hands]), things, thing_score)


def _smoothed(track: HandTrack) -> HandTrack:
    """Boxes as the smoother puts them, with short gaps between seen frames filled."""
    seen = np.flatnonzero(track.seen)
    corners = track.bbox_xyxy.reshape(-1, 2, 2)
    sizes = corners[:, 1] - corners[:, 0]
    hand_size = max(1.0, float(np.median(np.sqrt(sizes[seen].prod(-1)))))
    values = np.hstack([corners.mean(1), sizes])
    smoothed, _ = kalman_smoother(values[None], track.seen[None], track.times[None], MOTION.scaled(hand_size))
    centre, size = smoothed[0, :, :2], np.clip(smoothed[0, :, 2:], sizes[seen].min(0), sizes[seen].max(0))
    boxes, score = np.hstack([centre - size / 2, centre + size / 2]), track.score.copy()
    kept = track.seen.copy()
    for before, after in zip(seen[:-1], seen[1:], strict=True):
        if after > before + 1 and track.times[after] - track.times[before] <= LONGEST_GAP + 1e-6:
            kept[before + 1 : after] = True
            score[before + 1 : after] = 0.5 * min(score[before], score[after])
    boxes[~kept] = np.nan
    return HandTrack(track.side, track.times, boxes, score, track.seen, track.object_bbox, track.object_score)


def _digest(frame: np.ndarray) -> bytes:
    frame = np.ascontiguousarray(check_image(frame))
    return hashlib.blake2b(frame.view(np.uint8).data, digest_size=16, person=str(frame.shape).encode()[:16]).digest()
