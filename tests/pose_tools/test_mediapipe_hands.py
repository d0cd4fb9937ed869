"""The geometry around MediaPipe's networks: palms, windows, regions, one hand seen twice, and how the networks get into the cache.

The networks themselves run where `python scripts/doctor.py --fetch-hand-models` put them into the cache; those tests skip elsewhere.
"""

from __future__ import annotations

import hashlib
import zipfile
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_tools import mediapipe_hands as mh
from pose_tools import mediapipe_models as models
from pose_tools.detect import detect_hands
from pose_tools.metrics import box_iou
from pose_tools.tool_protocol import BackendMissing

MISSING = models.why_missing()
with_networks = pytest.mark.skipif(MISSING is not None, reason=str(MISSING))
numbers = st.floats(0, 500)


def test_anchors_are_cell_centres_row_by_row():
    found = mh.anchors()
    expected = []
    for cells, count in ((24, 2), (12, 6)):
        for row in range(cells):
            for column in range(cells):
                expected += [((column + 0.5) / cells * 192, (row + 0.5) / cells * 192)] * count
    np.testing.assert_allclose(found, expected)
    assert len(found) == models.PALM.output_shapes[0][0]


def palm_at(x: float, y: float, size: float = 30, angle: float = 0.0, score: float = 0.9) -> mh.Palm:
    """A palm whose fingers point up for angle 0, clockwise with it (degrees)."""
    ahead = np.array([np.sin(np.deg2rad(angle)), -np.cos(np.deg2rad(angle))])
    points = np.stack([np.array([x, y]) + ahead * size * step for step in (-0.5, 0.4, 0.5, 0.45, 0.3, -0.3, 0.1)])
    return mh.Palm(np.array([x - size / 2, y - size / 2, x + size / 2, y + size / 2]), points, score)


def encode(palms: dict[int, mh.Palm]) -> tuple[np.ndarray, np.ndarray]:
    """What the palm network would put out to mean these palms, {anchor: palm}."""
    raw, logits = np.zeros((2016, 18)), np.full((2016, 1), -200.0)
    for anchor, palm in palms.items():
        low, high = palm.bbox_xyxy[:2], palm.bbox_xyxy[2:]
        place = mh.anchors()[anchor]
        raw[anchor] = np.concatenate([(low + high) / 2 - place, high - low, (palm.keypoints - place).ravel()])
        logits[anchor] = np.log(palm.score / (1 - palm.score))
    return raw, logits


def test_decoding_is_the_inverse_of_encoding():
    palms = {7: palm_at(100, 50, 20, 30, 0.6), 1500: palm_at(20, 170, 40, -80, 0.95), 2015: palm_at(180, 180, 10, 5, 0.3)}
    found = mh.decode_palms(*encode(palms), threshold=0.5)
    assert len(found) == 2
    for one, anchor in zip(found, (7, 1500), strict=True):
        np.testing.assert_allclose(one.bbox_xyxy, palms[anchor].bbox_xyxy)
        np.testing.assert_allclose(one.keypoints, palms[anchor].keypoints)
        assert one.score == pytest.approx(palms[anchor].score)


def test_a_palm_without_size_is_none():
    raw, logits = encode({7: palm_at(100, 50)})
    raw[7, 2] = 0
    assert mh.decode_palms(raw, logits, 0.1) == []


def test_merging_palms():
    near, far = [palm_at(50, 50, score=0.9), palm_at(54, 50, score=0.3)], palm_at(150, 60, score=0.5)
    merged = mh.merge_palms([near[1], far, near[0]])
    assert [palm.score for palm in merged] == [0.9, 0.5]
    np.testing.assert_allclose(merged[0].bbox_xyxy, 0.75 * near[0].bbox_xyxy + 0.25 * near[1].bbox_xyxy)
    np.testing.assert_allclose(merged[0].keypoints, 0.75 * near[0].keypoints + 0.25 * near[1].keypoints)
    np.testing.assert_allclose(merged[1].bbox_xyxy, far.bbox_xyxy)
    again = mh.merge_palms(merged)
    for one, other in zip(again, merged, strict=True):
        np.testing.assert_allclose(one.bbox_xyxy, other.bbox_xyxy)
    assert mh.merge_palms([]) == []


@given(st.lists(st.tuples(st.floats(20, 400), st.floats(20, 400), st.floats(10, 80), st.floats(0.2, 1)), max_size=12))
def test_merged_palms_keep_every_place(rows):
    palms = [palm_at(x, y, size, 0, score) for x, y, size, score in rows]
    merged = mh.merge_palms(palms)
    assert len(merged) <= len(palms) and bool(merged) == bool(palms)
    for palm in palms:
        assert any(box_iou(palm.bbox_xyxy, other.bbox_xyxy) > 0 for other in merged)


# Windows.


@given(st.integers(1, 2000), st.integers(1, 2000))
def test_windows_are_squares_that_mirror_with_the_picture(width, height):
    squares = np.array(mh.windows((width, height)))
    np.testing.assert_allclose(squares[:, 2] - squares[:, 0], squares[:, 3] - squares[:, 1])
    mirrored = np.stack([width - squares[:, 2], squares[:, 1], width - squares[:, 0], squares[:, 3]], axis=1)

    def rounded(rows: np.ndarray) -> list:
        return sorted(map(tuple, np.round(rows, 3) + 0.0))

    assert rounded(mirrored) == rounded(squares)
    assert squares[0][0] <= 0 and squares[0][1] <= 0 and squares[0][2] >= width and squares[0][3] >= height


@given(st.integers(400, 1600), st.integers(400, 1600), st.floats(0, 1), st.floats(0, 1))
def test_a_small_hand_lies_wholly_in_a_small_tile(width, height, x, y):
    tile = max(min(width, height) / 2.5, mh.SMALLEST_TILE)
    size = tile / 2 - 1e-6
    left, top = x * (width - size), y * (height - size)
    inside = [
        s for s in mh.windows((width, height)) if s[0] <= left + 1e-6 and s[1] <= top + 1e-6 and s[2] >= left + size and s[3] >= top + size
    ]
    assert min(s[2] - s[0] for s in inside) <= tile * 1.7


# Regions for the landmark network.

landmarks = st.integers(0, 2**32 - 1).map(lambda seed: upright_hand(np.random.default_rng(seed)))


def upright_hand(rng: np.random.Generator) -> np.ndarray:
    """(21, 2): a wrist and five fanned fingers of four joints, pointing up, with noise."""
    points = [np.zeros(2)]
    for finger in range(5):
        direction = np.array([0.4 * (finger - 2), -1.0])
        points += [direction * reach for reach in (50, 70, 85, 95)]
    return np.array(points) + rng.normal(0, 2, (21, 2)) + 200


def turned(points: np.ndarray, degrees: float, scale: float = 1.0, shift=(0.0, 0.0)) -> np.ndarray:
    angle = np.deg2rad(degrees)
    return scale * points @ np.array([[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]) + shift


@given(landmarks, st.floats(-180, 180), st.floats(0.2, 3), st.tuples(numbers, numbers))
def test_region_of_landmarks_moves_turns_and_grows_with_them(points, degrees, scale, shift):
    moved = turned(points, degrees, scale, shift)
    np.testing.assert_allclose(mh.landmark_region(moved).to_grid(moved), mh.landmark_region(points).to_grid(points), atol=1e-6)


@given(landmarks, st.floats(-180, 180))
def test_region_holds_the_hand_with_the_fingers_up(points, degrees):
    points = turned(points, degrees)
    grid = mh.landmark_region(points).to_grid(points)
    assert (grid > 0).all() and (grid < mh.LANDMARK_SIZE).all()
    knuckles = (grid[5] + grid[13]) / 4 + grid[9] / 2
    assert knuckles[0] == pytest.approx(grid[0, 0], abs=1e-6) and knuckles[1] < grid[0, 1]


@given(st.floats(-180, 180), st.floats(10, 100))
def test_region_of_a_palm_turns_the_fingers_up(degrees, size):
    palm = palm_at(300, 200, size, degrees)
    grid = mh.palm_region(palm).to_grid(palm.keypoints)
    assert grid[2, 0] == pytest.approx(grid[0, 0], abs=1e-6) and grid[2, 1] < grid[0, 1]
    centre = mh.palm_region(palm).to_original(np.array([mh.LANDMARK_SIZE / 2] * 2))
    ahead = (palm.keypoints[2] - palm.keypoints[0]) / size
    np.testing.assert_allclose(centre, np.array([300, 200]) + ahead * size / 2, atol=1e-6)
    assert 1 / np.sqrt(abs(np.linalg.det(mh.palm_region(palm).matrix[:2, :2]))) * mh.LANDMARK_SIZE == pytest.approx(2.6 * size)


@given(landmarks, st.floats(-180, 180))
def test_mirrored_look_is_the_look_at_the_mirrored_picture(points, degrees):
    points, width = turned(points, degrees) + 300, 700
    mirrored = points * [-1, 1] + [width, 0]
    np.testing.assert_allclose(
        mh.landmark_region(points, flip=True).to_grid(points), mh.landmark_region(mirrored).to_grid(mirrored), atol=1e-6
    )
    one, other = mh.palm_region(palm_at(300, 200, 40, degrees), flip=True), mh.palm_region(palm_at(width - 300, 200, 40, -degrees))
    place = np.array([310.0, 190.0])
    np.testing.assert_allclose(one.to_grid(place), other.to_grid([width - 310.0, 190.0]), atol=1e-6)


# Duplicates, boxes, sides.


def seen(points: np.ndarray, right: float = 0.9, score: float = 0.9) -> mh.Hand:
    return mh.Hand(points, right, score)


def test_one_hand_seen_twice_is_one_hand_whatever_its_side():
    points = upright_hand(np.random.default_rng(0))
    again, beside = seen(points + 3, 0.1, 0.5), seen(points + [90, 0], 0.9, 0.7)
    kept = mh.drop_duplicates([again, beside, seen(points)])
    assert [hand.score for hand in kept] == [0.9, 0.7]
    assert mh.drop_duplicates(kept) == kept


@given(landmarks, st.floats(-300, 300), st.floats(-300, 300))
def test_tight_box_holds_the_landmarks_that_are_in_the_picture(points, x, y):
    points, size = points + [x, y], (300, 250)
    x1, y1, x2, y2 = mh.tight_box(points, size)
    assert 0 <= x1 <= x2 <= 300 and 0 <= y1 <= y2 <= 250
    inside = points[((points >= 0) & (points <= size)).all(1)]
    assert ((inside >= [x1, y1]) & (inside <= [x2, y2])).all()


def mirrored(hand: mh.Hand, width: float = 1000) -> mh.Hand:
    return mh.Hand(hand.landmarks * [-1, 1] + [width, 0], 1 - hand.right, hand.score)


@given(st.lists(st.tuples(landmarks, st.floats(0, 900), st.floats(-180, 180), st.floats(0.01, 0.99)), max_size=4))
def test_mirrored_hands_have_swapped_sides(rows):
    found = [seen(turned(points, degrees) + [x, 0], right) for points, x, degrees, right in rows]
    swapped = {"left": "right", "right": "left"}
    if all(abs(hand.right - 0.5) > 1e-3 for hand in found) and not tie(found):
        assert mh.sides([mirrored(hand) for hand in found]) == [swapped[side] for side in mh.sides(found)]


def tie(found: list[mh.Hand]) -> bool:
    """Two hands whose odds cancel: both sides are equally likely, and either may be said."""
    odds = [np.log(hand.right / (1 - hand.right)) for hand in found]
    return len(found) == 2 and any(abs(abs(odds[0] + sign * odds[1]) - gap) < 1e-3 for sign in (1, -1) for gap in (0, 8, 5, 3, 13))


def test_two_hands_of_one_person():
    up = upright_hand(np.random.default_rng(0))
    down = turned(up, 180) + 400
    for hands, order in (((up, up + [200, 0]), ["left", "right"]), ((down, down + [200, 0]), ["right", "left"])):
        assert mh.sides([seen(hands[0], 0.5 + 1e-9), seen(hands[1], 0.5)]) == order  # no evidence: arms do not cross
        for doubtful in (0.3, 0.5, 0.7):  # one is sure, so the other is the other one
            assert mh.sides([seen(hands[0], 0.02), seen(hands[1], doubtful)]) == ["left", "right"]
            assert mh.sides([seen(hands[0], doubtful), seen(hands[1], 0.02)]) == ["right", "left"]
        assert mh.sides([seen(hands[0], 0.98), seen(hands[1], 0.02)]) == ["right", "left"]  # evidence wins: crossed arms
        assert mh.sides([seen(hands[0], 0.02), seen(hands[1], 0.98)]) == ["left", "right"]
    assert mh.sides([seen(up, 0.98), seen(up + [200, 0], 0.98), seen(up + [400, 0], 0.98)]) == ["right"] * 3  # a crowd
    assert mh.sides([]) == []


# How the networks get into the cache.


def test_cache_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDVLM_CACHE", str(tmp_path))
    assert models.cache_folder() == tmp_path and models.model_path(models.PALM).is_relative_to(tmp_path)
    monkeypatch.delenv("HANDVLM_CACHE")
    assert models.cache_folder().is_absolute()


@pytest.fixture()
def pinned(monkeypatch, tmp_path):
    """A wheel of the right form and pins that fit it: {network: its bytes}, and the wheel's path."""
    monkeypatch.setenv("HANDVLM_CACHE", str(tmp_path / "cache"))
    contents = {"PALM": b"palm network", "LANDMARK": b"landmark network"}
    wheel = tmp_path / "package.whl"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.writestr("mediapipe/other.py", "raise RuntimeError")
        for name, content in contents.items():
            archive.writestr(getattr(models, name).member, content)
    for name, content in contents.items():
        monkeypatch.setattr(models, name, replace(getattr(models, name), sha256=hashlib.sha256(content).hexdigest()))
    monkeypatch.setattr(models, "FILES", (models.PALM, models.LANDMARK))
    monkeypatch.setattr(models, "WHEEL_SHA256", hashlib.sha256(wheel.read_bytes()).hexdigest())
    return contents, wheel


def test_only_the_two_networks_are_unpacked_and_repaired(pinned):
    contents, wheel = pinned
    folder = models.fetch_models(wheel)
    assert {path.name: path.read_bytes() for path in folder.iterdir()} == {
        models.PALM.name: contents["PALM"],
        models.LANDMARK.name: contents["LANDMARK"],
    }
    models.model_path(models.PALM).write_bytes(b"cut off")
    models.fetch_models(wheel)
    assert models.model_path(models.PALM).read_bytes() == contents["PALM"]
    assert models.fetch_models(wheel.with_name("gone.whl")) == folder  # nothing is needed any more


def test_another_wheel_is_refused_and_nothing_unpacked(pinned):
    _, wheel = pinned
    wheel.write_bytes(wheel.read_bytes() + b" ")
    for path in (wheel, wheel.with_name("gone.whl")):
        with pytest.raises(BackendMissing, match="is not the wheel of mediapipe==0.10.21"):
            models.fetch_models(path)
    assert not models.model_path(models.PALM).parent.exists()


def test_without_a_network_pip_fails_with_a_remedy(pinned, monkeypatch):
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    with pytest.raises(BackendMissing, match=r"pip could not fetch .*--fetch-hand-models"):
        models.fetch_models()
    assert not models.model_path(models.PALM).parent.exists()


def test_missing_networks_name_the_remedy(pinned):
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(BackendMissing, match="pip install|--fetch-hand-models"):
        detect_hands(picture, backend="mediapipe")


def test_a_damaged_network_names_the_remedy(pinned):
    pytest.importorskip("ai_edge_litert", reason="needs the extra [hands]")
    models.fetch_models(pinned[1])
    models.model_path(models.PALM).write_bytes(b"damaged")
    with pytest.raises(BackendMissing, match="delete it"):
        models.network(models.PALM)


# With the networks: hands of the synthetic world, which the networks were never shown.


@pytest.fixture(scope="module")
def scenes():
    from data.synthetic.world import make_scene

    return [make_scene(0, "train", index) for index in range(8)]


@with_networks
def test_networks_find_rendered_hands_and_their_sides(scenes):
    found = there = right_side = 0
    for scene in scenes:
        for hand in detect_hands(scene.picture, backend="mediapipe"):
            overlap = {true["side"]: box_iou(hand.bbox_xyxy, true["bbox_xyxy"]) for true in scene.record["hands"]}
            best = max(overlap, key=lambda side: overlap[side], default=None)
            assert hand.keypoints_2d.shape == (21, 2) and 0.4 <= hand.score <= 1
            found += 1
            if best is not None and overlap[best] > 0.4:
                there += 1
                right_side += hand.side == best
    assert found >= 5 and there >= 0.75 * found and right_side >= 0.75 * there


@with_networks
def test_mirrored_picture_mirrored_hands(scenes):
    count = 0
    for scene in scenes:
        image, width = scene.picture, scene.picture.shape[1]
        straight = detect_hands(image, backend="mediapipe", threshold=0.6)
        flipped = detect_hands(np.ascontiguousarray(image[:, ::-1]), backend="mediapipe", threshold=0.5)
        for hand in straight:
            x1, y1, x2, y2 = hand.bbox_xyxy
            other = max(flipped, key=lambda one: box_iou(one.bbox_xyxy, (width - x2, y1, width - x1, y2)))
            np.testing.assert_allclose(other.bbox_xyxy, (width - x2, y1, width - x1, y2), atol=1.0)
            np.testing.assert_allclose(other.keypoints_2d, hand.keypoints_2d * [-1, 1] + [width, 0], atol=1.0)
            assert other.side != hand.side and other.score == pytest.approx(hand.score, abs=0.05)
            count += 1
    assert count >= 3


@with_networks
def test_a_large_picture_has_the_hands_of_the_small_one(scenes):
    image = np.concatenate([scene.picture for scene in scenes[:2]], axis=1)
    large = image.repeat(10, 0).repeat(10, 1)
    assert max(large.shape) > 2 * mh.LARGEST_SIDE
    small = detect_hands(image, backend="mediapipe", threshold=0.7)
    found = detect_hands(large, backend="mediapipe", threshold=0.3)
    for hand in small:
        assert max(box_iou(np.array(hand.bbox_xyxy) * 10, [one.bbox_xyxy for one in found])) > 0.6


@with_networks
def test_nothing_is_found_where_nothing_is():
    for picture in (np.zeros((200, 300, 3), np.uint8), np.full((1, 1, 3), 255, np.uint8), np.full((1, 900, 3), 90, np.uint8)):
        assert detect_hands(picture, backend="mediapipe") == []
