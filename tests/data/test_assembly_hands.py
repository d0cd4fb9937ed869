"""AssemblyHands: extrinsics per frame, grey pictures, joints without MANO."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.assembly_hands import AssemblyHands
from data.hand_samples import HandDataError, check_parameters, hand_models, open_hands
from data.synthetic.assembly_hands_writer import picture_of, write_assembly_hands
from tests.data.hand_folders import assert_sample_agrees

SIZE = (160, 120)
PICTURES = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("assembly")
    list(write_assembly_hands(path, "val", 0, PICTURES, size=SIZE))
    return path


def test_hands_come_back(folder):
    hands = open_hands("assembly_hands", folder, "val", models=hand_models())
    truth = [(picture, hand) for index in range(PICTURES) for picture in [picture_of("val", 0, index, SIZE)] for hand in picture.hands]
    assert len(hands) == len(truth) > PICTURES and {hand.side for _, hand in truth} == {"left", "right"}
    for index, (picture, hand) in enumerate(truth):
        sample = hands[index]
        np.testing.assert_allclose(sample.intrinsics, picture.intrinsics)
        assert_sample_agrees(sample, hand)
        assert sample.pose is None and sample.vertices is None
        assert sample.image.shape == (120, 160, 3) and (sample.image == sample.image[:, :, :1]).all()
    assert check_parameters(hands) == {}
    assert {hands.cluster(i) for i in range(len(hands))} == {"synthetic_0000", "synthetic_0001"}


def _changed(folder: Path, tmp_path: Path, part: str, change) -> Path:
    copy = tmp_path / part
    shutil.copytree(folder, copy, dirs_exist_ok=True)
    path = copy / "annotations" / "val" / f"assemblyhands_val_{part}_v1-1.json"
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))
    return copy


def test_hands_with_few_valid_joints_are_left_out(folder, tmp_path):
    def change(content):
        for record in content["annotations"]:
            record["joint_valid"][:12] = [0] * 12  # right: 9 are left
            record["joint_valid"][21] = 0

    hands = AssemblyHands(_changed(folder, tmp_path, "ego_data", change), "val")
    assert len(hands) and all(hands.label(i).side == "left" and not hands.label(i).joints_valid[4] for i in range(len(hands)))


def test_the_test_part_has_no_joints(folder, tmp_path):
    there = tmp_path / "annotations" / "test"
    there.mkdir(parents=True)
    for path in (folder / "annotations" / "val").glob("*ego*"):
        shutil.copy(path, there / path.name.replace("_val_", "_test_"))
    label = AssemblyHands(tmp_path, "test").label(0)
    assert label.joints_3d is None and not label.joints_valid.any() and label.bbox_xyxy.shape == (4,)


def test_bad_folders_are_one_clear_error_each(folder, tmp_path):
    with pytest.raises(HandDataError, match="ego_data_v1-1.json is missing"):
        AssemblyHands(folder, "train")
    copy = _changed(folder, tmp_path, "ego_calib", lambda content: content["calibration"]["synthetic_0000"]["extrinsics"].pop("000000"))
    with pytest.raises(HandDataError, match="no camera .* for frame 000000"):
        AssemblyHands(copy, "val").label(0)
    copy = _changed(folder, tmp_path, "joint_3d", lambda content: content["annotations"]["synthetic_0000"].pop("000000"))
    with pytest.raises(HandDataError, match="has no frame 000000"):
        AssemblyHands(copy, "val").label(0)
    copy = _changed(folder, tmp_path, "ego_data", lambda content: content.pop("annotations"))
    with pytest.raises(HandDataError, match="not AssemblyHands' annotations"):
        AssemblyHands(copy, "val")
