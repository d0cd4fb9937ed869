"""scripts/pretrain_simhand.py: every config loads, shards and caches give the same hands, what cannot be is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from data.hand_shards import HandShards, ShardHand
from data.hand_shards_writer import write_index, write_unit
from data.shard_samples import ShardSamples
from pose_tools.mano import sample_cache
from pose_tools.simhand.encoder import load_encoder
from pose_tools.simhand.experiments import experiment
from pose_tools.simhand.hand_embedding import load_hand_encoder
from pose_tools.simhand.hand_pool import HandPool
from pose_tools.simhand.mining import mine
from pose_tools.training import TrainingError
from scripts.pretrain_simhand import (
    EncoderSettings,
    HandsSettings,
    MiningSettings,
    PretrainingSettings,
    find_partners,
    fit,
    publish,
    read_pools,
    whole,
)
from tests.pose_tools.simhand.tiny_pretraining import samples, settings
from vlm import settings as typed

CONFIGS = Path(__file__).parents[1] / "scripts/configs"


@pytest.fixture
def shards(tmp_path) -> Path:
    """36 hands of 12 videos; the key points of one are missing."""
    rng, folder = np.random.default_rng(0), tmp_path / "hands"
    for video in range(12):
        hands = []
        for frame, sample in enumerate(samples(3, seed=video)):
            points = np.full((21, 2), np.nan) if (video, frame) == (4, 1) else sample.joints_2d
            box, joints = sample.bbox_xyxy, rng.normal(size=(21, 3)).astype(np.float32)
            hands.append(ShardHand(f"v{video}-{frame}", f"v{video}", frame, sample.side, 0.9, box, box, sample.image,
                                   points.astype(np.float32), joints, np.eye(3, dtype=np.float32)))  # fmt: skip
        write_unit(folder, f"v{video}", hands, {})
    write_index(folder, [f"v{video}" for video in range(12)])
    return folder


@pytest.fixture
def config(tmp_path, shards) -> PretrainingSettings:
    encoder = EncoderSettings(depths=(1, 1), hidden_sizes=(8, 16), embedding_size=8, layer_type="basic")
    data = HandsSettings(str(shards), kind="shards", validation=0.3, judge=8)
    training, asset = settings(tmp_path / "run", max_steps=2, warmup_steps=1), str(tmp_path / "asset/encoder.safetensors")
    return PretrainingSettings(data, training, encoder=encoder, image_size=32, head_hidden=16, head_output=8, asset=asset)


def test_published_schedules():
    for size in (50, 152):
        found = typed.load(PretrainingSettings, CONFIGS / f"simhand_resnet{size}.yaml", [])
        assert experiment(found.experiment).name == "simhand_w" and found.training.optimizer == "lars" and found.training.batch_size == 8192
    assert typed.load(PretrainingSettings, CONFIGS / "simhand_small.yaml", []).image_size == 64


def test_from_shards_to_a_published_encoder(config):
    fit(config)
    publish(config)
    assert load_encoder(config.asset).width == 16
    assert load_hand_encoder(Path(config.asset).parent).image_size == 32


def test_pools_share_no_video_and_have_whole_hands(config):
    pool, probe, held_out = read_pools(replace(config.data, judge=36), 0)
    assert not set(pool.videos) & set(held_out.videos) and set(probe.videos) <= set(pool.videos)
    assert len(pool) + len(held_out) == 35 and all(np.isfinite(hand.joints_2d).all() for part in (pool, held_out) for hand in part)


def test_key_points_with_and_without_the_pictures(shards):
    hands = ShardSamples(HandShards(shards))
    videos, points = hands.shards.video_numbers, hands.shards.keypoints
    chosen = np.flatnonzero(hands.whole)
    with_pictures, without = HandPool(hands, videos, chosen), HandPool(hands, videos, chosen, points)
    assert np.array_equal(with_pictures.key_points(), without.key_points())
    assert np.array_equal(with_pictures.partners(), without.partners())


def test_pairs_that_were_mined_before_are_those_mined_now(config, shards, tmp_path):
    """All hands of the pool: the same pairs; a pool without some of them: their next neighbours; other folders' pairs are refused."""
    hands, points = ShardSamples(HandShards(shards)), HandShards(shards).keypoints
    points[13] = 20  # the hand without key points
    videos = np.repeat(np.arange(12), 3)
    whole = HandPool(hands, videos, None, points)
    indices, _ = mine(whole.key_points(), videos, 30)
    assert np.array_equal(whole.mined_partners(indices), whole.partners())
    assert np.array_equal(whole.mined_partners(indices, rank=2), whole.partners(rank=2))
    part = HandPool(hands, videos, np.arange(0, 36, 2), points)
    for row, partner in enumerate(part.mined_partners(indices)):
        known = [near for near in indices[part.numbers[row]] if near % 2 == 0]
        assert part.numbers[partner] == known[0]
    np.savez(tmp_path / "pairs.npz", indices=np.full((36, 1), -1))
    assert (find_partners(part, MiningSettings(pairs=str(tmp_path / "pairs.npz"))) == -1).all()
    np.savez(tmp_path / "pairs.npz", indices=indices[:20])
    for file, message in (("pairs.npz", "are not those of 36 hands"), ("nowhere.npz", "not an .npz of scripts/mine_hands.py")):
        with pytest.raises(TrainingError, match=message):
            find_partners(whole, MiningSettings(pairs=str(tmp_path / file)))


def test_refusals(config):
    with pytest.raises(TrainingError, match="batch_size 8 is no multiple of micro_batch_size 3 × 1 processes"):
        fit(replace(config, training=replace(config.training, micro_batch_size=3)))
    with pytest.raises(ValueError, match="unknown experiment 'simhand-w', expected one of simclr"):
        fit(replace(config, experiment="simhand-w"))
    with pytest.raises(TrainingError, match="0 to judge by: change data.validation"):
        read_pools(replace(config.data, validation=0.0), 0)
    with pytest.raises(TrainingError, match="train first"):
        publish(config)


def test_hands_without_all_key_points_are_left_out_of_every_kind(tmp_path):
    hands = [replace(hand, annotation=number) for number, hand in enumerate(samples(30))]
    hands[3], hands[4] = replace(hands[3], joints_valid=np.arange(21) > 0), replace(hands[4], joints_2d=None)
    rows = [sample_cache.row(hands, 48, 1.9, number) for number in range(len(hands))]
    sample_cache.build(rows, tmp_path / "hands", count=len(hands), size=48, margin=1.9, key="noise")
    learn, _, judge = read_pools(HandsSettings(str(tmp_path / "hands"), validation=0.3), 0)
    assert set(learn.numbers) | set(judge.numbers) == set(range(30)) - {3, 4}
    assert whole(hands[0]) and not whole(hands[3]) and not whole(hands[4])


def test_one_video_has_no_pairs(config, tmp_path):
    np.savez(tmp_path / "pairs.npz", indices=np.full((36, 1), -1))
    with pytest.raises(TrainingError, match=r"none of \d+ hands of \d+ video\(s\) has a partner in another video: simhand_w needs"):
        fit(replace(config, mining=MiningSettings(pairs=str(tmp_path / "pairs.npz"))))
