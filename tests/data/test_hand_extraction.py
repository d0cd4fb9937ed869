"""Hands cut out of videos: exact geometry, sides, strides; unreadable videos are named; a run that was killed ends as one that was not."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from data.hand_annotations import HandAnnotations, write_hand_annotations
from data.hand_extraction import Settings, Source, extract_hands, extract_video, find_sources
from data.hand_finders import finder
from data.hand_shards import HandShards, ShardError
from pose_tools.image_io import write_image
from pose_tools.simhand.views import hand_crop
from pose_tools.tool_protocol import BackendMissing
from pose_tools.video import write_video
from scripts import extract_hands as command

pytest.importorskip("pyarrow")
SIZE, FRAMES = (96, 80), 7


def frame(video, number):
    picture = np.full((SIZE[1], SIZE[0], 3), (40 * video, 30 * number, 90), np.uint8)
    picture[20:50, 10:40] = 220
    return picture


@pytest.fixture
def world(tmp_path):
    """Three videos (one of them as pictures) with a left and a right hand in every second frame, and their annotation file."""
    videos = tmp_path / "videos"
    for video in range(2):
        write_video(videos / f"v{video}.mp4", [frame(video, number) for number in range(FRAMES)], 10)
    for number in range(0, FRAMES, 2):
        write_image(videos / "set" / "v2" / f"frame_{number:06d}.png", frame(2, number))
    names = [f"{video}/frame_{number:06d}.jpg" for video in ("set/v2", "v0", "v1") for number in range(0, FRAMES, 2) for _ in "lr"]
    rng = np.random.default_rng(0)
    boxes = np.tile([[10.0, 20, 40, 50], [50, 10, 90, 60]], (len(names) // 2, 1))
    left = np.arange(len(names)) % 2 == 0
    keypoints = rng.uniform(0.1, 0.9, (len(names), 21, 3)).astype(np.float32)
    hands = HandAnnotations(list(range(len(names))), [n // 2 for n in range(len(names))], names, boxes, left, keypoints)
    write_hand_annotations(tmp_path / "hands.json", hands)
    return videos, tmp_path / "hands.json", hands


def settings(annotations, **changes):
    return Settings(stride=2, hands="annotations", annotations=str(annotations), size=64, **changes)


def files(folder):
    return {path.relative_to(folder): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file() and path.name != ".lock"}


def test_crops_key_points_and_names_are_exact(world, tmp_path):
    videos, annotations, expected = world
    summaries = list(extract_hands(find_sources([videos]), tmp_path / "out", settings(annotations)))
    assert [(one.video_id, one.frames, one.hands, one.problem) for one in summaries] == [(v, 4, 8, None) for v in ("set/v2", "v0", "v1")]
    hands = HandShards(tmp_path / "out")
    np.testing.assert_allclose(hands.keypoints / 64, expected.right_hand_keypoints(), atol=1e-5)
    np.testing.assert_array_equal(hands.video_ids, expected.video_ids)
    np.testing.assert_array_equal(hands.left, expected.left)
    np.testing.assert_array_equal(hands.boxes, expected.boxes)
    for row in (2, 3):
        crop, _ = hand_crop(frame(2, 2), expected.boxes[row], side="left" if row == 2 else "right", size=64)
        assert np.abs(hands[row].image.astype(int) - crop).mean() < 2 and hands[row].frame == 2  # JPEG
    again = list(extract_hands(find_sources([videos]), tmp_path / "out", settings(annotations)))
    assert all(one.kept and one.hands == 8 for one in again)
    with pytest.raises(ShardError, match="size 64 .asked for 32"):
        list(extract_hands([], tmp_path / "out", Settings(stride=2, hands="annotations", annotations=str(annotations), size=32)))


def test_rate_and_confidence(world, tmp_path):
    videos, annotations, _ = world
    by_rate = Settings(rate=5.0, hands="annotations", annotations=str(annotations))
    assert [one.frames for one in extract_hands([Source("v0", videos / "v0.mp4")], tmp_path / "a", by_rate)] == [4]  # 0, 0.2, 0.4, 0.6 s
    (unsure,) = extract_hands([Source("v0", videos / "v0.mp4")], tmp_path / "b", settings(annotations, least=1.5))
    assert unsure.hands == 0 and unsure.unsure == 8 and len(HandShards(tmp_path / "b")) == 0


def test_stopped_is_uninterrupted_and_processes_do_not_matter(world, tmp_path):
    videos, annotations, _ = world
    sources = find_sources([videos])
    list(extract_hands(sources, tmp_path / "whole", settings(annotations)))
    running = extract_hands(sources, tmp_path / "stopped", settings(annotations))
    assert next(running).video_id == "set/v2"
    running.close()
    assert not (tmp_path / "stopped" / "index.parquet").exists()
    kept = [one.kept for one in extract_hands(sources, tmp_path / "stopped", settings(annotations))]
    assert kept == [True, False, False] and files(tmp_path / "whole") == files(tmp_path / "stopped")
    shard = tmp_path / "stopped" / "shards" / "v1-000.tar"
    shard.write_bytes(shard.read_bytes()[:5000])
    assert [one.kept for one in extract_hands(sources, tmp_path / "stopped", settings(annotations))] == [True, True, False]
    assert files(tmp_path / "whole") == files(tmp_path / "stopped")


@pytest.mark.slow
@pytest.mark.two_process
@pytest.mark.skipif(sys.platform == "win32", reason="SIGKILL")
def test_killed_with_two_processes_ends_as_one(world, tmp_path):
    videos, annotations, _ = world
    script = Path(command.__file__)
    call = [sys.executable, str(script), str(videos), "--annotations", str(annotations), "--stride", "2", "--size", "64", "--workers", "2"]
    subprocess.run([*call[:-1], "1", "--out", str(tmp_path / "whole")], check=True, capture_output=True)
    started = subprocess.Popen([*call, "--out", str(tmp_path / "killed")], start_new_session=True, stderr=subprocess.DEVNULL)
    while started.poll() is None and not list((tmp_path / "killed").glob("parts/*.parquet")):
        time.sleep(0.01)
    if started.poll() is None:
        os.killpg(started.pid, signal.SIGKILL)
    started.wait()
    done = subprocess.run([*call, "--out", str(tmp_path / "killed")], check=True, capture_output=True, text=True)
    assert "24 hands of 12 frames in 3 videos; 0 could not be read" in done.stdout
    whole, killed = files(tmp_path / "whole"), files(tmp_path / "killed")
    del whole[Path("videos.json")], killed[Path("videos.json")]  # which says what was there already
    assert whole == killed


def test_what_cannot_be_read_is_named_and_skipped(world, tmp_path, capsys):
    videos, annotations, _ = world
    (videos / "broken.mp4").write_bytes(b"nothing of a video")
    (videos / "cut.mp4").write_bytes((videos / "v0.mp4").read_bytes()[:400])
    call = [str(videos), "--annotations", str(annotations), "--stride", "2", "--workers", "1"]
    assert command.main([*call, "--out", str(tmp_path / "out")]) == 0
    told = capsys.readouterr()
    assert "24 hands of 12 frames in 3 videos; 2 could not be read" in told.out
    assert "broken: skipped:" in told.out + told.err and len(HandShards(tmp_path / "out")) == 24
    assert command.main([str(videos / "broken.mp4"), *call[1:], "--out", str(tmp_path / "none")]) == 1
    capsys.readouterr()
    assert command.main([str(videos / "set" / "v2"), *call[1:], "--out", str(tmp_path / "other")]) == 1
    assert "names no hand in these frames" in capsys.readouterr().err
    assert command.main([str(tmp_path / "nothing"), *call[1:], "--out", str(tmp_path / "none")]) == 1
    assert "no such file or folder" in capsys.readouterr().err


def test_a_video_that_breaks_off_keeps_what_came_before(world, tmp_path, monkeypatch):
    videos, annotations, _ = world
    (videos / "set" / "v2" / "frame_000004.png").write_bytes(b"no picture")
    summary = extract_video(tmp_path / "out", settings(annotations), Source("set/v2", videos / "set" / "v2"))
    assert (summary.frames, summary.hands) == (2, 4) and "frame_000004.png" in summary.problem
    (again,) = extract_hands([Source("set/v2", videos / "set" / "v2")], tmp_path / "out2", settings(annotations))
    assert again.problem == summary.problem


def test_names_of_sources(world, tmp_path):
    videos, *_ = world
    assert [one.video_id for one in find_sources([videos])] == ["set/v2", "v0", "v1"]
    assert [one.video_id for one in find_sources([videos / "v0.mp4", videos / "set" / "v2"])] == ["v0", "v2"]
    with pytest.raises(ShardError, match="would both be called 'v0'"):
        find_sources([videos, videos / "v0.mp4"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ShardError, match="holds no video"):
        find_sources([tmp_path / "empty"])


def test_missing_models_are_said_before_anything_is_written(world, tmp_path, monkeypatch):
    videos, *_ = world
    monkeypatch.setenv("HANDVLM_CACHE", str(tmp_path / "cache"))
    finder.cache_clear()
    with pytest.raises(BackendMissing, match=r"--fetch-hand-models[\s\S]*--hands small"):
        list(extract_hands(find_sources([videos]), tmp_path / "out", Settings()))
    assert not (tmp_path / "out").exists()
