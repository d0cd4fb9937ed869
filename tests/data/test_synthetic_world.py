"""The synthetic world: what is drawn is what is labelled, every picture is a function of its number, and the splits share nothing."""

from __future__ import annotations

import itertools
import json
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.synthetic import background, draw, factors, hands, objects, reaching, scenes, world
from data.synthetic.frame import Frame
from pose_tools.geometry import project

SCENES = 16


@pytest.fixture(scope="module")
def made() -> list[world.Scene]:
    return [world.make_scene(5, "train", index) for index in range(SCENES)]


def test_boxes_are_the_masks_tight_boxes(made):
    for scene in made:
        ids = {h["side"]: i for h, i in ((h, reaching.HAND_IDS[h["side"]]) for h in scene.record["hands"])}
        for hand in scene.record["hands"]:
            rows, cols = np.nonzero(scene.mask == ids[hand["side"]])
            assert hand["bbox_xyxy"] == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        for number, thing in enumerate(scene.record["objects"]):
            rows, cols = np.nonzero(scene.mask == 10 + number)
            assert thing["bbox_xyxy"] == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
        known = {0, *ids.values(), *(i + 2 for i in ids.values()), *range(10, 10 + len(scene.record["objects"]))}
        assert set(np.unique(scene.mask)) <= known


def test_labels_round_trip_through_hand_model_and_camera(made):
    for scene in made:
        k = np.array(scene.record["camera"]["intrinsics"])
        for hand in scene.record["hands"]:
            vertices, joints = hands.pose_hand(
                hand["side"], *(np.array(hand["mano"][n]) for n in ("global_orient", "hand_pose", "betas", "transl"))
            )
            assert np.abs(joints - np.array(hand["joints_3d"])).max() < 2e-6
            assert np.abs(project(np.array(hand["joints_3d"]), k) - np.array(hand["joints_2d"])).max() < 2e-2
            # the visible pixels lie on the posed mesh, and the mesh reaches no further than them where nothing hides it
            x1, y1, x2, y2 = hand["bbox_xyxy"]
            outline = project(vertices, k)
            low, high = outline.min(0), outline.max(0)
            assert low[0] - 1 <= x1 and low[1] - 1 <= y1 and x2 <= high[0] + 1 and y2 <= high[1] + 1
            if hand["visible_fraction"] == 1:
                assert np.abs(np.array([*low, *high]) - hand["bbox_xyxy"]).max() <= 1.5


def test_holding_is_told_the_same_from_both_sides(made):
    held = 0
    for scene in made:
        sides = [hand["side"] for hand in scene.record["hands"]]
        assert sides == [s for s in ("left", "right") if s in sides]
        for hand in scene.record["hands"]:
            by_object = [n for n, thing in enumerate(scene.record["objects"]) if hand["side"] in thing["held_by"]]
            assert by_object == ([] if hand["held"] is None else [hand["held"]])
            assert hand["contact"] == any(hand["side"] in thing["touched_by"] for thing in scene.record["objects"])
            assert hand["contact"] or hand["held"] is None
            held += hand["held"] is not None
        assert set(sides) >= {s for thing in scene.record["objects"] for s in thing["touched_by"]}
    assert held > 0


def test_held_things_are_at_the_hand(made):
    """A held thing's pixels touch or nearly touch the pixels of the hand that holds it."""
    import cv2

    for scene in made:
        for hand in scene.record["hands"]:
            if hand["held"] is not None:
                near = cv2.dilate((scene.mask == reaching.HAND_IDS[hand["side"]]).astype(np.uint8), np.ones((9, 9)))
                assert (near[scene.mask == 10 + hand["held"]]).any(), scene.record["hands"]


def test_sizes_are_such_that_a_small_model_can_see_them(made):
    for scene in made:
        for box, low in itertools.chain(
            ((h["bbox_xyxy"], 0.18) for h in scene.record["hands"]), ((o["bbox_xyxy"], 0.08) for o in scene.record["objects"])
        ):
            assert low <= max(box[2] - box[0], box[3] - box[1]) / 192 <= world.WIDEST


def test_a_picture_is_a_function_of_its_number():
    settings = scenes.Settings("val", seed=3)
    forwards = [scenes.encode_scene(settings, i) for i in range(3)]
    backwards = [scenes.encode_scene(settings, i) for i in reversed(range(3))][::-1]
    assert forwards == backwards
    other_seed = scenes.encode_scene(scenes.Settings("val", seed=4), 0)
    assert other_seed[1] != forwards[0][1] and other_seed[0]["background"] != forwards[0][0]["background"]


def test_a_plan_that_does_not_fit_is_given_up(monkeypatch):
    """In this narrow picture two crossed hands that hold bottles found no place in any attempt; the picture gets another plan."""
    scene = world.make_scene(0, "train", 4048, (480, 270))
    first = world.draw_plan(world.picture_rng(0, "train", 4048, 0), "train")
    assert {hand["side"] for hand in scene.record["hands"]} == set(first.hands) and first.crossed
    monkeypatch.setattr(world, "PLANS", 1)
    monkeypatch.setattr(world, "ATTEMPTS", 2)
    with pytest.raises(world.SceneError, match="picture 4048"):
        world.make_scene(0, "train", 4048, (480, 270))


def test_plans_have_the_promised_shares():
    plans = [world.draw_plan(world.picture_rng(0, "train", i, 0), "train") for i in range(3000)]
    for side in ("left", "right"):
        assert abs(np.mean([side not in p.hands for p in plans]) - 0.2) < 0.03
    hand_count = sum(len(p.hands) for p in plans)
    assert abs(sum(2 if "both" in p.holds else len(p.holds) for p in plans) / hand_count - 0.5) < 0.04
    assert 0.04 < np.mean([p.crossed for p in plans]) < 0.09
    assert np.mean(["both" in p.holds for p in plans]) > 0.02 and sum(bool(p.touches) for p in plans) > 150
    things = [[*p.holds.values(), *p.touches.values(), *p.free] for p in plans]
    assert all(1 <= len(t) <= 5 for t in things)
    assert np.mean([len({x.name for x in t}) < len(t) for t in things]) > 0.2, "distractors of the same name"


def test_the_splits_share_no_factor():
    """No (name, colour) pair, shade, shape family, background seed or camera bin of one split is ever drawn in another."""
    used: dict[str, dict[str, set]] = {}
    for split in factors.SPLITS:
        plans = [world.draw_plan(world.picture_rng(0, split, i, 0), split) for i in range(1500)]
        things = [t for p in plans for t in (*p.holds.values(), *p.touches.values(), *p.free)]
        used[split] = {
            "pair": {(t.name, t.colour) for t in things}, "shade": {t.shade for t in things}, "family": {t.family for t in things},
            "background": {p.background for p in plans}, "camera": {p.camera_bin for p in plans},
        }  # fmt: skip
        assert {t.name for t in things} == set(factors.NAMES) and {t.colour for t in things} == set(factors.COLOURS)
        assert used[split]["pair"] == set(factors.pairs(split))
    for a, b in itertools.combinations(factors.SPLITS, 2):
        for factor in used[a]:
            assert not used[a][factor] & used[b][factor], (a, b, factor)


def test_factor_values_differ_in_effect():
    """Factors of different splits are not only numbered apart: the colours, shapes and fields of view they stand for differ."""
    for colour in factors.COLOURS:
        shades = [tuple(factors.shade_rgb(colour, s).round(3)) for s in range(10)]
        assert len(set(shades)) == 10
    for name in factors.NAMES:
        shapes = {objects.build(name, family).vertices.round(4).tobytes() for family in range(10)}
        assert len(shapes) == 10
    frames = [Frame.draw(np.random.default_rng(0), b, (192, 192)) for b in range(20)]
    assert len({round(f.focal, 3) for f in frames}) == 5 and len({tuple(f.up.round(4)) for f in frames}) == 4


def test_every_colour_word_is_nearest_to_its_own_shades():
    means = {c: np.mean([factors.shade_rgb(c, s) for s in range(10)], axis=0) for c in factors.COLOURS}
    for colour in factors.COLOURS:
        for shade in range(10):
            rgb = factors.shade_rgb(colour, shade)
            assert ((rgb >= 0) & (rgb <= 1)).all()
            assert min(means, key=lambda c: np.linalg.norm(means[c] - rgb)) == colour


@pytest.mark.parametrize("name", factors.NAMES)
def test_objects_are_closed_solids_that_face_outwards(name):
    for family in range(10):
        mesh = objects.build(name, family)
        a, b, c = (mesh.vertices[mesh.faces[:, k]] for k in range(3))
        volume = np.einsum("fc,fc->f", a, np.cross(b, c)).sum() / 6
        assert volume > 0 and np.isfinite(mesh.normals).all()
        face_normal = np.cross(b - a, c - a)
        area = np.linalg.norm(face_normal, axis=1)
        agree = np.einsum("fc,fc->f", face_normal, mesh.normals[mesh.faces].mean(1))[area > 1e-12] > 0
        assert agree.all()
        assert mesh.vertices[:, 2].min() > -1e-9
    with pytest.raises(ValueError, match="the names are cup"):
        objects.build("fork", 0)


def test_left_hands_are_mirrored_right_hands():
    rng = np.random.default_rng(0)
    pose, orient, betas = hands.free_pose(rng), rng.normal(size=3), rng.normal(size=10)
    right_vertices, right_joints = hands.pose_hand("right", orient, pose, betas, np.array([0.1, 0.2, 0.5]))
    left_vertices, left_joints = hands.pose_hand(
        "left", orient * hands.MIRROR, hands.for_side(pose, "left"), betas, np.array([-0.1, 0.2, 0.5])
    )
    assert np.abs(left_vertices - right_vertices * [-1, 1, 1]).max() < 1e-6
    assert np.abs(left_joints - right_joints * [-1, 1, 1]).max() < 1e-6
    for side, handed in (("right", 1), ("left", -1)):
        assert np.linalg.det(hands.skeleton(side).axes) == pytest.approx(handed)


@given(st.integers(8, 60))
def test_grips_close_around_what_they_hold(millimetres):
    """In a power grip the finger bones lie on the cylinder: near its surface, not inside it."""
    grasp = hands.wrap_grasp(millimetres)
    _, joints = hands.pose_hand("right", np.zeros(3), grasp.hand_pose, np.zeros(10), np.zeros(3))
    rest = hands.skeleton("right")
    local = (joints - joints[9]) @ rest.axes
    for knuckle in (5, 9, 13):
        bones = (local[knuckle : knuckle + 3] + local[knuckle + 1 : knuckle + 4]) / 2
        apart = bones - grasp.point
        distance = np.linalg.norm(apart - np.outer(apart @ grasp.axis, grasp.axis), axis=1)
        assert (distance > millimetres / 1000 - 0.004).all()
        assert distance.min() < millimetres / 1000 + 0.025


def test_thumb_tells_left_from_right_in_the_picture():
    """Backs of the hands to the camera, fingers up: the thumb of the right hand points left, that of the left hand right."""
    for side, sign in (("right", -1), ("left", 1)):
        rotation = hands.rotation_to(np.array([0.0, -1.0, 0.0]), 0.0, side)
        joints = (rotation @ hands.skeleton(side).joints.T).T
        assert sign * (joints[5] - joints[17])[0] > 0
        assert joints[9][1] < joints[0][1]


def test_what_hides_and_what_is_hidden():
    """Two squares, one before the other: the nearer one is seen whole, the farther one loses the overlap."""
    light = draw.Light(np.array([0.0, 0.0, -1.0]), 0.5)

    def square(id: int, x: float, z: float) -> draw.Part:
        corners = np.array([[x - 0.1, -0.1, z], [x + 0.1, -0.1, z], [x + 0.1, 0.1, z], [x - 0.1, 0.1, z]])
        return draw.Part(id, corners, np.tile([0, 0, -1.0], (4, 1)), np.array([[0, 2, 1], [0, 3, 2]]), np.full((4, 3), id / 20))

    parts = [square(10, 0.0, 1.0), square(11, 0.1, 0.8)]
    layers = [draw.draw_layer(p, 96.0, (96, 64), light) for p in parts]
    owner = draw.lay_together(layers, (96, 64))
    mask = draw.id_mask(layers, owner)
    seen = np.bincount(owner[owner >= 0])
    assert mask.shape == (64, 96) and seen[1] == layers[1].area and 0 < seen[0] < layers[0].area
    assert world.mask_box(mask, 11)[0] < world.mask_box(mask, 10)[2] + 1
    assert world.mask_box(mask, 12) is None
    turned = draw.lay_together(layers[::-1], (96, 64))
    assert np.array_equal(draw.id_mask(layers[::-1], turned), mask), "the order of drawing does not matter"


def test_backgrounds_are_their_seeds():
    up = np.array([0, -0.7, -0.714])
    one, again, other = (background.draw(seed, (64, 48), 60.0, up, 0.4) for seed in (3, 3, 4))
    assert one.shape == (48, 64, 3) and np.array_equal(one, again) and not np.array_equal(one, other)


def test_records_are_plain_json(made):
    for scene in made:
        assert json.loads(json.dumps(scene.record)) == scene.record
    assert Counter(h["side"] for s in made for h in s.record["hands"]).keys() == {"left", "right"}
