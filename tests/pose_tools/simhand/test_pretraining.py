from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from pose_tools import training
from pose_tools.simhand.encoder import load_encoder, published_state_dict
from pose_tools.simhand.experiments import contrastive_loss, experiment
from pose_tools.simhand.hand_pool import HandPool
from pose_tools.simhand.pretraining import PretrainingTask, plain_pixels
from pose_tools.simhand.probe import embed, linear_probe, nearest, pixels_to_input
from pose_tools.training import make_optimizer, train
from tests.pose_tools.simhand.tiny_pretraining import network, pool, samples, settings, task
from tests.two_processes import run_two


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return torch.load(folder / "checkpoint.pt", weights_only=True)["model"]


def log(folder: Path) -> list[dict[str, float]]:
    lines = [json.loads(line) for line in (folder / "log.jsonl").read_text().splitlines()]
    return [{name: value for name, value in line.items() if name != "samples_per_second"} for line in lines]


@pytest.mark.parametrize("optimizer", ["adamw", "lars"])
def test_resumed_equals_uninterrupted_bit_for_bit(tmp_path, optimizer, monkeypatch):
    train(network(), task(), settings(tmp_path / "whole", optimizer=optimizer))
    ticks = iter(range(10_000))
    monkeypatch.setattr(training.time, "monotonic", lambda: float(next(ticks)) * 60)
    first = train(network(), task(), settings(tmp_path / "parts", optimizer=optimizer, max_minutes=4.0))
    monkeypatch.undo()
    assert 0 < first.step < 6
    torch.manual_seed(99)
    train(network(), task(), settings(tmp_path / "parts", optimizer=optimizer, resume=True))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


def test_cached_gradients_are_those_of_one_loss_over_all_micro_batches():
    """Gradients, running averages and the logged loss equal those of the same parts kept in memory; so of each kind of loss."""
    for kind in ("peclr", "simhand_w"):
        hands = task(kind)
        batches = [hands.collate([hands.sample(i, 0) for i in part]) for part in ((0, 1, 2), (3, 4, 5), (6, 7, 8))]
        plain, cached = network(), network()
        projections = torch.cat([plain(pixels_to_input(b["pixels"].flatten(0, 1)))[1].view(3, 2, -1) for b in batches])
        whole = {name: torch.cat([batch[name] for batch in batches]) for name in batches[0]}
        expected = contrastive_loss(hands.kind, projections, whole, hands.loss)
        expected.backward()
        seen = []

        def total(losses, seen=seen):
            seen.append(float(losses["contrastive"].detach()))
            return losses["contrastive"] / 9

        hands.backward_together(cached, batches, total)
        assert seen == [pytest.approx(9 * float(expected.detach()), rel=1e-6)]
        for (name, a), b in zip(plain.named_parameters(), cached.parameters(), strict=True):
            torch.testing.assert_close(b.grad, a.grad, rtol=1e-4, atol=1e-7, msg=name)
        assert all(torch.allclose(a, b) for a, b in zip(plain.buffers(), cached.buffers(), strict=True))


def test_a_cached_run_is_resumed_bit_for_bit(tmp_path):
    cached = {"micro_batch_size": 4, "precision": "bf16", "save_every": 1}
    train(network(), task(), settings(tmp_path / "whole", **cached))
    train(network(), task(), settings(tmp_path / "parts", **cached, max_minutes=0.0))
    train(network(), task(), settings(tmp_path / "parts", **cached, resume=True))
    whole, parts = weights(tmp_path / "whole"), weights(tmp_path / "parts")
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.two_process
@pytest.mark.slow
@pytest.mark.parametrize(("kind", "parts"), [("peclr", 1), ("simhand_w", 1), ("simhand_w", 2)])
def test_two_processes_equal_one(tmp_path, kind, parts):
    """Also with cached gradients, a step's batch in two parts: batch norm is synchronised part by part."""
    train(network(), task(kind), settings(tmp_path / "one", micro_batch_size=8 // parts))
    run_two("tests/pose_tools/simhand/tiny_pretraining.py", tmp_path / "two", kind, f"micro_batch_size={4 // parts}")
    one, two = log(tmp_path / "one"), log(tmp_path / "two")
    for a, b in zip(one, two, strict=True):
        assert a == pytest.approx(b, rel=1e-3)
    first, second = weights(tmp_path / "one"), weights(tmp_path / "two")
    # batch norm takes away the bias before it: its gradient is rounding, which Adam scales up, and its running mean follows it
    free = ("projection_head.0.bias", "projection_head.1.running_mean")
    differences = {name: float((first[name].double() - second[name].double()).abs().max()) for name in first if name not in free}
    assert max(differences.values()) < 5e-5, {name: value for name, value in differences.items() if value > 5e-5}


def test_partners_are_of_other_videos_and_views_come_from_both():
    hands = pool()
    partners = hands.partners()
    assert (hands.videos[partners] != hands.videos).all()
    mined, same = task("simhand"), task("peclr")
    index, number = 5, int(partners[5])
    a, b = mined.sample(index, 0), same.sample(index, 0)
    assert np.array_equal(a["pixels"][0], b["pixels"][0]) and not np.array_equal(a["pixels"][1], b["pixels"][1])
    swapped = PretrainingTask(hands, experiment("simhand"), hands, hands, partners=np.full(len(hands), number), size=32)
    assert np.array_equal(swapped.sample(index, 0)["pixels"], a["pixels"])
    assert np.array_equal(mined.sample(index, 3)["pixels"], mined.sample(index, 3)["pixels"])
    assert not np.array_equal(mined.sample(index, 3)["pixels"], a["pixels"])


def test_the_mirror_image_as_a_left_hand_is_the_same_hand():
    right = samples()[0]
    flip = np.array([-1.0, 1, 1])
    mirrored = np.stack([48 - right.joints_2d[:, 0], right.joints_2d[:, 1]], axis=1)
    image = np.ascontiguousarray(right.image[:, ::-1])
    left = replace(right, side="left", image=image, joints_2d=mirrored, joints_3d=right.joints_3d * flip)
    a, b = HandPool([right, left], np.arange(2))
    assert np.array_equal(a.image, b.image) and np.array_equal(a.joints_3d, b.joints_3d)
    np.testing.assert_allclose(a.joints_2d, b.joints_2d, atol=1e-5)


def test_hands_without_a_partner_are_left_out():
    hands = pool()
    partners = hands.partners()
    partners[[0, 7]] = -1
    assert len(PretrainingTask(hands, experiment("handclr_w"), hands, hands, partners=partners, size=32)) == len(hands) - 2
    with pytest.raises(ValueError, match="simhand pairs similar hands: expected partners of 24 hands, got none; mine them first"):
        PretrainingTask(hands, experiment("simhand"), hands, hands)


def test_hands_of_videos_are_judged_by_their_key_points():
    """3-D joints judge where both pools have some; else all hands do, by key points, in per cent of the crop."""
    hands, bare = pool(), HandPool([replace(sample, joints_3d=None) for sample in samples(4)], np.arange(4))
    some = HandPool([replace(sample, joints_3d=None if i else sample.joints_3d) for i, sample in enumerate(samples(4))], np.arange(4))
    for held_out, expected in ((bare, [(24, 21, 2), (4, 21, 2)]), (some, [(24, 21, 3), (1, 21, 3)])):
        task = PretrainingTask(hands, experiment("simclr"), hands, held_out, size=32)
        assert [joints.shape for _, joints in task.judged] == expected
        assert [len(pixels) for pixels, _ in task.judged] == [shape[0] for shape in expected]
    scores = PretrainingTask(hands, experiment("simclr"), bare, bare, size=32).evaluate(network().eval())
    assert scores["retrieval_2d"] == 0 < scores["random_2d"] < 100 and scores["goodness"] == -scores["probe_2d"]


def test_the_probe_reads_what_is_linear_and_the_nearest_is_itself():
    rng = np.random.default_rng(0)
    features = rng.normal(size=(200, 12))
    joints = (features @ rng.normal(size=(12, 63))).reshape(-1, 21, 3)
    found = linear_probe(features[:150], joints[:150], features[150:], penalty=1e-9)
    np.testing.assert_allclose(found, joints[150:] - joints[150:, :1], atol=1e-6)
    assert nearest(features, features * 3).tolist() == list(range(200))


def test_embedding_a_batch_equals_one_by_one_and_survives_publishing():
    encoder = network().encoder.eval()
    pixels = np.stack([plain_pixels(hand, 32) for hand in pool(5)])
    whole = embed(encoder, pixels)
    np.testing.assert_allclose(np.concatenate([embed(encoder, pixels[i : i + 1]) for i in range(5)]), whole, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(embed(load_encoder(published_state_dict(encoder)), pixels), whole, rtol=1e-6, atol=1e-7)


def test_lars_decays_all_but_biases():
    groups = make_optimizer(network(), settings("x", optimizer="lars", weight_decay=1e-6)).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-6, 0.0] and all(len(group["params"]) for group in groups)
