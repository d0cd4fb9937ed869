"""What was seen before a moment of a clip: frames by the clock, and what is made up for in clips that are short or damaged."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest

from pose_tools.video import VideoError, iterate_frames, observe, probe, read_frames, write_video

FPS = 30


def numbered(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame that shows `number` as seven vertical bars, its binary digits."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(7):
        frame[:, bit * width // 7 : (bit + 1) * width // 7] = 255 * (number >> bit & 1)
    return frame


def number_of(frame: np.ndarray) -> int:
    height, width = frame.shape[:2]
    return sum(int(frame[height // 2, int((bit + 0.5) * width / 7)].mean() > 127) << bit for bit in range(7))


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    path = tmp_path_factory.mktemp("observe") / "clip.mp4"
    write_video(path, (numbered(i) for i in range(100)), FPS)
    return path


def test_the_last_frames_by_the_clock_are_those_read_by_time(clip):
    frames, times, info = observe(clip)
    assert np.allclose(times, 99 / FPS - np.arange(9, -1, -1) / 4) and not info.notes
    by_time = read_frames(clip, times=times)
    assert all(np.array_equal(a, b) for a, b in zip(frames, by_time.frames, strict=True)) and number_of(frames[-1]) == 99
    earlier, moments, _ = observe(clip, count=3, rate=10, end=2.0)
    assert [number_of(f) for f in earlier] == [54, 57, 60] and np.allclose(moments, [1.8, 1.9, 2.0])
    assert [number_of(f) for f in observe(clip, count=1)[0]] == [99]
    assert [number_of(f) for f in observe(clip, count=4, rate=60)[0]] == [97, 98, 98, 99]  # finer than the clip
    assert (info.width, info.height, info.frame_count) == (64, 48, 100) == (probe(clip).width, probe(clip).height, 100)


def test_a_clip_shorter_than_the_observation_begins_with_its_first_frame(clip, tmp_path):
    frames, times, info = observe(clip, end=1.0)
    assert [number_of(f) for f in frames] == [0, 0, 0, 0, 0, 0, 7, 15, 22, 30]
    assert info.repeated == 5 and "first frame stands for 5 moments" in info.notes[0] and times[0] == pytest.approx(-1.25)
    single = tmp_path / "single.mp4"
    write_video(single, [numbered(77)], FPS)
    frames, times, info = observe(single)
    assert [number_of(f) for f in frames] == [77] * 10 and info.repeated == 9 and times[-1] == 0


def test_a_varying_frame_rate_shows_what_was_on_the_screen(tmp_path):
    path = tmp_path / "varying.mkv"
    shown = np.cumsum(np.random.default_rng(0).integers(10, 90, 100))
    with av.open(str(path), "w") as out:
        stream = out.add_stream("libx264", rate=FPS, options={"g": "20", "bf": "2"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 1000)
        for i, pts in enumerate(shown.tolist()):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            frame.pts, frame.time_base = pts, stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    frames, times, _ = observe(path, end=3.0)
    expected = [int(np.searchsorted(shown - shown[0], time * 1000, side="right")) - 1 for time in times]
    assert [number_of(f) for f in frames] == expected


@pytest.mark.parametrize("codec", ["libx264", "mjpeg"])
def test_one_damaged_frame_in_the_middle_is_made_up_for_and_said(tmp_path, codec):
    whole, path = tmp_path / "whole.mkv", tmp_path / "damaged.mkv"
    with av.open(str(whole), "w") as out:
        stream = out.add_stream(codec, rate=FPS, options={"g": "4", "bf": "0"} if codec == "libx264" else {})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p" if codec == "libx264" else "yuvj420p"
        for i in range(100):
            out.mux(stream.encode(av.VideoFrame.from_ndarray(numbered(i), format="rgb24")))
        out.mux(stream.encode(None))
    with av.open(str(whole)) as container:
        packets = [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]
    data, broken = whole.read_bytes(), packets[84]
    place = data.index(broken)
    path.write_bytes(data[:place] + b"\xff" * len(broken) + data[place + len(broken) :])
    frames, _, info = observe(path)
    intact = observe(whole)[0]
    assert info.damaged == 1 and "1 of the frames looked at are damaged" in info.notes[0]
    same = [np.array_equal(a, b) for a, b in zip(frames, intact, strict=True)]
    # frame 84 is a key frame: until the next one H.264 decoders go on with the frame before it
    assert same == [True] * 7 + [False] + [True] * 2 and 83 <= number_of(frames[7]) <= 88


def test_a_clip_whose_end_is_damaged_shows_the_last_sound_frame(clip, tmp_path):
    with av.open(str(clip)) as container:
        packets = [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]
    data, path = clip.read_bytes(), tmp_path / "end.mp4"
    for broken in packets[-2:]:
        data = data.replace(broken, b"\xff" * len(broken))
    path.write_bytes(data)
    frames, _, info = observe(path, count=2)
    assert info.damaged == 1 and 90 <= number_of(frames[-1]) < 99


def test_rotation_marks_and_large_frames(clip, tmp_path):
    data = bytearray(clip.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # past version, times, layer and volume lies the display matrix
    entries = [0, 65536, 0, -65536, 0, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in entries)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    plain, turned = observe(clip), observe(path)
    assert all(np.array_equal(np.rot90(a, -1), b) for a, b in zip(plain[0], turned[0], strict=True))
    assert (turned[2].width, turned[2].height) == (48, 64) == turned[0][0].shape[1::-1]
    small, _, info = observe(path, longest=32)
    assert small[0].shape == (32, 24, 3) and info.scale == 0.5 and (info.width, info.height) == (48, 64)
    assert "48x64 were made smaller" in info.notes[0]
    assert [number_of(np.rot90(f)) for f in small] == [number_of(f) for f in plain[0]]
    large = tmp_path / "large.mp4"
    write_video(large, [numbered(i, 3840, 2160) for i in (5, 6)], FPS)
    frames, _, info = observe(large, count=2, rate=FPS, longest=1280)
    assert [f.shape for f in frames] == [(720, 1280, 3)] * 2 and [number_of(f) for f in frames] == [5, 6]
    assert (info.width, info.height) == (3840, 2160)


def test_bad_files_and_requests_are_one_clear_error(clip, tmp_path):
    (tmp_path / "empty.mp4").touch()
    with pytest.raises(VideoError, match=r"empty\.mp4: the file is empty \(0 bytes\)"):
        observe(tmp_path / "empty.mp4")
    sound = tmp_path / "sound.mp4"
    with av.open(str(sound), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError, match="has no picture track, only audio data"):
        observe(sound)
    with pytest.raises(ValueError, match=r"between 0 and 3\.333 s, got \[9\.0\]"):
        observe(clip, end=9.0)
    for wrong in ({"count": 0}, {"rate": 0.0}, {"rate": float("nan")}):
        with pytest.raises(ValueError, match="count of at least 1 and a positive rate"):
            observe(clip, **wrong)
    with pytest.raises(ValueError, match="longest"):
        observe(clip, longest=0)
    noise = tmp_path / "noise.mp4"
    noise.write_bytes(np.random.default_rng(0).bytes(5000))
    with pytest.raises(VideoError, match="not a video we can read"):
        observe(noise)


def test_a_damaged_file_that_is_read_strictly_is_still_an_error(clip, tmp_path):
    """What `observe` forgives, `iterate_frames` reports: a data set must not be trained on made-up frames."""
    with av.open(str(clip)) as container:
        packets = [bytes(p) for p in container.demux(container.streams.video[0]) if p.size]
    path = tmp_path / "damaged.mp4"
    path.write_bytes(clip.read_bytes().replace(packets[40], b"\xff" * len(packets[40])))
    with pytest.raises(VideoError, match="damaged"):
        list(iterate_frames(path))
