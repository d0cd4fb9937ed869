"""InterHand2.6M: world → camera with the parameters, both sides, interacting hands, validity."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.hand_samples import HandDataError, check_parameters, hand_models, open_hands
from data.interhand import InterHand
from data.synthetic.interhand_writer import picture_of, write_interhand
from tests.data.hand_folders import assert_sample_agrees

SIZE = (160, 120)
PICTURES = 6


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("interhand")
    list(write_interhand(path, "train", 0, PICTURES, size=SIZE))
    return path


@pytest.fixture(scope="module")
def hands(folder) -> InterHand:
    return open_hands("interhand", folder, "train", models=hand_models())


def test_hands_come_back(hands):
    truth = [(picture, hand) for index in range(PICTURES) for picture in [picture_of("train", 0, index, SIZE)] for hand in picture.hands]
    assert len(hands) == len(truth) == 9 and {hand.side for _, hand in truth} == {"left", "right"}
    for index, (picture, hand) in enumerate(truth):
        sample = hands[index]
        np.testing.assert_allclose(sample.intrinsics, picture.intrinsics)
        assert_sample_agrees(sample, hand)
        assert sample.image.shape == picture.picture.shape
        np.testing.assert_allclose(sample.bbox_xyxy, [*hand.joints_2d.min(0), *hand.joints_2d.max(0)], atol=0.01)
        assert sample.source["hand_type"] == ("interacting" if len(picture.hands) == 2 else hand.side)
    found = check_parameters(hands)
    assert set(found) == {"left", "right", "worst"} and max(found.values()) < 1e-5


def _changed(folder: Path, tmp_path: Path, part: str, change) -> Path:
    copy = tmp_path / part
    shutil.copytree(folder, copy)
    path = copy / "annotations" / f"InterHand2.6M_train_{part}.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return copy


def test_swapped_sides_are_refused(folder, tmp_path):
    def change(content):
        for frame in content["0"].values():
            frame["left"], frame["right"] = frame["right"], frame["left"]

    with pytest.raises(HandDataError, match="hands .* mm"):
        open_hands("interhand", _changed(folder, tmp_path, "MANO_NeuralAnnot", change), "train", models=hand_models())


def test_without_a_wrist_nothing_is_valid_and_other_joints_count_one_by_one(folder, tmp_path):
    def change(content):
        for record in content["annotations"]:
            record["joint_valid"][20] = 0  # right wrist
            record["joint_valid"][21] = 0  # left thumb tip

    hands = InterHand(_changed(folder, tmp_path, "data", change), "train")
    for index in range(len(hands)):
        label = hands.label(index)
        assert label.pose is None and label.joints_valid.sum() == (0 if label.side == "right" else 20)
        assert label.side == "right" or not label.joints_valid[4]


def test_annotations_may_lie_in_all(folder, tmp_path):
    shutil.copytree(folder / "annotations", tmp_path / "annotations" / "all")
    assert len(InterHand(tmp_path, "train")) == 9


def test_bad_folders_are_one_clear_error_each(folder, tmp_path):
    with pytest.raises(HandDataError, match="test_data.json is missing"):
        InterHand(folder, "test")
    with pytest.raises(HandDataError, match="camera 400000 of capture 0"):
        InterHand(_changed(folder, tmp_path, "camera", lambda content: content["0"]["focal"].clear()), "train").label(0)
    with pytest.raises(HandDataError, match="frame 0 of capture 0"):
        InterHand(_changed(folder, tmp_path, "joint_3d", lambda content: content["0"].pop("0")), "train").label(0)
    path = tmp_path / "joint_3d" / "annotations" / "InterHand2.6M_train_joint_3d.json"
    path.write_text(path.read_text()[:50])
    with pytest.raises(HandDataError, match="not a whole json"):
        InterHand(tmp_path / "joint_3d", "train")
    copy = _changed(folder, tmp_path, "data", lambda content: content["images"].pop(0))
    with pytest.raises(HandDataError, match="not listed"):
        InterHand(copy, "train").label(0)
    (copy / "annotations" / "InterHand2.6M_train_data.json").write_text('{"images": [{}]}')
    with pytest.raises(HandDataError, match="'id' is missing"):
        InterHand(copy, "train")
