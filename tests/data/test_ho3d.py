"""HO-3D: OpenGL's frame, MANO's order and the lists of both versions, read back as the world drew them."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path

import numpy as np
import pytest

from data.hand_samples import HandDataError, check_parameters, hand_models, in_share, open_hands
from data.ho3d import HO3D
from data.synthetic.ho3d_writer import hand_of, write_ho3d
from pose_tools.body_models import Mano, standin_hand_arrays
from tests.data.hand_folders import assert_sample_agrees

SIZE = (160, 120)
SEED = next(seed for seed in range(99) if in_share("AB", 0.5, seed) != in_share("CD", 0.5, seed))
TRAIN, TEST = 6, 2


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("ho3d")
    list(write_ho3d(path, "train", 0, TRAIN, size=SIZE))
    list(write_ho3d(path, "test", 0, TEST, size=SIZE))
    return path


@pytest.fixture(scope="module")
def models():
    return hand_models()


def test_training_frames_come_back(folder, models):
    hands = HO3D(folder, model=models["right"])
    assert len(hands) == TRAIN and max(check_parameters(hands).values()) < 1e-5
    for index in range(len(hands)):
        picture, intrinsics, hand = hand_of("train", 0, index, SIZE)
        sample = hands[index]
        assert np.array_equal(sample.image, picture) and np.array_equal(sample.intrinsics, intrinsics)
        assert_sample_agrees(sample, hand)
        assert (sample.joints_3d[:, 2] > 0).all()


def test_evaluation_frames_have_the_truth_that_lies_beside_the_lists(folder, models, tmp_path):
    hands = HO3D(folder, "evaluation", model=models["right"])
    for index in range(TEST):
        _, _, hand = hand_of("test", 0, index, SIZE)
        label = hands.label(index)
        assert_sample_agrees(label, hand)
        np.testing.assert_allclose(label.vertices, hand.vertices, atol=2e-6)
    shutil.copytree(folder, tmp_path / "blind", ignore=shutil.ignore_patterns("evaluation_*.json"))
    label = HO3D(tmp_path / "blind", "evaluation").label(0)
    _, _, hand = hand_of("test", 0, 0, SIZE)
    assert label.joints_3d is None and not label.joints_valid.any()
    np.testing.assert_allclose(label.source["root"], hand.joints[0], atol=1e-6)
    np.testing.assert_allclose(label.bbox_xyxy, [*hand.joints_2d.min(0), *hand.joints_2d.max(0)])
    assert np.array_equal(label.bbox_xyxy, hands.label(0).bbox_xyxy), "a prediction is the same whether the truth lies there or not"


def test_version_3_has_jpg_pictures(tmp_path):
    list(write_ho3d(tmp_path, "train", 0, 1, size=SIZE, version="v3"))
    hands = HO3D(tmp_path)
    assert hands.picture(0).suffix == ".jpg" and hands[0].image.shape == (120, 160, 3) and hands[0].pose is None


def test_what_else_the_published_annotations_tell_does_not_matter(folder, tmp_path, models):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "train" / "AB1" / "meta" / "0003.pkl"
    more = {
        "camIDList": np.array(["0", "1"]), "objName": np.str_("003_cracker_box"), "objLabel": np.int64(2), "objRot": np.zeros((3, 1)),
        "handVertContact": np.zeros(778, bool), "handVertDist": np.zeros(778, np.float16),
    }  # fmt: skip
    path.write_bytes(pickle.dumps(pickle.loads(path.read_bytes()) | more, protocol=2))
    assert_sample_agrees(HO3D(tmp_path / "copy", model=models["right"]).label(3), hand_of("train", 0, 3, SIZE)[2])


def test_recordings_never_fall_on_both_sides(folder):
    parts = {split: open_hands("ho3d", folder, split, val_share=0.5, seed=SEED) for split in ("train", "val")}
    assert len(parts["train"]) + len(parts["val"]) == TRAIN
    found = {split: {part.cluster(i) for i in range(len(part))} for split, part in parts.items()}
    assert found == {"train": found["train"], "val": {"AB", "CD"} - found["train"]} and found["train"] and found["val"]


def test_frames_without_annotation_have_no_joints(folder, tmp_path, models):
    shutil.copytree(folder, tmp_path / "copy")
    path = tmp_path / "copy" / "train" / "AB1" / "meta" / "0003.pkl"
    meta = pickle.loads(path.read_bytes())
    path.write_bytes(pickle.dumps({key: meta[key] if key == "camMat" else None for key in meta}, protocol=2))
    hands = HO3D(tmp_path / "copy", model=models["right"])
    label = hands.label(3)
    assert label.joints_3d is None and label.pose is None and not label.joints_valid.any()
    assert max(check_parameters(hands).values()) < 1e-5


def test_a_model_that_does_not_fit_is_refused_with_the_worst_sample(folder):
    arrays = dict(standin_hand_arrays())
    arrays["v_template"] = np.asarray(arrays["v_template"]) * 1.1
    wrong = {"right": Mano.from_arrays(arrays, "right")}
    with pytest.raises(HandDataError, match=r"right hands .* the worst, .*\.png"):
        open_hands("ho3d", folder, "train", models=wrong)
    assert len(open_hands("ho3d", folder, "train", models=wrong, check=False, val_share=0)) == TRAIN


class _Evil:
    def __reduce__(self):
        return (print, ("run",))


def test_bad_folders_are_one_clear_error_each(folder, tmp_path):
    with pytest.raises(HandDataError, match="no such folder"):
        open_hands("ho3d", tmp_path / "nowhere")
    with pytest.raises(HandDataError, match="train.txt is missing"):
        open_hands("ho3d", tmp_path)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    meta = copy / "train" / "AB1" / "meta" / "0001.pkl"
    whole = meta.read_bytes()
    for content, words in (
        (whole[:100], "damaged"),
        (pickle.dumps({"camMat": _Evil()}), "nothing was run"),
        (pickle.dumps(pickle.loads(whole) | {"handPose": np.zeros(45)}, protocol=2), "handPose"),
        (pickle.dumps(pickle.loads(whole) | {"handJoints3D": np.full((21, 3), np.nan)}, protocol=2), "not all finite"),
    ):
        meta.write_bytes(content)
        with pytest.raises(HandDataError, match=words):
            HO3D(copy, model=hand_models()["right"]).label(1)
    meta.unlink()
    with pytest.raises(HandDataError, match="0001.pkl is missing"):
        HO3D(copy).label(1)
    (copy / "train.txt").write_text("../../secret\n")
    with pytest.raises(HandDataError, match="SEQUENCE/NUMBER"):
        HO3D(copy)


def test_an_evaluation_truth_of_other_length_is_refused(folder, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    (copy / "evaluation_xyz.json").write_text("[[[0, 0, 0]]]")
    with pytest.raises(HandDataError, match="one entry for each line"):
        HO3D(copy, "evaluation")
