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


def _as_test_part(folder: Path, annotations: Path, rename, change=lambda content: content) -> None:
    """The validation part's annotations under other names; `rename` takes "ego_data", …"""
    annotations.mkdir(parents=True)
    for part in ("ego_data", "ego_calib", "joint_3d"):
        content = json.loads((folder / f"annotations/val/assemblyhands_val_{part}_v1-1.json").read_text())
        (annotations / rename(part)).write_text(json.dumps(change(content)))


def assert_same_but_joints(blind: AssemblyHands, known: AssemblyHands) -> None:
    assert len(blind) == len(known)
    for label, truth in ((blind.label(i), known.label(i)) for i in range(len(known))):
        assert label.joints_3d is None and label.joints_valid is not None and not label.joints_valid.any()
        np.testing.assert_equal([label.side, label.bbox_xyxy, label.intrinsics], [truth.side, truth.bbox_xyxy, truth.intrinsics])


@pytest.mark.parametrize("version", ["iccv23", "iccv23-v1-3"])
def test_the_first_challenges_files_open_under_their_own_names(folder, tmp_path, version):
    annotations = tmp_path / "annotations" / "test"
    _as_test_part(folder, annotations, lambda part: f"assemblyhands_test_{part}_{version if part == 'ego_data' else 'v1-1'}.json")
    (annotations / "assemblyhands_test_joint_3d_v1-1.json").rename(
        annotations / f"assemblyhands_test_joint_3d_{version}_pred_template.json"
    )
    if version != "iccv23":  # the older one beside it
        (annotations / "assemblyhands_test_ego_data_iccv23.json").write_text('{"images": [], "annotations": []}')
    assert_same_but_joints(AssemblyHands(tmp_path, "test"), AssemblyHands(folder, "val"))


@pytest.mark.parametrize("inside", ["", "test_HANDS2024"])
def test_the_second_challenges_folders_open_as_they_are_downloaded(folder, tmp_path, inside):
    """Its joints are all 1, and so are its extrinsics; its pictures are in another folder than their names say."""

    def blind(content):
        for sequence in content.get("calibration", {}).values():
            sequence["extrinsics"] = {frame: [1.0] for frame in sequence["extrinsics"]}
        for image in content.get("images", ()):
            image["file_name"] = image["file_name"].replace("/val/", "/test_HANDS2024/")
        for frames in content["annotations"].values() if isinstance(content.get("annotations"), dict) else ():
            frames.update({frame: {"world_coord": [[1.0] * 3] * 42} for frame in frames})
        return content

    annotations = tmp_path / "annotations" / "test-eccv2024" / inside
    _as_test_part(folder, annotations, lambda part: f"assemblyhands_test_{part}_v1-1.json", blind)
    pictures = tmp_path / "images" / "ego_images_rectified"
    shutil.copytree(folder / "images" / "ego_images_rectified" / "val", pictures / "test-eccv2024")
    blind_hands, known = AssemblyHands(tmp_path, "test"), AssemblyHands(folder, "val")
    assert_same_but_joints(blind_hands, known)
    assert np.array_equal(blind_hands[0].image, known[0].image)
    (pictures / "test-eccv2024").rename(pictures / "test_HANDS2024")
    assert np.array_equal(blind_hands[1].image, known[1].image)
    (tmp_path / "annotations" / "test").mkdir()
    _as_test_part(folder, tmp_path / "annotations/test/new", lambda part: f"assemblyhands_test_{part}_v1-1.json")
    assert AssemblyHands(tmp_path, "test", part="test/new").label(0).joints_3d is not None


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
