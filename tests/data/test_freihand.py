"""FreiHAND: image i carries annotation i mod N, and pictures, joints, vertices and parameters of a sample agree."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from data.freihand import FreiHAND, FreiHANDError
from data.synthetic import hands
from data.synthetic.freihand_writer import SIZE, VERSIONS, write_freihand
from data.synthetic.journal import read_lines
from pose_tools.body_models import Mano, load_mano, standin_hand_arrays

COUNT = 5


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """Five annotations for training, two for evaluation."""
    path = tmp_path_factory.mktemp("freihand")
    assert list(write_freihand(path, "train", 0, COUNT))[-1] == COUNT
    assert list(write_freihand(path, "test", 0, 2))[-1] == 2
    return path


@pytest.fixture(scope="module")
def training(folder) -> FreiHAND:
    return FreiHAND(folder, mano=hands.mano("right"), vertices=True)


def test_image_i_carries_annotation_i_mod_n(folder, training):
    assert training.annotations == COUNT and len(training) == VERSIONS * COUNT
    xyz = json.loads((folder / "training_xyz.json").read_text())
    for i, sample in enumerate(training):
        assert sample.source["image"] == i and sample.annotation == i % COUNT
        assert np.array_equal(sample.joints_3d, xyz[i % COUNT])
        assert sample.image.shape == (SIZE, SIZE, 3) and sample.side == "right"
        if i >= COUNT:
            # the same hand in other colours: same shape inside the mask, other background
            first = training[i % COUNT]
            assert np.array_equal(sample.mask, first.mask) and not np.array_equal(sample.image, first.image)
            edges = [
                np.corrcoef(a[first.mask].mean(1), b[first.mask].mean(1))[0, 1]
                for a, b in ((sample.image.astype(float), first.image.astype(float)),)
            ]
            assert edges[0] > 0.8


def test_labels_of_a_sample_agree(training):
    for sample in training:
        assert np.abs(sample.pose.joints_3d - sample.joints_3d).max() < 1e-5
        assert np.abs(training.root_from_camera(sample.annotation) - sample.joints_3d[9]).max() < 1e-5
        assert sample.source["scale"] == pytest.approx(np.linalg.norm(sample.joints_3d[10] - sample.joints_3d[9]), abs=1e-5)
        parameters = (sample.pose.global_orient, sample.pose.hand_pose, sample.pose.betas, sample.pose.transl)
        with torch.no_grad():
            posed = hands.mano("right")(*(torch.tensor(p[None], dtype=torch.float32) for p in parameters))
        assert np.abs(posed.vertices[0].numpy() - sample.vertices).max() < 1e-5
        x1, y1, x2, y2 = sample.bbox_xyxy
        assert (sample.joints_2d >= [x1 - 3, y1 - 3]).all() and (sample.joints_2d <= [x2 + 3, y2 + 3]).all()
        inside = np.clip(sample.joints_2d, 0, SIZE - 1).astype(int)
        assert sample.joints_valid.all() and sample.mask[inside[:, 1], inside[:, 0]].mean() > 0.5


def test_left_hands_of_the_world_enter_as_right_hands(folder):
    """Some annotations come from left hands; every stored hand is a right one: thumb and palm as the right model has them."""
    from data.synthetic.freihand_writer import _scene_with_hand

    sides = {_scene_with_hand("train", 0, index)[1]["side"] for index in range(COUNT)}
    assert sides == {"left", "right"}
    for record in read_lines(folder / "annotations-training.jsonl", ""):
        axes = hands.hand_axes(np.array(record["xyz"]), "right")
        numbers = np.array(record["mano"][0])
        from scipy.spatial.transform import Rotation

        turned = Rotation.from_rotvec(numbers[:3]).as_matrix() @ hands.skeleton("right").axes
        assert np.einsum("ij,ij->j", axes, turned).min() > 0.9


def test_evaluation_set(folder):
    evaluation = FreiHAND(folder, "evaluation", mano=hands.mano("right"))
    assert len(evaluation) == 2 and evaluation.versions == (0,)
    assert all(sample.mask is None and sample.vertices is None for sample in evaluation)


def test_evaluation_labels_lie_in_the_second_archive(folder, tmp_path):
    """FreiHAND_pub_v2.zip has the pictures, K and scale of the evaluation set, FreiHAND_pub_v2_eval.zip the rest."""
    first, second = tmp_path / "FreiHAND_pub_v2", tmp_path / "FreiHAND_pub_v2_eval"
    shutil.copytree(folder, first)
    labels = [first / f"evaluation_{name}.json" for name in ("xyz", "verts", "mano")]
    contents = {path.name: path.read_bytes() for path in labels}
    for path in labels:
        path.unlink()
    second.mkdir()
    (second / "evaluation_xyz.json").write_bytes(contents["evaluation_xyz.json"])
    with pytest.raises(FreiHANDError, match=r"evaluation_verts\.json is missing: unpack FreiHAND_pub_v2_eval\.zip"):
        FreiHAND(first, "evaluation", vertices=True)
    for name, content in contents.items():
        (second / name).write_bytes(content)
    assert np.array_equal(FreiHAND(first, "evaluation")[1].joints_3d, FreiHAND(folder, "evaluation")[1].joints_3d)
    assert FreiHAND(first, "evaluation", mano=hands.mano("right"), vertices=True)[1].vertices is not None


def test_without_the_second_archive_the_evaluation_set_is_blind(folder, training, tmp_path, caplog):
    shutil.copytree(folder, tmp_path / "blind", ignore=shutil.ignore_patterns("evaluation_xyz*", "evaluation_verts*", "evaluation_mano*"))
    known = FreiHAND(folder, "evaluation")
    blind = FreiHAND(tmp_path / "blind", "evaluation", mano=hands.mano("right"), vertices=True)
    assert "no labels" in caplog.text and len(blind) == len(known)
    for sample, truth in zip(blind, known, strict=True):
        assert sample.joints_3d is None and sample.joints_2d is None and sample.vertices is None and sample.pose is None
        assert sample.joints_valid is not None and not sample.joints_valid.any() and sample.source == truth.source
        np.testing.assert_equal([sample.image, sample.intrinsics], [truth.image, truth.intrinsics])
    usual = np.median([training.label(i).bbox_xyxy for i in range(COUNT)], axis=0)
    np.testing.assert_allclose(blind.label(0).bbox_xyxy, usual)
    (tmp_path / "blind" / "training_xyz.json").unlink()
    assert FreiHAND(tmp_path / "blind", "evaluation").label(1).bbox_xyxy.tolist() == [0, 0, SIZE, SIZE]


def test_versions_and_model_are_optional(folder):
    second = FreiHAND(folder, versions=(2,))
    assert len(second) == COUNT and second[1].source["image"] == 2 * COUNT + 1 and second[1].pose is None
    with pytest.raises(FreiHANDError, match="load_mano"):
        second.pose(0)
    with pytest.raises(IndexError, match=f"sample {COUNT} of {COUNT}"):
        second[COUNT]
    with pytest.raises(FreiHANDError, match="asked for"):
        FreiHAND(folder, versions=(7,))


def test_a_hand_model_that_does_not_fit_is_refused(folder):
    arrays = dict(standin_hand_arrays())
    arrays["hands_mean"] = np.asarray(arrays["hands_mean"]) + 0.25
    with pytest.raises(FreiHANDError, match="MANO_RIGHT"):
        FreiHAND(folder, mano=Mano.from_arrays(arrays, "right"))
    assert len(FreiHAND(folder, mano=load_mano())) == VERSIONS * COUNT


def test_bad_folders_are_one_clear_error_each(folder, tmp_path):
    with pytest.raises(FreiHANDError, match="training_K.json is missing"):
        FreiHAND(tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    whole = (copy / "training_xyz.json").read_text()
    (copy / "training_xyz.json").write_text(whole[:100])
    with pytest.raises(FreiHANDError, match="not a whole json"):
        FreiHAND(copy)
    (copy / "training_xyz.json").write_text(json.dumps(json.loads(whole)[:-1]))
    with pytest.raises(FreiHANDError, match="one release"):
        FreiHAND(copy)
    (copy / "training_xyz.json").write_text(whole)
    for picture in (copy / "training" / "rgb").glob("*.jpg"):
        picture.unlink()
    with pytest.raises(FreiHANDError, match="whole blocks"):
        FreiHAND(copy)


def test_an_extended_folder_would_renumber_its_blocks(folder):
    """Blocks lie N apart, so another count is another folder."""
    from data.synthetic.journal import FolderError

    with pytest.raises(FolderError, match="annotations 5"):
        list(write_freihand(folder, "train", 0, COUNT + 1))


def test_val_does_not_overwrite_test(folder):
    """Both would be the evaluation set of the folder."""
    from data.synthetic.journal import FolderError

    before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    with pytest.raises(FolderError, match=r"split 'test' \(asked for 'val'\)"):
        list(write_freihand(folder, "val", 0, 2))
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == before


def test_stopped_and_continued_is_uninterrupted(folder, tmp_path):
    steps = write_freihand(tmp_path, "test", 0, 2)
    assert [next(steps), next(steps)] == [0, 1]
    steps.close()
    list(write_freihand(tmp_path, "test", 0, 2))
    for path in (*tmp_path.glob("evaluation_*.json"), *tmp_path.rglob("*.jpg")):
        assert path.read_bytes() == (folder / path.relative_to(tmp_path)).read_bytes()
