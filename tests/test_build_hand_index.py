"""scripts/build_hand_index.py: shards become an index that finds their own hands; videos take turns; bad input is named."""

from __future__ import annotations

import re
from collections import Counter

import numpy as np
import pytest

from data.hand_shards import HandShards, ShardHand
from data.hand_shards_writer import write_index, write_unit
from pose_tools.simhand.hand_embedding import load_hand_encoder
from pose_tools.simhand.hand_index import read_hand_index
from scripts.build_hand_index import choose, main
from tests.pose_tools.simhand.tiny_index import crops, tiny_encoder

pytest.importorskip("pyarrow")


@pytest.fixture
def shards(tmp_path):
    """Videos of 5, 3 and 1 hands; the first of each is unsure."""
    folder = tmp_path / "shards"
    for number, count in enumerate((5, 3, 1)):
        hands = []
        for frame, image in enumerate(crops(count, seed=number)):
            points, joints = np.full((21, 2), 20, np.float32), np.full((21, 3), 0.1, np.float32)
            box = np.array([4, 4, 36, 36], np.float32)
            hands.append(ShardHand(f"v{number}-{frame}", f"v{number}", frame, "right", 0.9 if frame else 0.3, box, box, image, points,
                                   joints if number else None, np.eye(3, dtype=np.float32) if number else None))  # fmt: skip
        write_unit(folder, f"v{number}", hands, {})
    write_index(folder, [f"v{number}" for number in range(3)])
    return folder


@pytest.fixture
def labelled(tmp_path):
    """Two videos of three hands with their own poses."""
    folder, rng = tmp_path / "labelled", np.random.default_rng(0)
    for number in range(2):
        box, points = np.array([4, 4, 36, 36], np.float32), np.full((21, 2), 20, np.float32)
        hands = [
            ShardHand(f"v{number}-{frame}", f"v{number}", frame, "right", 0.9, box, box, image, points,
                      rng.normal(size=(21, 3)).astype(np.float32) * 0.05, np.eye(3, dtype=np.float32))
            for frame, image in enumerate(crops(3, seed=10 + number))
        ]  # fmt: skip
        write_unit(folder, f"v{number}", hands, {})
    write_index(folder, ["v0", "v1"])
    return folder


def test_an_index_finds_its_own_hands(shards, tmp_path, capsys):
    tiny_encoder(tmp_path / "encoder")
    command = [str(shards), "--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / "a.safetensors"), "--least=0", "--thumbnail=40"]
    assert main(command) == 0 and "9 of 9 hands, 3 videos, 4 with poses" in capsys.readouterr().out
    index, hands = read_hand_index(tmp_path / "a.safetensors"), HandShards(shards)
    assert index.hand_ids == tuple(hands.hand_ids) and index.source == "shards"
    found = index.search(load_hand_encoder(tmp_path / "encoder").embed([hand.image for hand in hands]), 1)
    assert found[0].ravel().tolist() == list(range(9)) and (found[1] > 0.999).all()
    assert np.abs(index.thumbnail(3).astype(int) - hands.image(3)).mean() < 12
    first = (tmp_path / "a.safetensors").read_bytes()
    assert main(command) == 0 and (tmp_path / "a.safetensors").read_bytes() == first


def test_an_index_judged_by_its_own_hands_is_right(labelled, tmp_path, capsys):
    tiny_encoder(tmp_path / "encoder")
    command = [str(labelled), "--encoder", str(tmp_path / "encoder"), "--out", str(tmp_path / "a.safetensors"), "--least=0"]
    assert main([*command, "--judge", str(labelled)]) == 0
    printed = capsys.readouterr().out
    assert "6 hands of 2 videos." in printed and "| PA-MPJPE, mm | 0.0" in printed
    assert len(re.findall(r"^\| (?:palm|thumb|pinky) ", printed, re.MULTILINE)) == 3


def test_videos_take_turns(shards):
    hands = HandShards(shards)
    for count in range(1, 10):
        rows = choose(hands, count, 0.0, seed=3)
        taken = Counter(hands.video_numbers[rows].tolist())
        assert len(set(rows)) == count and all(taken[v] >= min(size, max(taken.values()) - 1) for v, size in enumerate((5, 3, 1)))
    assert choose(hands, None, 0.5, 0).tolist() == [1, 2, 3, 4, 6, 7]


def test_what_cannot_be_built_is_said(shards, tmp_path, capsys):
    tiny_encoder(tmp_path / "encoder")
    rest = ["--out", str(tmp_path / "a.safetensors"), "--encoder"]
    assert main([str(shards), *rest, str(tmp_path / "encoder"), "--least", "0.95"]) == 1
    assert "none of 9 hands is as sure as 0.95: lower --least" in capsys.readouterr().err
    assert main([str(shards), *rest, str(tmp_path / "nowhere")]) == 1 and "nowhere is missing" in capsys.readouterr().err
    assert main([str(shards), *rest, str(tmp_path / "encoder"), "--judge", str(shards)]) == 1
    assert "judged by 3-D joints" in capsys.readouterr().err
    (tmp_path / "a.safetensors").unlink()
    assert main([str(tmp_path / "empty"), *rest, str(tmp_path / "encoder")]) == 1 and "extract_hands.py" in capsys.readouterr().err
    for wrong in (["--count", "0"], ["--thumbnail", "4"], ["--quality", "100"]):
        with pytest.raises(SystemExit):
            main([str(shards), *rest, str(tmp_path / "encoder"), *wrong])
    assert not (tmp_path / "a.safetensors").exists()
