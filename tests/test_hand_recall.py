"""The hand detector's labels are well-formed and their benchmark says what it lacks; the recall itself needs the pictures."""

from __future__ import annotations

import json

import pytest

from pose_tools.detect import HandDetection
from scripts import bench
from scripts.benchmarks.hand_recall import GROUPS, LABELS, count


def test_labels():
    entries = json.loads(LABELS.read_text())["pictures"]
    keys = [(entry["picture"], entry.get("frame"), tuple(entry.get("crop_xyxy", ()))) for entry in entries]
    assert len(set(keys)) == len(keys) and sum(entry.get("hoi_ref", False) for entry in entries) == 8
    for entry in entries:
        repository, path = entry["picture"].split(":")
        assert repository.count("/") == 1 and not path.startswith("/") and ".." not in path
        assert entry["scene"] in GROUPS[:2]
        for hand in entry["hands"]:
            x1, y1, x2, y2 = hand["box"]
            assert 0 <= x1 < x2 <= 1 and 0 <= y1 < y2 <= 1 and hand["side"] in ("left", "right", None)


def test_empty_folder(tmp_path, capsys):
    with pytest.raises(SystemExit) as refusal:
        bench.main(["hand-recall", "--pictures", str(tmp_path)])
    assert refusal.value.code == 2
    error = capsys.readouterr().err
    assert "none of the 55 labelled pictures is under" in error and str(tmp_path) in error


def test_count():
    hands = [{"box": [0.0, 0.0, 0.5, 0.5], "side": "left"}, {"box": [0.5, 0.5, 1.0, 1.0], "side": None}]
    seen = [HandDetection((0, 0, 100, 50), "right", 0.9), HandDetection((0, 0, 99, 50), "left", 0.8)]
    assert count(hands, seen, (200, 100)) == (2, 1, 1, 0, 1)  # a label is found once
    assert count(hands, [*seen, HandDetection((100, 50, 200, 100), "left", 0.7)], (200, 100)) == (2, 2, 1, 0, 1)
