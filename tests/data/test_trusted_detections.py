"""Questions that only the detections answer: the answers are theirs, and the picture is never the scene's own."""

from __future__ import annotations

import numpy as np
import pytest

from data.trusted_detections import KINDS, noise, trusted_detections

NAN = float("nan")
LEFT_WITH_OBJECT = [10, 20, 50, 70, -1, 0.9, 30, 30, 60, 60, 0.5]
EMPTY = [NAN] * 11
RIGHT_BARE = [80, 20, 120, 70, 1, 0.8, NAN, NAN, NAN, NAN, 0]


def scene(number: int) -> dict:
    return {"id": f"train-{number:06d}", "image": f"images/{number}.jpg", "width": 192, "height": 160, "hands": [], "objects": []}


def samples(rows, seed=0, folder="scenes"):
    tokens = {"images/1.jpg": np.array(rows, np.float32)}
    return {s.targets["kind"]: s for s in trusted_detections(scene(1), scene(2), folder, tokens, split="train", seed=seed)}


def boxes(sample) -> list:
    return [[round(v) for v in part["bbox_xyxy"]] for part in sample.messages[1]["content"] if part["type"] == "box"]


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        (
            [LEFT_WITH_OBJECT, RIGHT_BARE],
            {
                "hand_left": [[10, 20, 50, 70]],
                "hand_right": [[80, 20, 120, 70]],
                "hands": [[10, 20, 50, 70], [80, 20, 120, 70]],
                "held_left": [[30, 30, 60, 60]],
                "held_right": [],
            },
        ),
        (
            [EMPTY, RIGHT_BARE],
            {"hand_left": [], "hand_right": [[80, 20, 120, 70]], "hands": [[80, 20, 120, 70]], "held_left": [], "held_right": []},
        ),
        ([EMPTY, EMPTY], dict.fromkeys(KINDS, [])),
    ],
)
def test_answers_and_targets_are_what_the_detections_say(rows, expected):
    found = samples(rows)
    assert {kind: boxes(sample) for kind, sample in found.items()} == expected
    for kind, sample in found.items():
        assert [[round(v) for v in box] for box in sample.targets["boxes"]] == expected[kind]
        assert expected[kind] or sample.messages[1]["content"] == [{"type": "none"}]
        pose = sample.messages[0]["content"][1]
        np.testing.assert_array_equal(pose["tokens"], np.array(rows, np.float32))
    labels = [part.get("label") for part in found["hands"].messages[1]["content"] if part["type"] == "box"]
    assert labels == [f"{side} hand" for side, row in zip(("left", "right"), rows) if row is not EMPTY]


def test_the_picture_is_another_one_and_the_same_for_every_question(tmp_path):
    kinds = set()
    for seed in range(12):
        pictures = [sample.messages[0]["content"][0]["image"] for sample in samples([LEFT_WITH_OBJECT, EMPTY], seed, tmp_path).values()]
        assert all(picture is pictures[0] or picture == pictures[0] for picture in pictures)
        kinds.add(type(pictures[0]).__name__)
        if isinstance(pictures[0], str):
            assert pictures[0] == str((tmp_path / "images/2.jpg").resolve())
        else:
            assert pictures[0].shape == (160, 192, 3) and pictures[0].dtype == np.uint8
    assert kinds == {"str", "ndarray"}


def test_a_function_of_seed_and_record():
    first, again, other = (samples([LEFT_WITH_OBJECT, EMPTY], seed) for seed in (4, 4, 5))
    words = [[s.messages[0]["content"][2]["text"] for s in run.values()] for run in (first, again, other)]
    assert words[0] == words[1] != words[2]
    np.testing.assert_array_equal(noise(np.random.default_rng(1), (20, 30)), noise(np.random.default_rng(1), (20, 30)))
