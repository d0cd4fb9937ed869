"""Synthetic hand videos: exact labels, what a video shares, poses that recur; a folder that was stopped and extended equals another."""

import numpy as np
import pytest

from data.hand_shards import HandShards
from data.synthetic import hand_images_writer
from data.synthetic.hand_images_writer import write_hand_images
from data.synthetic.hand_videos import hand_video, pose_bank
from data.synthetic.hands import hand_axes
from pose_tools.geometry import project

pytest.importorskip("pyarrow")


def test_labels_of_a_crop_fit_each_other_and_the_picture():
    for number in (0, 1):
        first, second = hand_video(3, "train", number, 64, 2)
        np.testing.assert_allclose(project(first.joints_3d, first.intrinsics), first.keypoints, atol=1e-9)
        assert first.image.shape == (64, 64, 3) and (first.keypoints > -4).all() and (first.keypoints < 68).all()
        scale = 64 / (first.crop_box[2:] - first.crop_box[:2])
        inside = (first.bbox_xyxy.reshape(2, 2) - first.crop_box[:2]) * scale
        if first.side == "left":
            inside[:, 0] = 64 - inside[::-1, 0]
        assert inside.min() > 2 and inside.max() < 62  # the published crop is 1.3 boxes wide
        # every crop is of a right hand: its fingers bend to the side of a right palm
        axes = hand_axes(first.joints_3d, "right")
        assert ((first.joints_3d[8] - first.joints_3d[5]) @ axes[:, 1]) > 0.01 and second.side == first.side
        assert np.abs(first.keypoints - second.keypoints).mean() < 12


def test_longer_videos_begin_as_shorter_ones_and_poses_recur():
    short, longer = hand_video(0, "val", 5, 48, 1), hand_video(0, "val", 5, 48, 3)
    np.testing.assert_array_equal(short[0].image, longer[0].image)
    assert len(longer) == 3 and not np.array_equal(longer[0].image, longer[1].image)
    bank = pose_bank(0, "val")
    assert 0.2 < np.mean([pose.thing is not None for pose in bank]) < 0.6
    assert not np.array_equal(bank[0].numbers, pose_bank(0, "test")[0].numbers)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_stopped_extended_and_damaged_folders_become_the_same(tmp_path, monkeypatch):
    monkeypatch.setattr(hand_images_writer, "VIDEOS", 1)
    monkeypatch.setattr(hand_images_writer, "FRAMES", 3)
    assert list(write_hand_images(tmp_path / "one", "train", 0, 8, 48))[-1] == 8
    writer = write_hand_images(tmp_path / "two", "train", 0, 4, 48)
    assert next(writer) == 0 and next(writer) == 3
    writer.close()
    assert not (tmp_path / "two" / "index.parquet").exists()
    assert list(write_hand_images(tmp_path / "two", "train", 0, 7, 48)) == [3, 6, 7]
    shard = next((tmp_path / "two" / "shards").glob("*1-000.tar"))
    shard.write_bytes(shard.read_bytes()[:700])
    assert list(write_hand_images(tmp_path / "two", "train", 0, 8, 48)) == [3, 6, 8]
    assert files(tmp_path / "one") == files(tmp_path / "two")
    hands = HandShards(tmp_path / "one")
    assert len(hands) == 8 and len(hands.videos) == 3
    np.testing.assert_allclose(project(hands[5].joints_3d, hands[5].intrinsics), hands[5].keypoints, atol=0.01)
