"""Mining: every exact method equals brute force, exclusion holds, bad pools give −1 and are counted."""

import logging
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from data.synthetic.keypoints import keypoint_pool
from pose_tools.simhand.faiss_search import IvfSearch
from pose_tools.simhand.mining import mine, prepare
from pose_tools.simhand.neighbours import BlockSearch, TreeSearch, brute_force
from pose_tools.simhand.pose_space import fit_pose_space
from pose_tools.tool_protocol import BackendMissing

pytest.importorskip("faiss")


def pool(count, videos, seed=0):
    keypoints, ids = keypoint_pool(count, videos=videos, seed=seed)
    order = np.random.default_rng(seed).permutation(count)
    return keypoints[order], ids[order]


def naive(keypoints, groups, k, dims=14):
    """Straight from the definition: SVD of the centred pool, all distances, other groups only."""
    flat = keypoints.reshape(len(keypoints), -1).astype(np.float64)
    flat = flat - flat.mean(0)
    points = flat @ np.linalg.svd(flat, full_matrices=False)[2][:dims].T
    distances = np.linalg.norm(points[:, None] - points[None], axis=-1)
    distances[groups[:, None] == groups[None]] = np.inf
    order = np.argsort(distances, axis=1, kind="stable")[:, :k]
    return order, np.take_along_axis(distances, order, 1)


@pytest.mark.parametrize("exclude", ["none", "image", "video"])
def test_equals_the_definition(exclude):
    keypoints, videos = pool(700, 30)
    images = np.arange(700) // 3
    groups = {"none": np.arange(700), "image": images, "video": videos}[exclude]
    index, distance = mine(keypoints, videos, 4, exclude=exclude, image_ids=images)
    expected, away = naive(keypoints, groups, 4)
    np.testing.assert_allclose(distance, away, rtol=1e-4, atol=1e-6)
    assert (index == expected).mean() > 0.995 and index.dtype == np.int64  # float32 coordinates may swap near ties
    assert (groups[index] != groups[:, None]).all()


@given(count=st.integers(1, 60), videos=st.integers(1, 12), k=st.integers(1, 9), seed=st.integers(0, 50), grid=st.booleans())
def test_every_search_equals_brute_force(count, videos, k, seed, grid):
    rng = np.random.default_rng(seed)
    points = rng.normal(size=(count, 3)).astype(np.float32)
    if grid:  # many ties
        points = np.round(points).astype(np.float32)
    groups = np.sort(rng.integers(0, videos, count))
    expected = brute_force(points, groups, np.arange(count), k)
    for search in (
        BlockSearch(points, groups, k),
        TreeSearch(points, groups, k),
        IvfSearch(points, groups, k, lists=min(4, count), probes=4, chunk=17),
    ):
        found = [np.empty_like(part) for part in expected]
        for rows in search.chunks:
            for whole, part in zip(found, search.search(rows), strict=True):
                whole[rows] = part
        if isinstance(search, IvfSearch) and grid:
            np.testing.assert_array_equal(found[1], expected[1])  # ties beyond the spare candidates may be others
        else:
            np.testing.assert_array_equal(found[0], expected[0])
            np.testing.assert_array_equal(found[1], expected[1])


def test_tree_and_block_agree_where_one_video_fills_the_neighbourhood():
    """Frames of a video are so alike that hundreds of nearest neighbours are illegal."""
    rng = np.random.default_rng(0)
    groups = np.repeat(np.arange(4), 400)
    points = (rng.normal(size=(4, 5))[groups] * 3 + 0.01 * rng.normal(size=(1600, 5))).astype(np.float32)
    rows = np.arange(0, 1600, 7)
    tree, block = (search(points, groups, 3).search(rows) for search in (TreeSearch, BlockSearch))
    for a, b, c in zip(tree, block, brute_force(points, groups, rows, 3), strict=True):
        np.testing.assert_array_equal(a, c)
        np.testing.assert_array_equal(b, c)


def test_five_thousand_equal_brute_force():
    keypoints, videos = pool(5000, 50)
    index, distance = mine(keypoints, videos, 3)
    miner = prepare(keypoints, videos, 3)
    expected = brute_force(miner.points, miner.groups, np.arange(5000), 3)
    np.testing.assert_array_equal(index[miner.whole], miner.whole[expected[0]])
    np.testing.assert_array_equal(distance[miner.whole], expected[1])


def test_ivf_finds_nearly_all_and_is_deterministic():
    keypoints, videos = pool(3000, 60)
    miner = prepare(keypoints, videos, 2, method="ivf", probes=8)
    assert miner.recall() > 0.97
    first, second = (mine(keypoints, videos, 2, method="ivf", seed=3) for _ in range(2))
    np.testing.assert_array_equal(first[0], second[0])
    assert (videos[first[0]] != videos[:, None]).all()


def test_a_video_that_fills_the_lists_hides_nothing():
    """Where the lists looked into hold none but its own video's hands, all lists are."""
    rng = np.random.default_rng(0)
    points = np.concatenate([rng.normal(size=(900, 4)), 30 + rng.normal(size=(300, 4))]).astype(np.float32)
    groups = np.sort(np.r_[np.zeros(900, int), np.arange(1, 301) // 5 + 1])
    search = IvfSearch(points, groups, 2, lists=12, probes=1)
    index, distance = search.search(np.arange(900))
    np.testing.assert_array_equal(index, brute_force(points, groups, np.arange(900), 2)[0])
    alone = IvfSearch(points, np.zeros(1200, int), 2, lists=12, probes=1).search(np.arange(1200))
    assert (alone[0] == -1).all() and np.isinf(alone[1]).all()


def test_ivf_without_faiss_names_the_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(BackendMissing, match='pip install faiss-cpu.*or use method "exact"'):
        mine(*pool(100, 5), 1, method="ivf")


def test_order_of_the_pool_does_not_matter():
    keypoints, videos = pool(500, 20)
    order = np.random.default_rng(5).permutation(500)
    index, distance = mine(keypoints, videos, 3)
    moved, away = mine(keypoints[order], videos[order], 3)
    np.testing.assert_allclose(away, distance[order], rtol=1e-5)
    assert (order[moved] == index[order]).mean() > 0.99
    tensors = mine(torch.from_numpy(keypoints), torch.from_numpy(videos), 3)
    assert torch.equal(tensors[0], torch.from_numpy(index)) and tensors[1].dtype == torch.float32


def test_normalisation():
    keypoints, videos = pool(300, 20)
    rng = np.random.default_rng(0)
    shifted = keypoints + rng.uniform(-1, 1, (300, 1, 2)).astype(np.float32)
    scaled = shifted * rng.uniform(0.5, 2, (300, 1, 1)).astype(np.float32)
    plain = {how: mine(keypoints, videos, 1, normalise=how)[1] for how in ("none", "wrist", "wrist_scale")}
    np.testing.assert_allclose(mine(shifted, videos, 1, normalise="wrist")[1], plain["wrist"], rtol=1e-3, atol=1e-5)
    np.testing.assert_allclose(mine(scaled, videos, 1, normalise="wrist_scale")[1], plain["wrist_scale"], rtol=1e-3, atol=1e-4)
    assert not np.allclose(plain["none"], plain["wrist"], rtol=1e-2)


def test_missing_key_points_one_video_and_small_pools(caplog):
    keypoints, videos = pool(50, 5)
    keypoints[7, 3] = np.nan
    with caplog.at_level(logging.WARNING):
        index, distance = mine(keypoints, videos, 3)
    assert (index[7] == -1).all() and np.isinf(distance[7]).all() and not (index == 7).any()
    assert "1 of 50 hands have missing key points" in caplog.text
    caplog.clear()
    with caplog.at_level(logging.WARNING):
        index, distance = mine(keypoints, np.zeros(50, int), 2)
    assert (index == -1).all() and np.isinf(distance).all() and "49 of 50 hands have no legal neighbour" in caplog.text
    index, distance = mine(keypoints[:3], np.array([0, 1, 1]), 5)
    assert (index >= 0).sum(1).tolist() == [2, 1, 1] and np.isinf(distance[index < 0]).all()
    same = np.repeat(keypoints[:1], 9, axis=0)
    index, distance = mine(same, np.arange(9) // 3, 2)
    assert index[0].tolist() == [3, 4] and index[4].tolist() == [0, 1] and (distance == 0).all()


def test_streamed_pca_is_the_whole_pools():
    keypoints, _ = pool(3000, 30)
    import pose_tools.simhand.pose_space as module

    whole = fit_pose_space(keypoints)
    parts = list(module.chunks(keypoints, 700))
    assert [len(part) for part in parts] == [700, 700, 700, 700, 200]
    flat = keypoints.reshape(3000, -1).astype(np.float64)
    variances = np.sort(np.linalg.eigvalsh(np.cov(flat.T, bias=True)))[::-1]
    assert whole.explained == pytest.approx(variances[:14].sum() / variances.sum())
    np.testing.assert_allclose(whole.project(keypoints).var(0), variances[:14], rtol=1e-4)


def test_pictures_may_be_the_only_ids():
    keypoints, _ = pool(60, 6)
    pictures = np.arange(60) // 2
    index, distance = mine(keypoints, pictures, 3, exclude="image")
    as_videos = mine(keypoints, pictures, 3, exclude="video")
    assert np.array_equal(index, as_videos[0]) and np.array_equal(distance, as_videos[1])


def test_bad_arguments_are_named():
    keypoints, videos = pool(10, 2)
    with pytest.raises(ValueError, match="needs image_ids"):
        prepare(keypoints, videos, 1, exclude="image")
    for bad, message in (
        ({"exclude": "frame"}, "exclude must be"),
        ({"method": "hnsw"}, "method must be"),
        ({"dims": 43}, "dims must be"),
        ({"normalise": "palm"}, "normalise must be"),
    ):
        with pytest.raises(ValueError, match=message):
            mine(keypoints, videos, 1, **bad)
    with pytest.raises(ValueError, match=r"video_ids must be \(10,\)"):
        mine(keypoints, videos[:4], 1)
    with pytest.raises(ValueError, match=r"\(N, 21, 2\)"):
        mine(keypoints[:0], videos[:0], 1)
    with pytest.raises(ValueError, match="no pose of the pool"):
        mine(np.full((4, 21, 2), np.nan), np.arange(4), 1)
