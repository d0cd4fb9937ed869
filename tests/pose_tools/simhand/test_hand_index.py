"""The index of hands: what is saved is read, the search equals sorting by cosine, damage and strangers are named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from safetensors.numpy import save_file

from pose_tools.simhand.hand_index import VARIABLE, HandIndexError, evened_directions, load_hand_index
from pose_tools.tool_protocol import BackendMissing
from tests.pose_tools.simhand.tiny_index import crops, tiny_encoder, tiny_index


@pytest.fixture
def encoder(tmp_path):
    return tiny_encoder(tmp_path / "encoder")


def test_saved_is_read_and_finds_the_same(encoder, tmp_path, monkeypatch):
    made, file = tiny_index(encoder), tmp_path / "deep/index.safetensors"
    made.save(file)
    monkeypatch.setenv(VARIABLE, str(file))
    read = load_hand_index()
    assert (read.hand_ids, read.video_ids, read.jpegs) == (made.hand_ids, made.video_ids, made.jpegs)
    assert (read.source, read.licence, read.fingerprint) == ("noise", "none", encoder.fingerprint)
    assert np.array_equal(read.joints_3d, made.joints_3d, equal_nan=True)
    np.testing.assert_allclose(read.vectors, made.vectors, atol=1e-3)  # float16
    queries = encoder.embed(crops(4, seed=2))
    assert np.array_equal(read.search(queries, 3)[0], made.search(queries, 3)[0])
    assert np.abs(read.thumbnail(2).astype(int) - crops(6)[2]).mean() < 12  # JPEG
    again = tmp_path / "again.safetensors"
    read.save(again)
    assert again.read_bytes() == file.read_bytes() and load_hand_index(file) is read


def test_search_is_sorting_videos_by_their_best_cosine(encoder):
    index, queries = tiny_index(encoder), encoder.embed(crops(4, seed=2))
    rows, cosines = index.search(queries, 4)
    full = index.project(queries.astype(np.float64)) @ index.vectors.T.astype(np.float64)
    best = full.reshape(len(full), 3, 2).max(2)  # of each video's two hands
    np.testing.assert_allclose(cosines, -np.sort(-best, axis=1), atol=1e-6)
    np.testing.assert_allclose(np.take_along_axis(full, rows, 1), cosines, atol=1e-6)
    for query, row, cosine in zip(queries, rows, cosines, strict=True):
        alone = index.search(query[None], 4)
        assert np.array_equal(alone[0][0], row) and np.array_equal(alone[1][0], cosine)
    assert index.search(encoder.embed(crops(6)), 1)[0].ravel().tolist() == list(range(6))


def test_ties_go_to_the_lower_row_and_more_than_there_are_is_all(encoder):
    one = crops(1)[0]
    index = tiny_index(encoder, pictures=[one] * 3)
    rows, cosines = index.search(encoder.embed([one]), 99)
    assert rows.tolist() == [[0, 2]] and cosines.shape == (1, 2)  # two videos
    assert index.search(np.empty((0, encoder.width)), 2)[0].shape == (0, 2)


def test_evened_directions_take_deviations_to_their_roots():
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 12)) * np.geomspace(4, 0.01, 12) @ np.linalg.qr(rng.normal(size=(12, 12)))[0] + 5
    centre, directions = evened_directions(vectors, 6)
    moved = (vectors - centre) @ directions
    deviations = np.sqrt(np.linalg.eigvalsh(np.cov(vectors.T, bias=True))[::-1][:6])
    np.testing.assert_allclose(moved.mean(0), 0, atol=1e-5)
    np.testing.assert_allclose(np.cov(moved.T, bias=True), np.diag(deviations), atol=1e-4)
    assert evened_directions(vectors)[1].shape == (12, 12) and evened_directions(vectors[:3])[1].shape == (12, 2)
    assert np.isfinite(evened_directions(vectors[:1])[1]).all()


def test_indices_that_cannot_be_used(encoder, tmp_path):
    index, file = tiny_index(encoder), tmp_path / "index.safetensors"
    with pytest.raises(HandIndexError, match="vectors of two do not compare"):
        index.check_encoder(tiny_encoder(tmp_path / "other", seed=1))
    with pytest.raises(HandIndexError, match=r"expected \(Q, 16\)"):
        index.search(np.zeros((1, 3)), 1)
    with pytest.raises(HandIndexError, match="count 0"):
        index.search(encoder.embed(crops(1)), 0)
    with pytest.raises(BackendMissing, match="build_hand_index.py"):
        load_hand_index(file)
    index.save(file)
    file.write_bytes(file.read_bytes()[:-40])
    with pytest.raises(HandIndexError, match="is it whole"):
        load_hand_index(file)
    save_file({"vectors": np.zeros((1, 4), np.float32)}, file)
    with pytest.raises(HandIndexError, match="not a file of format"):
        load_hand_index(file)
    replace(index, jpegs=(b"no picture", *index.jpegs[1:])).save(file)
    with pytest.raises(ValueError, match="thumbnail 0 of the index"):
        load_hand_index(file).thumbnail(0)
