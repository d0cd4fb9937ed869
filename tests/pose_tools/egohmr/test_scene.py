"""Crops of scanned rooms, by their rules and against odd rooms."""

import numpy as np
import pytest

from pose_tools.egohmr.scene import SceneError, crop_stage1, crop_stage2, shift_limits, spread_indices, transform, turn_about_vertical

RNG = np.random.default_rng(0)
ROOM = RNG.uniform([-3, -1.2, -3], [3, 2.0, 3], (20000, 3))
KINECT = np.array([[0.0, 0, 1, 0.2], [0, 1, 0, -0.1], [-1, 0, 0, 0.3], [0, 0, 0, 1]])
CAMERA = np.diag([1.0, -1, -1, 1])


def test_stage1_keeps_what_is_in_front_evenly():
    crop = crop_stage1(ROOM, KINECT, CAMERA, target=2000)
    in_camera = transform(transform(ROOM, KINECT), CAMERA)
    front = np.flatnonzero(in_camera[:, 2] > 0)
    assert np.allclose(crop, transform(ROOM, KINECT)[front[:: len(front) // 2000][:2000]])


@pytest.mark.parametrize("angle", [0.0, 0.7, 4.0])
def test_stage2_cuts_a_turned_cube_on_the_floor(angle):
    centre = np.array([0.5, 0.0, -0.4])
    crop = crop_stage2(ROOM, centre, angle=angle, target=800)
    turned = turn_about_vertical(crop, centre, angle)
    assert (np.abs(turned[:, [0, 2]] - centre[[0, 2]]) <= 1 + 1e-9).all()
    assert crop[:, 1].max() <= crop[:, 1].min() + 2 and {tuple(p) for p in crop} <= {tuple(p) for p in ROOM}
    inside = (np.abs(turn_about_vertical(ROOM, centre, angle)[:, [0, 2]] - centre[[0, 2]]) <= 1).all(1)
    left = ROOM[inside]
    left = left[left[:, 1] <= left[:, 1].min() + 2]
    assert np.array_equal(crop, left[:: len(left) // 800][:800])
    assert np.allclose(turn_about_vertical(turned, centre, -angle), crop)


def test_a_training_cube_holds_the_body():
    body = RNG.normal([0.3, 0.2, 0.1], [0.25, 0.4, 0.2], (300, 3)).clip(-0.5, 0.8)
    centre = body.mean(0)
    for seed in range(5):
        angle = float(np.random.default_rng(seed).uniform(0, 2 * np.pi))
        limits = shift_limits(body, centre, angle)
        turned = turn_about_vertical(body, centre, angle)
        for axis, (low, high) in zip((0, 2), limits, strict=True):
            assert -0.5 <= low <= high <= 0.5
            for shift in (low, high):
                assert (np.abs(turned[:, axis] - centre[axis] - shift) <= 1 + 1e-9).all()
    first, again, other = (crop_stage2(ROOM, centre, body=body, seed=seed, target=500) for seed in (1, 1, 2))
    assert np.array_equal(first, again) and not np.array_equal(first, other)


def test_few_points_are_repeated_and_broken_ones_left_out(caplog):
    few = np.concatenate([RNG.uniform(-0.4, 0.4, (10, 3)), [[np.nan, 0, 0]]])
    crop = crop_stage2(few, np.zeros(3), angle=0.0, target=64)
    assert crop.shape == (64, 3) and {tuple(p) for p in crop} == {tuple(p) for p in few[:10]} and "not finite" in caplog.text
    assert np.array_equal(spread_indices(10, 10), np.arange(10)) and len(spread_indices(29, 10)) == 10


@pytest.mark.parametrize("points", [np.zeros((0, 3)), np.full((4, 3), np.nan), np.zeros((5, 2)), np.full((4, 3), 100.0)])
def test_rooms_without_a_point_are_refused(points):
    with pytest.raises(SceneError):
        crop_stage2(points, np.zeros(3), angle=0.0)


def test_centres_and_directions_are_checked():
    with pytest.raises(SceneError, match="centre"):
        crop_stage2(ROOM, [np.nan, 0, 0])
    with pytest.raises(SceneError, match="in front"):
        crop_stage1(np.array([[0.0, 0, -5]]), np.eye(4), np.eye(4))
    with pytest.raises(SceneError, match="transform"):
        crop_stage1(ROOM, np.eye(3), np.eye(4))


def test_an_outlier_below_the_floor_moves_only_the_published_cube():
    room = np.concatenate([ROOM, [[0.0, -9, 0]]])
    assert (crop_stage2(room, np.zeros(3), angle=0.0, target=100)[:, 1] < -6).all()
    assert crop_stage2(room, np.zeros(3), angle=0.0, target=100, floor=0.001)[:, 1].max() > 0.5
