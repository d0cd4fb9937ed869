"""Homographies between frames whose camera is known, and frames that say nothing about it."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pose_tools import camera_motion
from pose_tools.camera_motion import move, register

SIZE = (200, 150)


def world(seed: int = 0) -> np.ndarray:
    """A wall with much on it, (400, 500, 3)."""
    rng = np.random.default_rng(seed)
    noise = sum(cv2.resize(rng.normal(size=(400 // s, 500 // s, 3)), (500, 400), interpolation=cv2.INTER_CUBIC) for s in (5, 10, 25))
    return np.clip(128 + 30 * noise, 0, 255).astype(np.uint8)


def camera(step: float) -> np.ndarray:
    """(3, 3) from the wall to pixels of a frame."""
    turn, zoom = np.radians(4 * step), 1 + 0.1 * step
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    return np.array([[c, -s, -140 - 25 * step], [s, c, -110 + 8 * step], [1e-4 * step, -5e-5 * step, 1.0]])


def frame(step: float, wall: np.ndarray) -> np.ndarray:
    return cv2.warpPerspective(wall, camera(step), SIZE, flags=cv2.INTER_LINEAR)


def corners() -> np.ndarray:
    return np.array([[0, 0], [SIZE[0], 0], [SIZE[0] / 2, SIZE[1] / 2], [0, SIZE[1]], SIZE], float)


def test_a_known_camera_is_found():
    steps = [0.0, 0.3, 1.0, 1.0, -0.5]
    found = register([frame(step, world()) for step in steps])
    assert found.found.all() and found.matches.min() > 30
    for step, homography in zip(steps, found.homographies, strict=True):
        truth = camera(steps[0]) @ np.linalg.inv(camera(step))
        np.testing.assert_allclose(move(corners(), homography), move(corners(), truth), atol=1.0)
    np.testing.assert_array_equal(found.homographies[0], np.eye(3))


def test_what_moves_by_itself_is_left_out(monkeypatch):
    """A poster that covers most of the picture moves against the wall: with its box given, the wall is followed."""
    poster, frames, boxes = world(1), [], []
    for step in range(3):
        picture, x = frame(0.4 * step, world()), 20 + 9 * step
        picture[20:130, x : x + 130] = poster[20:130, 20:150]
        frames.append(picture)
        boxes.append(np.array([[x, 20, x + 130, 130], [np.nan] * 4], float))
    monkeypatch.setattr(camera_motion, "HAND_MARGIN", 0.02)
    led, told = register(frames), register(frames, boxes)
    truth = move(corners(), camera(0) @ np.linalg.inv(camera(0.8)))
    assert np.abs(move(corners(), told.homographies[2]) - truth).max() < 3
    assert np.abs(move(corners(), led.homographies[2]) - truth).max() > 10


def test_through_a_frame_between_where_two_share_nothing():
    steps = [0.0, 2.0, 4.0, 5.5]
    frames = [frame(step, world()) for step in steps]
    direct, through = register([frames[0], frames[-1]]), register(frames)
    assert not direct.found[1] and through.found.all()
    truth = move(corners(), camera(0) @ np.linalg.inv(camera(5.5)))
    assert np.abs(move(corners(), through.homographies[-1]) - truth).max() < 6


def test_plain_pictures_give_no_homography_and_are_passed_over():
    plain = np.full((SIZE[1], SIZE[0], 3), 90, np.uint8)
    found = register([frame(0, world()), plain, frame(0.3, world())])
    assert found.found.tolist() == [True, False, True] and np.isnan(found.homographies[1]).all() and found.matches[1] == 0
    assert register([plain, plain]).found.tolist() == [True, False]
    assert register([]).homographies.shape == (0, 3, 3)


def test_another_place_is_not_the_same():
    assert register([frame(0, world()), frame(0, world(7))]).found.tolist() == [True, False]


def test_sizes_and_boxes_must_agree():
    with pytest.raises(ValueError, match="expected one"):
        register([np.zeros((4, 4, 3), np.uint8), np.zeros((4, 5, 3), np.uint8)])
    with pytest.raises(ValueError, match="boxes of 1 frames for 2"):
        register([np.zeros((4, 4, 3), np.uint8)] * 2, [np.zeros((0, 4))])


def test_points_behind_the_camera_are_not_a_number():
    away = np.array([[1.0, 0, 0], [0, 1, 0], [0.01, 0, 1]])
    assert np.isnan(move(np.array([-200.0, 0]), away)).all()
    np.testing.assert_allclose(move(np.array([100.0, 10]), away), [50, 5])
