"""Paths drawn on the last frame and as a clip: what grows ends as what is drawn at once."""

from __future__ import annotations

import numpy as np
import pytest

from pose_tools.render import Canvas
from pose_tools.render_path import CLIP_FPS, FramePaths, draw_paths, path_clip

RNG = np.random.default_rng(0)
FRAME = RNG.integers(0, 255, (60, 80, 3), dtype=np.uint8)


def paths(samples: bool = True) -> FramePaths:
    points = np.cumsum(RNG.uniform(1, 5, (2, 4, 2)), 1) + [[[10, 10]], [[40, 20]]]
    others = points + RNG.normal(size=(3, 2, 4, 2)) if samples else None
    return FramePaths(points, np.ones((2, 4), bool), points[:, 0] - 3, np.full((2, 4), 2.0), others)


def same(a: FramePaths, b: FramePaths) -> None:
    for name in ("points", "now", "spread", "samples"):
        np.testing.assert_allclose(getattr(a, name), getattr(b, name), atol=1e-9)


def test_a_path_up_to_a_step_ends_at_that_step() -> None:
    whole = paths()
    same(whole.until(1.0), whole)
    assert whole.samples is not None and whole.now is not None
    for steps in (1, 2, 3):
        grown = whole.until(steps / 4)
        np.testing.assert_allclose(grown.points[:, :steps], whole.points[:, :steps])
        np.testing.assert_allclose(grown.points[:, steps], whole.points[:, steps - 1])  # the tip is on the step
    np.testing.assert_allclose(whole.until(0.125).points[:, 0], (whole.now + whole.points[:, 0]) / 2)
    np.testing.assert_allclose(whole.until(0.0).points[:, 0], whole.now)


def test_scaled_paths_on_a_scaled_frame_are_the_same_picture() -> None:
    whole, twice = paths(), np.repeat(np.repeat(FRAME, 2, 0), 2, 1)
    plain = np.zeros_like(FRAME), np.zeros_like(twice)
    small = draw_paths(Canvas(plain[0]), whole).array()
    large = draw_paths(Canvas(plain[1]), whole.scaled(2)).array()
    np.testing.assert_array_equal(small, large)


def test_the_clip_shows_what_was_seen_and_ends_with_the_whole_path() -> None:
    whole, frames = paths(), [FRAME, FRAME[::-1].copy(), FRAME[:, ::-1].copy()]
    clip = path_clip(frames, whole, rate=4.0, hold=0.5)
    shown = CLIP_FPS // 4
    assert len(clip) == 2 * shown + CLIP_FPS + 1 + CLIP_FPS // 2
    np.testing.assert_array_equal(clip[0], Canvas(frames[0]).array())
    np.testing.assert_array_equal(clip[shown], Canvas(frames[1]).array())
    np.testing.assert_array_equal(clip[-1], draw_paths(Canvas(frames[2]), whole).array())
    assert {frame.shape for frame in clip} == {clip[0].shape}


@pytest.mark.parametrize("now", [None, np.full((2, 2), np.nan)])
def test_a_hand_that_is_not_there_is_not_drawn(now: np.ndarray | None) -> None:
    whole = paths(samples=False)
    nothing = FramePaths(whole.points, np.zeros((2, 4), bool), whole.now)
    np.testing.assert_array_equal(draw_paths(Canvas(FRAME), nothing).array(), Canvas(FRAME).array())
    start_unknown = FramePaths(whole.points, whole.valid, now, whole.spread)
    assert not np.array_equal(draw_paths(Canvas(FRAME), start_unknown).array(), Canvas(FRAME).array())
    unknown = FramePaths(np.full((2, 4, 2), np.nan), None, now)
    np.testing.assert_array_equal(path_clip([FRAME], unknown, rate=4.0)[-1], Canvas(FRAME).array())


def test_a_large_frame_is_made_smaller_with_its_path() -> None:
    frame = np.zeros((1200, 1920, 3), np.uint8)
    clip = path_clip([frame], paths().scaled(20), rate=4.0)
    assert max(clip[0].shape) == 960 and (clip[-1] > 0).any()
