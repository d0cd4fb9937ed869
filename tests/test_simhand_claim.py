"""scripts/simhand_claim.py: labels are nested, runs are not done twice, the table says what the runs say."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from pose_tools.mano import sample_cache
from scripts import simhand_claim
from scripts.pretrain_simhand import EncoderSettings, HandsSettings, PretrainingSettings
from tests.pose_tools.simhand.tiny_pretraining import samples, settings


@pytest.fixture
def config(tmp_path) -> PretrainingSettings:
    hands = [replace(hand, annotation=number) for number, hand in enumerate(samples(60))]
    rows = [sample_cache.row(hands, 48, 1.9, number) for number in range(len(hands))]
    sample_cache.build(rows, tmp_path / "hands", count=len(hands), size=48, margin=1.9, key="noise")
    encoder = EncoderSettings(depths=(1, 1), hidden_sizes=(8, 16), embedding_size=8, layer_type="basic")
    return PretrainingSettings(HandsSettings(str(tmp_path / "hands"), validation=0.3, judge=20), settings("", max_steps=3, warmup_steps=1),
                               encoder=encoder, image_size=32, head_hidden=16, head_output=8)  # fmt: skip


def test_runs_are_resumed_and_told_in_the_table(tmp_path, config, monkeypatch):
    monkeypatch.setattr(simhand_claim, "FINETUNE_STEPS", 3)
    out = tmp_path / "claim"
    simhand_claim.compare(config, out, ["random", "simhand_w"], 1)
    first = (out / "table.md").read_text()
    results = {name: json.loads((out / f"{name}-0/result.json").read_text()) for name in ("random", "simhand_w")}
    assert f"| weighted SiMHand | 1 | {results['simhand_w']['probe_1']:.2f} |" in first
    (out / "simhand_w-0/result.json").unlink()  # cut off between the training and the scores
    monkeypatch.setattr(simhand_claim, "build", lambda given: pytest.fail("done already") if given.experiment == "random" else build(given))
    simhand_claim.compare(config, out, ["random", "simhand_w"], 1)
    assert json.loads((out / "simhand_w-0/result.json").read_text()) == results["simhand_w"]
    with pytest.raises(ValueError, match=r"\[3, 4\] steps, a comparison needs equal compute"):
        simhand_claim.table([results["random"], results["simhand_w"] | {"steps": 4}])


build = simhand_claim.build


def test_smaller_shares_are_part_of_larger_ones():
    parts = [set(simhand_claim.labelled(1000, share, seed=2).tolist()) for share in (0.01, 0.1, 1.0)]
    assert parts[0] < parts[1] < parts[2] == set(range(1000)) and len(parts[0]) == 10


def test_interval_is_students():
    # half width 4.3027 · s / √3 for three seeds
    assert simhand_claim.interval([1.0, 2.0, 3.0]) == f"2.00 ± {4.3027 / np.sqrt(3):.2f}" and simhand_claim.interval([1.5]) == "1.50"


def test_differences_are_seed_by_seed():
    """A shift that every seed shares has no spread, however far apart the seeds are; seeds without a random run are left out."""
    names = simhand_claim.NAMES
    rows = [{"row": row, "seed": seed, "steps": 1} | dict.fromkeys(names, 10.0 * seed + shift)
            for row, shift in (("random", 20.0), ("simhand", 18.5)) for seed in range(3)]  # fmt: skip
    text = simhand_claim.differences([*rows, rows[3] | {"seed": 7, names[0]: 0.0}])
    assert "| SiMHand | 3 | -1.50 ± 0.00 | -1.50 ± 0.00 |" in text and "random" not in text
    assert simhand_claim.differences(rows[3:]) == ""
