"""Clips of the synthetic world: what moves, moves as said; one start has several futures; homographies are exact."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from data.synthetic import clips, factors, world
from data.synthetic.clip_frames import Stage, draw_frame, homography, pad_of, within_canvas
from data.synthetic.clip_motion import minimum_jerk, time_share, turning_camera
from data.synthetic.clip_stories import ACTIONS, count_before, draw_plan
from data.synthetic.frame import Frame

SIZE = (96, 96)
SEED = 11


def plan(index: int, split: factors.Split = "train"):
    return draw_plan(world.picture_rng(SEED, split, index, clips.STREAM), split, index)


@cache
def clip(index: int) -> clips.ClipScene:
    return clips.make_clip(SEED, "train", index, SIZE)


@cache
def clip_of(story: str) -> clips.ClipScene:
    return next(found for index in range(1, 200, 2) if plan(index).story == story and (found := clip(index)).record["story"] == story)


def some() -> list[clips.ClipScene]:
    """Two clips with several actions, one of each other story."""
    return [clip(0), clip(2), *(clip_of(story) for story in ("moving", "pause", "turn"))]


def applied(h: np.ndarray, points: np.ndarray) -> np.ndarray:
    moved = np.concatenate([points, np.ones((*points.shape[:-1], 1))], -1) @ h.T
    return moved[..., :2] / moved[..., 2:]


@given(st.floats(0, 1))
def test_time_of_a_way_and_back(way: float):
    assert abs(minimum_jerk(np.array(time_share(way))) - way) < 1e-6


def test_minimum_jerk_starts_and_ends_at_rest():
    x = np.linspace(0, 1, 2001)
    way = minimum_jerk(x)
    speed = np.gradient(way, x)
    np.testing.assert_allclose(way + way[::-1], 1, atol=1e-12)
    assert speed[0] < 1e-5 and speed[-1] < 1e-5 and np.gradient(speed, x)[[0, -1]].max() < 0.1
    assert abs(speed.max() - 1.875) < 1e-3  # the peak is 15/8 of the mean speed
    assert minimum_jerk(np.array([-1.0, 2.0])).tolist() == [0, 1]


def test_a_clip_is_a_function_of_its_number():
    again = clips.make_clip(SEED, "train", 2, SIZE)
    assert again.record == clip(2).record
    assert all((a == b).all() for a, b in zip(again.frames, clip(2).frames, strict=True))
    assert len(again.frames) == 10 and again.frames[0].shape == (96, 96, 3) and again.frames[0].dtype == np.uint8


def test_numbers_of_actions_are_known_before():
    for index in range(40):
        assert plan(index).count == ACTIONS[index % 6] == count_before(index + 1) - count_before(index)
    assert [len(clip(index).record["actions"]) for index in (0, 2)] == [3, 4]


@given(st.integers(0, 10_000), st.integers(0, 9), st.floats(0.2, 5.0))
def test_the_homography_moves_every_depth_exactly(seed: int, moment: int, depth: float):
    rng = np.random.default_rng(seed)
    frame = Frame.draw(rng, 5, (200, 120))
    rotations = within_canvas(frame, turning_camera(rng, clips.OBSERVED))
    point = frame.ray(rng.uniform(0, 1, 2) * frame.extent) * depth
    there = frame.project(point[None] @ rotations[moment].T)
    np.testing.assert_allclose(applied(homography(frame, rotations[moment]), there), frame.project(point[None]), atol=1e-6)
    np.testing.assert_allclose(homography(frame, rotations[-1]), np.eye(3), atol=1e-9)
    corners = np.array([[0.0, 0], [200, 0], [200, 120], [0, 120]])
    moved = applied(homography(frame, rotations[moment]), corners)
    assert (moved > -pad_of(frame)).all() and (moved < frame.extent + pad_of(frame)).all()


def test_a_still_camera_sees_the_middle_of_the_canvas():
    frame = Frame.draw(np.random.default_rng(1), 5, (64, 48))
    stage = Stage.build(7, frame, [], world.draw_light(np.random.default_rng(2), frame), 0.3)
    middle = stage.look[stage.pad : stage.pad + 48, stage.pad : stage.pad + 64]
    np.testing.assert_allclose(stage.seen(np.eye(3)), middle, atol=1e-5)
    assert np.isinf(stage.depth(np.eye(3), (slice(0, 96), slice(0, 128)))).all()


def test_a_turned_camera_sees_what_the_homography_says():
    """A turned frame moved by its homography is the last frame; without it, it is not."""
    import cv2

    rng = np.random.default_rng(3)
    frame = Frame.draw(rng, 5, SIZE)
    stage = Stage.build(32, frame, [], world.draw_light(rng, frame), 0.3)
    turn = Rotation.from_euler("xyz", [2, 4, 3], degrees=True).as_matrix()
    turned, last = (draw_frame(stage, rotation, []).picture for rotation in (turn, np.eye(3)))
    to_pixel_numbers = np.eye(3) - np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    h = to_pixel_numbers @ homography(frame, turn) @ np.linalg.inv(to_pixel_numbers)
    moved = cv2.warpPerspective(turned, h, SIZE)
    near, far = (np.abs(picture - last)[20:-20, 20:-20].mean() for picture in (moved, turned))
    assert near < 0.01 and near < far / 3


def test_all_futures_begin_where_the_past_ends():
    for made in some():
        record = made.record
        for action in record["actions"]:
            for hand in range(2):
                assert (action["future"][hand] is None) == (record["past"][hand] is None)
                if action["future"][hand] is not None:
                    np.testing.assert_allclose(action["future"][hand][0], record["past"][hand][-1], atol=2e-3)
            sides = [action["side"]] if action["side"] else ["left", "right"]
            assert all(np.all(action["future_valid"][("left", "right").index(side)]) for side in sides)


def test_past_points_are_box_centres_moved_by_the_homography():
    for made in some():
        record = made.record
        assert [hand["side"] for hand in record["hands"]] == [s for s, p in zip(("left", "right"), record["past"], strict=True) if p]
        for hand in record["hands"]:
            side = ("left", "right").index(hand["side"])
            amodal = np.array(hand["amodal_boxes"])
            joints = np.array(hand["joints_2d"])
            assert (joints.min(1) >= amodal[:, :2] - 0.02).all() and (joints.max(1) <= amodal[:, 2:] + 0.02).all()
            for moment, (box, h) in enumerate(zip(hand["boxes"], record["homographies"], strict=True)):
                centre = (amodal[moment, :2] + amodal[moment, 2:]) / 2
                np.testing.assert_allclose(applied(np.array(h), centre[None])[0], record["past"][side][moment], atol=0.02)
                inside = bool(((centre >= 0) & (centre < 96)).all())
                assert record["past_valid"][side][moment] <= (inside and box is not None)
                if box is not None:
                    assert (np.array(box[:2]) >= amodal[moment, :2] - 1.01).all() and (np.array(box[2:]) <= amodal[moment, 2:] + 1.01).all()
            assert record["past_valid"][side][-1] or hand["visible_fraction"][-1] < 1


def test_reaches_come_to_their_goal_and_others_elsewhere():
    reaches = 0
    for made in some():
        ends: dict[str, list[np.ndarray]] = {}
        for action in made.record["actions"]:
            if action["kind"] not in ("reach", "miss"):
                continue
            hand = ("left", "right").index(action["side"])
            path = np.array(action["future"][hand])
            box = np.array(made.record["objects"][action["goal"]["object"]]["bbox_xyxy"])
            goal, span = (box[:2] + box[2:]) / 2, np.linalg.norm(box[2:] - box[:2])
            before, after = np.linalg.norm(path[0] - goal), np.linalg.norm(path[-1] - goal)
            assert after < before and (action["kind"] == "miss" or after < span / 2 + 0.2 * 96)
            others = ends.setdefault(action["side"], [])
            assert all(np.linalg.norm(path[-1] - other) > 0.05 * 96 for other in others)
            others.append(path[-1])
            reaches += action["kind"] == "reach"
    assert reaches >= 4


def test_one_start_has_different_actions_and_names_say_which():
    for made in some():
        keys = [(a["side"], a["goal"] and a["goal"]["object"]) for a in made.record["actions"]]
        assert len(set(keys)) == len(keys)
        names = [(thing["name"], thing["colour"]) for thing in made.record["objects"]]
        assert len(set(names)) == len(names)
        for action in made.record["actions"]:
            if action["goal"]:
                thing = made.record["objects"][action["goal"]["object"]]
                assert (thing["name"], thing["colour"]) == (action["goal"]["name"], action["goal"]["colour"])


def test_pauses_stay_and_turns_go_round():
    (pause,) = clip_of("pause").record["actions"]
    for path in pause["future"]:
        assert path is None or np.ptp(np.array(path), axis=0).max() < 0.08 * 96
    (turn,) = clip_of("turn").record["actions"]
    left, right = (np.array(path) for path in turn["future"])
    assert turn["side"] is None and turn["direction"] in ("left", "right")
    down = (left[-1] - left[0])[1], (right[-1] - right[0])[1]
    assert (down[0] < 0 < down[1]) if turn["direction"] == "right" else (down[1] < 0 < down[0])


@pytest.mark.parametrize("split", factors.SPLITS)
def test_plans_keep_to_their_split(split: factors.Split):
    for index in range(30):
        drawn = plan(index, split)
        things = [*drawn.free, *([drawn.held] if drawn.held else [])]
        assert {(thing.name, thing.colour) for thing in things} <= set(factors.pairs(split))
        assert {digit for thing in things for digit in (thing.family, thing.shade)} <= set(factors.TENTHS[split])
        assert drawn.background % 10 in factors.TENTHS[split] and drawn.camera_bin in factors.camera_bins(split)


def test_stories_are_told_as_often_as_said():
    plans = [plan(index) for index in range(600)]
    moving = [p for p in plans if p.count == 1]
    assert all(p.story == "rest" for p in plans if p.count > 1)
    shares = {story: np.mean([p.story == story for p in moving]) for story in ("moving", "pause", "turn")}
    assert abs(shares["moving"] - 0.72) < 0.08 and min(shares["pause"], shares["turn"]) > 0.07
    assert 0.6 < np.mean([len(p.hands) == 2 for p in plans]) < 0.95


@pytest.mark.slow
def test_phases_are_spread_and_few_attempts_fail():
    made = [clips.make_clip(3, "test", index, SIZE) for index in range(1, 80, 2)]
    phases = np.array([c.record["actions"][0]["phase"] for c in made if c.record["story"] == "moving"])
    assert len(phases) > 15 and (phases > 0.01).all() and (phases <= 0.6).all()
    assert np.histogram(phases, [0, 0.2, 0.4, 0.6])[0].min() >= 2
    seen = [fraction for c in made for hand in c.record["hands"] for fraction in hand["visible_fraction"][-1:]]
    assert min(seen) >= 0.45
