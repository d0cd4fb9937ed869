"""Tracks from detections that are there already: identities kept, gaps filled and marked, and nothing done where nothing is wanted."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import pose_tools.track
from pose_tools.detect import HandDetection, detection_tokens
from pose_tools.track import HandTrack, detect_frames, join, track_hands, track_tokens
from pose_tools.track_association import associate

WIDTH = 192
TIMES = (np.arange(10) / 4).tolist()


def hand(x: float, y: float, side: str, score: float = 0.9, size: float = 40.0, **more) -> HandDetection:
    return HandDetection((x - size / 2, y - size / 2, x + size / 2, y + size / 2), side, score, **more)  # type: ignore[arg-type]


def mirrored(hands: list[HandDetection]) -> list[HandDetection]:
    def flip(box):
        return None if box is None else (WIDTH - box[2], box[1], WIDTH - box[0], box[3])

    other = {"left": "right", "right": "left"}
    return [replace(h, bbox_xyxy=flip(h.bbox_xyxy), object_bbox=flip(h.object_bbox), side=other[h.side]) for h in hands]


def both(t: float) -> list[HandDetection]:
    """Two hands that move apart a little, `t` in 0…1."""
    return [hand(60 - 20 * t, 120, "left"), hand(130 + 20 * t, 110 - 30 * t, "right")]


def clip(count: int = 10) -> list[list[HandDetection]]:
    return [both(i / (count - 1)) for i in range(count)]


def swapped(hands: list[HandDetection]) -> list[HandDetection]:
    return [replace(h, side="right" if h.side == "left" else "left") for h in hands]


def track_of(tracks: list[HandTrack], side: str) -> HandTrack:
    (found,) = [track for track in tracks if track.side == side]
    return found


@pytest.mark.parametrize("smooth", [True, False])
def test_a_clean_clip_is_two_tracks_of_what_was_detected(smooth):
    tracks = join(clip(), TIMES, smooth=smooth)
    assert [track.side for track in tracks] == ["left", "right"]
    for row, track in enumerate(tracks):
        boxes = np.array([frame[row].bbox_xyxy for frame in clip()])
        assert track.seen.all() and (track.score == 0.9).all()
        np.testing.assert_allclose(track.bbox_xyxy, boxes, atol=0.5 if smooth else 0)
        np.testing.assert_allclose(track.points, (boxes[:, :2] + boxes[:, 2:]) / 2, atol=0.5 if smooth else 0)


def test_a_flip_of_one_or_two_frames_is_repaired_wherever_it_comes():
    clean = join(clip(), TIMES)
    for length in (1, 2):
        for first in range(11 - length):
            flipped = [swapped(frame) if first <= t < first + length else frame for t, frame in enumerate(clip())]
            for a, b in zip(join(flipped, TIMES), clean, strict=True):
                np.testing.assert_allclose(a.bbox_xyxy, b.bbox_xyxy)
            alone = [[replace(frame[0], side="right")] if first <= t < first + length else frame[:1] for t, frame in enumerate(clip())]
            (track,) = join(alone, TIMES)
            assert track.side == "left" and track.seen.all()
    raw = join([swapped(frame) if t == 4 else frame for t, frame in enumerate(clip())], TIMES, smooth=False)
    assert track_of(raw, "left").points[4, 0] > 100  # the raw detector is shown as it is


def test_a_side_that_is_wrong_more_often_than_not_is_the_other_side():
    frames = [[replace(frame[0], side="right" if t % 3 else "left")] for t, frame in enumerate(clip())]
    (track,) = join(frames, TIMES)
    assert track.side == "right" and track.seen.all()


def test_crossing_hands_keep_who_they_are_although_the_detector_is_confused_where_they_meet():
    frames = []
    for t in range(10):
        left, right = hand(40 + 12 * t, 100, "left"), hand(150 - 12 * t, 130, "right")
        frames.append(swapped([left, right]) if t == 4 else [left, right])
    tracks = join(frames, TIMES)
    np.testing.assert_allclose(track_of(tracks, "left").points[:, 0], 40 + 12 * np.arange(10), atol=1)
    np.testing.assert_allclose(track_of(tracks, "right").points[:, 0], 150 - 12 * np.arange(10), atol=1)


def test_a_hand_that_leaves_and_the_other_that_comes_are_two_tracks():
    frames = [[hand(50, 120, "left")] if t < 5 else [hand(60, 125, "right")] for t in range(10)]
    left, right = join(frames, TIMES)
    assert left.seen.tolist() == [True] * 5 + [False] * 5 and right.seen.tolist() == [False] * 5 + [True] * 5
    assert np.isnan(left.bbox_xyxy[5:]).all() and (left.score[5:] == 0).all()


def test_a_hand_that_comes_in_the_last_frame_is_kept_and_a_doubtful_moment_is_not():
    sure = [[hand(50, 120, "left")] for _ in range(9)] + [[hand(50, 120, "left"), hand(150, 60, "right", 0.8)]]
    assert track_of(join(sure, TIMES), "right").seen.tolist() == [False] * 9 + [True]
    doubtful = [[hand(50, 120, "left")] + ([hand(150, 60, "right", 0.55)] if t == 4 else []) for t in range(10)]
    assert [track.side for track in join(doubtful, TIMES)] == ["left"]
    assert [track.side for track in join(doubtful, TIMES, smooth=False)] == ["left", "right"]


def test_one_hand_that_is_detected_as_both_is_one_track():
    frames = [[hand(50, 120, "left"), hand(51, 120, "right", 0.6)] for _ in range(10)]
    assert [track.side for track in join(frames, TIMES)] == ["left"]


def test_short_gaps_are_filled_and_marked_and_long_ones_stay():
    line = [[hand(30 + 10 * t, 100, "right", 0.9 - 0.02 * t, object_bbox=(1.0, 2.0, 3.0, 4.0))] for t in range(10)]
    frames = [[] if t in (2, 5, 6, 7) else frame for t, frame in enumerate(line)]
    (track,) = join(frames, TIMES)
    assert track.seen.tolist() == [t not in (2, 5, 6, 7) for t in range(10)]
    assert track.present.tolist() == [t not in (5, 6, 7) for t in range(10)]
    np.testing.assert_allclose(track.points[2], [50, 100], atol=0.5)
    assert track.score[2] == pytest.approx(0.5 * 0.84) and np.isnan(track.object_bbox[2]).all() and track.object_score[2] == 0
    (raw,) = join(frames, TIMES, smooth=False)
    assert (raw.present == raw.seen).all()


def test_jitter_is_smoothed_at_30_hz_and_left_at_4_hz():
    rng = np.random.default_rng(0)
    still = [[hand(90 + rng.normal(0, 2), 100 + rng.normal(0, 2), "right")] for _ in range(60)]
    spread = {}
    for rate in (4, 30):
        (track,) = join(still, (np.arange(60) / rate).tolist())
        spread[rate] = np.abs(track.points - [90, 100]).mean()
    raw = np.abs(join(still, range(60), smooth=False)[0].points - [90, 100]).mean()
    assert spread[30] < 0.7 * raw and 0.9 * raw < spread[4] < 1.02 * raw


def random_clip(seed: int) -> tuple[list[list[HandDetection]], list[float]]:
    rng = np.random.default_rng(seed)
    frames = []
    for _ in range(rng.integers(1, 12)):
        hands = [
            hand(*rng.uniform(20, 170, 2), rng.choice(["left", "right"]), rng.uniform(0.5, 1), rng.uniform(5, 60))
            for _ in range(rng.integers(0, 4))
        ]
        frames.append([replace(h, object_bbox=(1.0, 2.0, 30.0, 40.0), object_score=0.7) if rng.random() < 0.3 else h for h in hands])
    return frames, np.cumsum(rng.uniform(0.02, 0.5, len(frames))).tolist()


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1), st.booleans())
def test_the_mirrored_clip_has_the_mirrored_tracks(seed, smooth):
    frames, times = random_clip(seed)
    plain = track_tokens(join(frames, times, smooth=smooth), len(frames)).reshape(-1, 2, 11)
    flipped = track_tokens(join([mirrored(f) for f in frames], times, smooth=smooth), len(frames)).reshape(-1, 2, 11)
    back = flipped[:, ::-1].copy()
    back[..., [0, 2, 6, 8]] = WIDTH - back[..., [2, 0, 8, 6]]
    back[..., 4] *= -1
    np.testing.assert_allclose(back, plain, atol=1e-3)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 2**32 - 1))
def test_any_detections_give_sound_tracks(seed):
    frames, times = random_clip(seed)
    chosen = associate(frames, times)
    for hands, pair in zip(frames, chosen, strict=True):
        assert all(-1 <= i < len(hands) for i in pair) and (pair[0] != pair[1] or pair[0] == -1)
    for track in join(frames, times):
        boxes = track.bbox_xyxy[track.present]
        assert (boxes[:, 2:] > boxes[:, :2]).all() and track.seen.any() and not (track.seen & ~track.present).any()
        assert ((track.score > 0) == track.present).all()


def test_tokens_without_smoothing_are_those_of_each_frame():
    frames, times = random_clip(3)
    tokens = track_tokens(join(frames, times, smooth=False), len(frames))
    np.testing.assert_array_equal(tokens, np.vstack([detection_tokens(hands) for hands in frames]))
    assert tokens.dtype == np.float32 and np.isnan(track_tokens([], 3)).all() and track_tokens([], 3).shape == (6, 11)
    assert join([[], []], [0, 1]) == []
    with pytest.raises(ValueError, match="left track has 10 frames, the clip 9"):
        track_tokens(join(clip(), TIMES), 9)


def test_a_clip_later_on_the_clock_is_the_same_clip():
    frames, times = random_clip(5)
    a, b = (track_tokens(join(frames, [t + shift for t in times]), len(frames)) for shift in (0, 1000))
    np.testing.assert_allclose(a, b, atol=1e-4)


@dataclass
class Counting:
    """A detector that finds what the brightness of a frame says."""

    calls: list[int] = field(default_factory=list)

    def __call__(self, frames):
        self.calls.append(len(frames))
        return [[hand(float(frame[0, 0, 0]), 50, "left")] for frame in frames]


def test_frames_that_come_again_are_looked_at_once():
    frames = [np.full((8, 8, 3), value, np.uint8) for value in (50, 50, 50, 60, 70, 50)]
    detector = Counting()
    (track,) = track_hands(frames, 4.0, detector=detector, smooth=False)
    assert detector.calls == [3] and track.points[:, 0].tolist() == [50, 50, 50, 60, 70, 50]
    np.testing.assert_allclose(track.times, np.arange(6) / 4)
    (uneven,) = track_hands(frames, 0.0, detector=detector, times=[0, 1, 2, 4, 8, 9])
    assert uneven.times.tolist() == [0, 1, 2, 4, 8, 9]
    assert track_hands([], 4.0, detector=lambda frames: []) == []


def test_the_batched_detector_is_the_single_one(tmp_path, monkeypatch):
    import torch

    from pose_tools import small_detector as small
    from pose_tools.detect import detect_hands

    torch.manual_seed(0)
    sizes = {"image_size": 96, "embedding_size": 8, "hidden_sizes": (8, 16, 32), "depths": (1, 1, 1)}
    small.SmallDetector(small.SmallDetectorConfig(("cup",), ("red",), calibration=((1.0, 20.0),) * 4, **sizes)).eval().save(tmp_path)
    monkeypatch.setattr(small, "DEFAULT_FOLDER", tmp_path)
    monkeypatch.setenv("HANDVLM_HANDS", "small")
    monkeypatch.setattr(pose_tools.track, "BATCH", 2)
    frames = list(np.random.default_rng(0).integers(0, 256, (5, 40, 60, 3), dtype=np.uint8))
    for together, frame in zip(detect_frames(frames), frames, strict=True):
        alone = detect_hands(frame)
        assert [h.side for h in together] == [h.side for h in alone] == ["left", "right"]
        np.testing.assert_allclose([h.bbox_xyxy for h in together], [h.bbox_xyxy for h in alone], atol=1e-3)
    raw = track_tokens(track_hands(frames, 30.0, smooth=False), 5)
    np.testing.assert_allclose(raw, np.vstack([detection_tokens(detect_hands(frame)) for frame in frames]), atol=1e-3)


def test_wrong_arguments_are_named():
    frame = np.zeros((8, 8, 3), np.uint8)
    for fps in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="fps"):
            track_hands([frame], fps, detector=Counting())
    with pytest.raises(ValueError, match="RGB uint8"):
        track_hands([frame[..., 0]], 4.0, detector=Counting())
    with pytest.raises(ValueError, match="rising times"):
        track_hands([frame, frame], 4.0, detector=Counting(), times=[1, 1])
