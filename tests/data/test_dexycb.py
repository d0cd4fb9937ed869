"""DexYCB: 45 principal components about the mean pose, both sides, frames without a hand, the four official splits."""

from __future__ import annotations

import shutil
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from data.dexycb import SETUPS, DexYCB, split_of
from data.hand_samples import HandDataError, check_parameters, hand_models, open_hands
from data.synthetic.dexycb_writer import hand_of, write_dexycb
from tests.data.hand_folders import assert_sample_agrees

SIZE = (160, 120)
COUNT = 7


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("dexycb")
    list(write_dexycb(path, "train", 0, COUNT, size=SIZE))
    list(write_dexycb(path, "test", 0, 2, size=SIZE))
    return path


@pytest.fixture(scope="module")
def train(folder) -> DexYCB:
    return open_hands("dexycb", folder, "train", models=hand_models(), setup="s1")


def test_hands_come_back_and_empty_frames_have_none(train):
    assert len(train) == 2 * COUNT
    order = (0, 1, 2, 3, 4, 5, 6)  # subject after subject, one recording each
    sides = set()
    for place, recording in enumerate(order):
        picture, hand = hand_of("train", 0, recording, SIZE)
        sample = train[2 * place]
        assert_sample_agrees(sample, hand, atol=1e-5)
        sides.add(sample.side)
        assert np.abs(sample.image.astype(int) - picture).mean() < 3
        empty = train[2 * place + 1]
        assert empty.joints_3d is None and empty.pose is None and empty.vertices is None and not empty.joints_valid.any()
        assert empty.bbox_xyxy.tolist() == [0, 0, 640, 480]
    assert sides == {"left", "right"}
    assert max(check_parameters(train).values()) < 1e-5


def test_pca_taken_for_axis_angle_would_be_refused(train, monkeypatch):
    from pose_tools.body_models import Mano

    wrong = Mano.absolute_pose
    monkeypatch.setattr(Mano, "absolute_pose", lambda self, pose, pose_format="pca", **more: wrong(self, pose, flat_hand_mean=True))
    with pytest.raises(HandDataError, match="worst"):
        check_parameters(train)


def test_splits_are_the_official_ones():
    places = list(product(range(10), range(8), range(100)))
    counts = {setup: [sum(split_of(setup, *place) == split for place in places) for split in ("train", "val", "test")] for setup in SETUPS}
    # sequences by cameras: 10 subjects, 8 cameras, 100 sequences
    assert counts == {"s0": [6400, 320, 1280], "s1": [5600, 800, 1600], "s2": [6000, 1000, 1000], "s3": [6000, 800, 1200]}
    with pytest.raises(HandDataError, match="s4"):
        split_of("s4", 0, 0, 0)


def test_setups_share_no_sequence_between_their_splits(folder):
    test = open_hands("dexycb", folder, "test", setup="s1")
    assert {test.cluster(i)[:18] for i in range(len(test))} == {"20200708-subject-0"} | {"20200709-subject-0"}
    assert len(DexYCB(folder, "train", setup="s1", every=2)) == COUNT
    with pytest.raises(HandDataError, match="no samples of the split 'val'"):
        open_hands("dexycb", folder, "val", setup="s1")


def test_a_subject_with_sequences_missing_has_other_splits_and_says_so(folder, caplog):
    """s0 and s3 go by a sequence's place among its subject's hundred: where one is gone, those behind it change sides."""
    for setup in ("s1", "s2"):
        DexYCB(folder, "train", setup=setup)
    assert not caplog.text
    DexYCB(folder, "train", setup="s0")
    assert "20200701-subject-01: 1 sequences, the published subject has 100; s0 goes by" in caplog.text


def test_bad_folders_are_one_clear_error_each(folder, tmp_path):
    with pytest.raises(HandDataError, match="subject-01"):
        DexYCB(tmp_path, "train")
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    hands = DexYCB(copy, "train", setup="s1")
    labels = hands.picture(0).with_name("labels_000000.npz")
    labels.write_bytes(labels.read_bytes()[:60])
    with pytest.raises(HandDataError, match="not readable labels"):
        hands.label(0)
    labels.unlink()
    with pytest.raises(HandDataError, match="is missing"):
        hands.label(0)
    np.savez(labels, joint_3d=np.zeros((1, 20, 3)), pose_m=np.zeros((1, 51)))
    with pytest.raises(HandDataError, match="joint_3d: finite numbers"):
        hands.label(0)
    for path in (copy / "calibration" / "intrinsics").glob("*.yml"):
        path.write_text("color: {fx: 1}")
    with pytest.raises(HandDataError, match="fx, fy, ppx, ppy"):
        DexYCB(copy, "train", setup="s1").label(2)
    meta = next(copy.glob("20200701*/*/meta.yml"))
    meta.write_text("num_frames: [")
    with pytest.raises(HandDataError, match="not YAML"):
        DexYCB(copy, "train", setup="s1")
    meta.write_text("num_frames: 2")
    with pytest.raises(HandDataError, match="mano_sides, mano_calib missing"):
        DexYCB(copy, "train", setup="s1")
