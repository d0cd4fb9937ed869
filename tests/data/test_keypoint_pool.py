"""The synthetic pool of 2-D hand poses."""

import numpy as np
import pytest

from data.synthetic.keypoints import DECAY, SPREAD, keypoint_pool, write_keypoint_pool


def test_spectrum_and_videos_are_as_stated():
    keypoints, videos = keypoint_pool(20_000, videos=4000)
    flat = keypoints.reshape(20_000, 42).astype(np.float64)
    deviations = np.sqrt(np.linalg.eigvalsh(np.cov(flat.T))[::-1])
    np.testing.assert_allclose(deviations[:20], SPREAD * np.arange(1, 21) ** -DECAY, rtol=0.1)
    assert np.bincount(videos).tolist() == [5] * 4000
    neighbours, strangers = np.linalg.norm(flat[1::5] - flat[::5], axis=1), np.linalg.norm(flat[5::5] - flat[:-5:5], axis=1)
    assert np.median(neighbours) < 0.5 * np.median(strangers)


def test_file_is_kept_and_splits_differ(tmp_path):
    assert list(write_keypoint_pool(tmp_path, "train", 0, 300)) == [300]
    written = (tmp_path / "keypoints-train.npz").stat().st_mtime_ns
    assert list(write_keypoint_pool(tmp_path, "train", 0, 300)) == [300]
    assert (tmp_path / "keypoints-train.npz").stat().st_mtime_ns == written
    list(write_keypoint_pool(tmp_path, "test", 0, 300))
    train, test = (np.load(tmp_path / f"keypoints-{split}.npz")["keypoints"] for split in ("train", "test"))
    assert train.shape == (300, 21, 2) and not np.allclose(train, test)
    list(write_keypoint_pool(tmp_path, "train", 1, 300))
    assert not np.allclose(np.load(tmp_path / "keypoints-train.npz")["keypoints"], train)
    with pytest.raises(ValueError, match="cannot be of 9 videos"):
        keypoint_pool(5, videos=9)
