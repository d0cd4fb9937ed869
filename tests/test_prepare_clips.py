"""scripts/prepare_clips.py on videos that hold no clip."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pose_tools.video import write_video
from scripts import prepare_clips


def test_videos_too_short_for_a_clip_are_named_and_nothing_is_left_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "short.mp4", [np.zeros((48, 64, 3), np.uint8)] * 8, 8)
    assert prepare_clips.main([str(tmp_path / "short.mp4"), "--out", str(tmp_path / "out")]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "no clip" in line and "short" in line and "3.25 s" in line
    assert not (tmp_path / "out").exists()


def test_a_folder_that_cannot_be_made_is_told_in_words(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_video(tmp_path / "long.mp4", [np.zeros((48, 64, 3), np.uint8)] * 32, 8)
    (tmp_path / "file").write_text("mine")
    assert prepare_clips.main([str(tmp_path / "long.mp4"), "--out", str(tmp_path / "file"), "--workers", "1"]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith(f"prepare_clips: {tmp_path / 'file'}: cannot be read or written") and "check the path" in last
    assert (tmp_path / "file").read_text() == "mine"
