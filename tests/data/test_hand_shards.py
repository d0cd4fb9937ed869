"""Hand shards: what is written is read, by row, in a stream, by pickle; damage is named; a unit is there whole or not at all."""

import pickle

import numpy as np
import pytest

from data.hand_shards import INDEX, SHARDS, HandShards, ShardError, ShardHand, stream
from data.hand_shards_writer import PARTS, hand_id, settle, unit_facts, write_index, write_unit

pytest.importorskip("pyarrow")
UNITS = {"ego/one.two": 7, "other": 5}


def made(video, count, seed=0):
    rng = np.random.default_rng([seed, count])
    for frame in range(count):
        keypoints = rng.uniform(0, 48, (21, 2)).astype(np.float32)
        if frame == 2:
            keypoints[4] = np.nan
        labels = (rng.normal(size=(21, 3)).astype(np.float32), np.eye(3, dtype=np.float32)) if frame % 3 else (None, None)
        yield ShardHand(
            hand_id(video, frame * 30, 0), video, frame * 30, "left" if frame % 2 else "right", 0.75, np.arange(4, dtype=np.float32),
            np.arange(4, 8, dtype=np.float32), np.tile(rng.integers(0, 256, 3, dtype=np.uint8), (48, 48, 1)), keypoints, *labels,
        )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    for video, count in UNITS.items():
        assert write_unit(tmp_path, video, made(video, count), {"frames": count}, per_shard=3) == count
    assert write_index(tmp_path, list(UNITS)) == 12
    return tmp_path


def same(one, other):
    assert one.as_json() == other.as_json()
    assert np.abs(one.image.astype(int) - other.image).max() <= 3  # JPEG


def test_written_is_read_by_row_in_a_stream_and_by_pickle(folder):
    hands, original = HandShards(folder), [hand for video, count in UNITS.items() for hand in made(video, count)]
    assert len(hands) == 12 and hands.video_ids.tolist() == ["ego/one.two"] * 7 + ["other"] * 5
    np.testing.assert_array_equal(hands.keypoints, np.stack([hand.keypoints for hand in original]))
    np.testing.assert_array_equal(hands.left, [hand.side == "left" for hand in original])
    assert np.isnan(hands.joints_3d).all((1, 2)).tolist() == [hand.joints_3d is None for hand in original]
    for read, written in zip(hands, original, strict=True):
        same(read, written)
    assert pickle.loads(pickle.dumps(hands))[3].image.tobytes() == hands[-9].image.tobytes()
    for streamed, read in zip(stream(folder), hands, strict=True):
        same(streamed, read)
    assert sorted(hand.hand_id for hand in stream(folder, shuffle=4, seed=1)) == sorted(hands.hand_ids)
    with pytest.raises(IndexError):
        hands[12]


def test_key_points_come_in_parts_forward_and_from_the_start(folder, monkeypatch):
    monkeypatch.setattr("data.hand_shards._ROWS", 5)
    hands = HandShards(folder)
    column = hands.keypoint_column()
    assert column.shape == (12, 21, 2)
    for part in (slice(0, 4), slice(4, 11), slice(11, 12), slice(0, 12), slice(3, 3), slice(6, 20)):
        np.testing.assert_array_equal(column[part], hands.keypoints[part])


def test_a_shard_cut_in_half_is_named_or_left_out_and_its_unit_is_not_whole(folder):
    shard = folder / SHARDS / "other-000.tar"
    whole, before = HandShards(folder), shard.read_bytes()
    shard.write_bytes(before[:4096])
    assert unit_facts(folder, "other") is None and unit_facts(folder, "ego/one.two")["hands"] == 7
    with pytest.raises(ShardError, match=r"other-000\.tar has .* bytes, its hands need .*1 damaged shards, 3 of 12 hands"):
        HandShards(folder)
    with pytest.raises(ShardError, match="cut off while it was read"):
        whole.jpeg(9)
    kept = HandShards(folder, damaged="skip")
    assert len(kept) == 9 and kept.skipped == 3 and kept[7].hand_id == whole[10].hand_id
    np.testing.assert_array_equal(kept.keypoint_column()[0:9], whole.keypoints[kept.rows])
    shard.unlink()
    with pytest.raises(ShardError, match="is missing"):
        HandShards(folder)
    write_unit(folder, "other", made("other", 5), {"frames": 5}, per_shard=3)
    assert shard.read_bytes() == before and unit_facts(folder, "other")["frames"] == 5
    shard.write_bytes(before.replace(b"\xff\xd8\xff", b"\x00\x00\x00"))
    with pytest.raises(ShardError, match=r"other-000\.tar, hand other-000000-0"):
        HandShards(folder)[7]


def test_bad_folders_are_named(folder, tmp_path_factory):
    empty = tmp_path_factory.mktemp("empty")
    with pytest.raises(ShardError, match="index.parquet is missing: write the folder"):
        HandShards(empty)
    with pytest.raises(ShardError, match="index.parquet is missing"):
        next(stream(empty))
    write_index(empty, [])
    assert len(HandShards(empty)) == 0 and HandShards(empty).keypoints.shape == (0, 21, 2) and not list(stream(empty))
    write_index(folder, ["other", "ego/one.two", "other"])
    with pytest.raises(ShardError, match="'other-000000-0' occurs more than once"):
        HandShards(folder)
    index = (folder / INDEX).read_bytes()
    (folder / INDEX).write_bytes(index[: len(index) // 2])
    with pytest.raises(ShardError, match="not a whole parquet file"):
        HandShards(folder)
    (folder / PARTS / "other.parquet").write_bytes(b"PAR1")
    assert unit_facts(folder, "other") is None
    settle(folder, {"stride": 30, "sides": ("left", "right")})
    settle(folder, {"stride": 30, "sides": ("left", "right")})
    with pytest.raises(ShardError, match=r"stride 30 \(asked for 10\)"):
        settle(folder, {"stride": 10, "sides": ("left", "right")})
