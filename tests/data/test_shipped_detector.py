"""The detector this project ships, on scenes nobody trained on: the numbers stand in its card, this sees that the files still work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from data.synthetic import world
from pose_tools.small_detector import DEFAULT_FOLDER, load_small_detector
from pose_tools.small_detector_losses import box_overlap


@pytest.fixture(scope="module")
def scenes() -> list:
    return [world.make_scene(4321, "test", index) for index in range(12)]


def overlap(a, b) -> float:
    return float(box_overlap(torch.tensor(a, dtype=torch.float32), torch.tensor(b, dtype=torch.float32))[0])


def test_it_finds_hands_and_what_they_hold(scenes):
    found = load_small_detector().detect_batch([scene.picture for scene in scenes])
    hands, held, wrong = [], [], 0
    for scene, detections in zip(scenes, found, strict=True):
        said = {hand.side: hand for hand in detections if hand.score >= 0.5}
        wrong += len(said.keys() ^ {hand["side"] for hand in scene.record["hands"]})
        for hand in scene.record["hands"]:
            if hand["side"] in said:
                hands.append(overlap(said[hand["side"]].bbox_xyxy, hand["bbox_xyxy"]) >= 0.5)
                thing = said[hand["side"]].object_bbox
                if hand["held"] is not None:
                    held.append(thing is not None and overlap(thing, scene.record["objects"][hand["held"]]["bbox_xyxy"]) >= 0.5)
    assert len(hands) >= 10 and np.mean(hands) >= 0.85 and wrong <= 2
    assert len(held) >= 4 and np.mean(held) >= 0.6


def test_a_mirrored_picture_has_mirrored_sides(scenes):
    model, count = load_small_detector(), 0
    for scene in scenes[:6]:
        width = scene.picture.shape[1]
        mirrored = {hand.side: hand for hand in model.detect(np.ascontiguousarray(scene.picture[:, ::-1])) if hand.score > 0.8}
        for hand in (hand for hand in model.detect(scene.picture) if hand.score > 0.8):
            other = mirrored["right" if hand.side == "left" else "left"]
            x1, y1, x2, y2 = other.bbox_xyxy
            assert overlap((width - x2, y1, width - x1, y2), hand.bbox_xyxy) > 0.7
            count += 1
    assert count >= 4


def test_its_size_stays_small():
    assert sum(path.stat().st_size for path in DEFAULT_FOLDER.iterdir()) <= 3e6
