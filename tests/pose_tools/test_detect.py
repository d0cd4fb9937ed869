"""Hand detection: the record, its tokens, and the rule of "auto"."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_tools import detect
from pose_tools.detect import HandDetection, detect_hands, detection_tokens, sort_detections

numbers = st.floats(0, 500)
boxes = st.tuples(numbers, numbers, st.floats(1, 200), st.floats(1, 200)).map(lambda b: (b[0], b[1], b[0] + b[2], b[1] + b[3]))
hands = st.builds(
    HandDetection, boxes, st.sampled_from(["left", "right"]), st.floats(0, 1), st.none(), st.none() | boxes, st.none() | st.floats(0, 1)
)


# The record and its tokens.


@given(st.lists(hands, max_size=6), st.randoms())
def test_tokens_are_the_best_of_each_side_in_any_order(found, random):
    tokens = detection_tokens(found)
    assert tokens.shape == (2, 11) and tokens.dtype == np.float32
    shuffled = list(found)
    random.shuffle(shuffled)
    for row, side in enumerate(("left", "right")):
        mine = [hand for hand in found if hand.side == side]
        if not mine:
            assert np.isnan(tokens[row]).all()
            continue
        best = max(hand.score for hand in mine)
        if sum(hand.score == best for hand in mine) == 1:
            np.testing.assert_array_equal(detection_tokens(shuffled)[row], tokens[row])
        hand = next(hand for hand in mine if hand.score == best)
        np.testing.assert_array_equal(tokens[row, :6], np.float32([*hand.bbox_xyxy, 2 * row - 1, hand.score]))
        if hand.object_bbox is None:
            assert np.isnan(tokens[row, 6:10]).all() and tokens[row, 10] == 0
        else:
            score = 1.0 if hand.object_score is None else hand.object_score
            np.testing.assert_array_equal(tokens[row, 6:], np.float32([*hand.object_bbox, score]))


@given(st.lists(hands, max_size=8))
def test_left_before_right_then_by_score(found):
    ordered = sort_detections(found)
    assert sorted(map(id, ordered)) == sorted(map(id, found))
    keys = [(hand.side == "right", -hand.score) for hand in ordered]
    assert keys == sorted(keys)


@pytest.mark.parametrize(
    "picture",
    [
        np.zeros((4, 4), np.uint8),
        np.zeros((4, 4, 4), np.uint8),
        np.zeros((4, 4, 3), np.float32),
        np.zeros((0, 4, 3), np.uint8),
        [[[0, 0, 0]]],
        "picture.jpg",
    ],
    ids=["grey", "alpha", "float", "empty", "list", "path"],
)
def test_what_is_no_picture_is_one_clear_error(picture):
    with pytest.raises(ValueError, match="expected RGB uint8"):
        detect_hands(picture)


# Which backend answers.


def hand(x: float, side="left", score: float = 0.9, size: float = 50) -> HandDetection:
    return HandDetection((x, 10, x + size, 10 + size), side, score)


def test_mediapipe_is_the_witness():
    small = [hand(0), hand(100, "right")]
    assert detect._trusted(small, []) == small
    assert detect._trusted(small, [hand(5)]) == small
    assert detect._trusted(small, [hand(103, "right"), hand(2)]) == small
    for seen in ([hand(300)], [hand(5), hand(300)], [hand(30)], [hand(5, "right")]):
        assert detect._trusted(small, seen) == seen
    assert detect._trusted([], [hand(5)]) == [hand(5)]


def test_backends_by_name(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDVLM_CACHE", str(tmp_path))
    monkeypatch.delenv("HANDVLM_HANDS", raising=False)
    assert detect.resolve_backend() == "small"  # nothing was fetched into that cache
    monkeypatch.setenv("HANDVLM_HANDS", "mediapipe")
    assert detect.resolve_backend() == "mediapipe"
    assert detect.resolve_backend("small") == "small"  # who asks for one gets it
    monkeypatch.setenv("HANDVLM_HANDS", "yolo")
    for backend, where in (("auto", r" \(from the environment's HANDVLM_HANDS\)"), ("yolo", "")):
        with pytest.raises(ValueError, match=f"no hand detector 'yolo'{where}; expected one of: auto, small, mediapipe"):
            detect_hands(np.zeros((8, 8, 3), np.uint8), backend=backend)
