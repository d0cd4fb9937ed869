"""Clips whose frames carry their own number: every way of reading must find the right ones."""

import contextlib
from fractions import Fraction

import av
import numpy as np
import pytest

from pose_tools.video import VideoError, iterate_frames, probe, read_frames, sample_indices, sampled_frames, write_video

FPS, COUNT = 30, 75


def numbered(number: int, width: int = 64, height: int = 48) -> np.ndarray:
    """A frame that shows `number` as seven vertical bars, its binary digits; the top third is red."""
    frame = np.zeros((height, width, 3), np.uint8)
    for bit in range(7):
        frame[:, bit * 9 : bit * 9 + 9] = 255 * (number >> bit & 1)
    frame[: height // 3] = [220, 20, 20]
    return frame


def number_of(frame: np.ndarray) -> int:
    return sum(int(frame[-8, bit * 9 + 4].mean() > 127) << bit for bit in range(7))


def encode(path, codec="libx264", container=None, pts=None, count=COUNT, **options):
    with av.open(str(path), "w", format=container) as out:
        stream = out.add_stream(codec, rate=FPS, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        if pts is not None:
            stream.codec_context.time_base = Fraction(1, 1000)
        for i in range(count):
            frame = av.VideoFrame.from_ndarray(numbered(i), format="rgb24")
            if pts is not None:
                frame.pts, frame.time_base = pts[i], stream.codec_context.time_base
            out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    return path


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """Key frames every 20 frames and B-frames between, so that decoding order differs from the shown order."""
    return encode(tmp_path_factory.mktemp("video") / "clip.mp4", g="20", bf="3")


def test_the_writer_and_the_reader_agree(tmp_path):
    path = tmp_path / "ours.mp4"
    write_video(path, (numbered(i, 63, 47) for i in range(COUNT)), FPS)
    info = probe(path)
    assert (info.width, info.height, info.frame_count) == (64, 48, COUNT)
    assert info.fps == pytest.approx(FPS) and info.duration == pytest.approx(COUNT / FPS)
    frames = list(iterate_frames(path))
    assert [number_of(frame) for _, frame in frames] == list(range(COUNT))
    assert np.allclose([time for time, _ in frames], np.arange(COUNT) / FPS, atol=1e-4)
    assert np.abs(frames[5][1][:47, :63].astype(int) - numbered(5, 63, 47)).mean() < 25
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert (stream.codec_context.name, stream.pix_fmt) == ("h264", "yuv420p")
    assert [p.name for p in tmp_path.iterdir()] == ["ours.mp4"]


def test_by_index_by_time_and_one_after_the_other_are_the_same(clip):
    every = [frame for _, frame in iterate_frames(clip)]
    wanted = [70, 3, 3, 41, 40, 39, 0, 74]
    by_index = read_frames(clip, indices=wanted)
    by_time = read_frames(clip, times=[i / FPS for i in wanted])
    assert [number_of(frame) for frame in by_index.frames] == wanted == by_index.indices.tolist()
    for i, a, b in zip(wanted, by_index.frames, by_time.frames, strict=True):
        assert np.array_equal(a, every[i]) and np.array_equal(b, every[i])
    assert np.allclose(by_index.times, np.array(wanted) / FPS)
    assert number_of(read_frames(clip, times=[10.9 / FPS]).frames[0]) == 10  # what is on the screen then
    assert read_frames(clip, indices=[]).frames == ()
    again = read_frames(clip, indices=by_index.indices)  # a clip's own numbers, an array
    assert np.array_equal(again.frames, by_index.frames) and np.array_equal(read_frames(clip, times=by_index.times).indices, wanted)


def test_evenly_spread(clip):
    assert [number_of(f) for f in read_frames(clip, count=4).frames] == sample_indices(COUNT, 4) == [0, 25, 49, 74]
    assert sample_indices(100, 4) == [0, 33, 66, 99] and sample_indices(2, 4) == [0, 0, 1, 1] and sample_indices(9, 1) == [0]


def test_a_varying_frame_rate(tmp_path):
    pts = np.cumsum(np.random.default_rng(0).integers(10, 90, COUNT)).tolist()
    path = encode(tmp_path / "varying.mkv", pts=pts, g="20", bf="2")
    info = probe(path)
    assert np.allclose(info.times, (np.array(pts) - pts[0]) / 1000, atol=1e-3)
    wanted = [2, 33, 34, 60]
    assert [number_of(f) for f in read_frames(path, indices=wanted).frames] == wanted
    assert [number_of(f) for f in read_frames(path, times=info.times[wanted] + 0.004).frames] == wanted


FILES = [("mpeg4", "old.avi"), ("libx264", "new.avi"), ("libvpx", "web.webm"), ("libx264", "raw.h264"), ("libx264", "stream.ts")]


@pytest.mark.parametrize(("codec", "name"), FILES)
def test_other_containers(tmp_path, codec, name):
    path = encode(tmp_path / name, codec=codec, count=40)
    wanted = [0, 13, 39]
    assert [number_of(f) for f in read_frames(path, indices=wanted).frames] == wanted
    assert [number_of(f) for _, f in iterate_frames(path)] == list(range(40))


@pytest.mark.parametrize(("matrix", "turns"), [((0, 1, -1, 0), -1), ((-1, 0, 0, -1), 2), ((0, -1, 1, 0), 1)])
def test_rotation_marks_are_applied(clip, tmp_path, matrix, turns):
    data = bytearray(clip.read_bytes())
    start = data.index(b"tkhd") + 4 + 40  # past version, times, layer and volume lies the display matrix
    a, b, c, d = (value * 65536 for value in matrix)
    entries = [a, b, 0, c, d, 0, 0, 0, 1 << 30]
    data[start : start + 36] = b"".join(value.to_bytes(4, "big", signed=True) for value in entries)
    path = tmp_path / "turned.mp4"
    path.write_bytes(data)
    plain, turned = read_frames(clip, indices=[9]).frames[0], read_frames(path, indices=[9]).frames[0]
    assert np.array_equal(turned, np.rot90(plain, turns))
    info = probe(path)
    assert (info.height, info.width) == turned.shape[:2]


def test_bad_files_are_one_clear_error(clip, tmp_path):
    whole = clip.read_bytes()
    cases = {
        "empty.mp4": b"",
        "text.mp4": b"hello, world" * 99,
        "cut.mp4": whole[: len(whole) // 2],
        "list.m3u8": b"#EXTM3U\n#EXTINF:9,\nclip.mp4\n",
    }
    for name, data in cases.items():
        (tmp_path / name).write_bytes(data)
        for read in (probe, lambda p: read_frames(p, count=2), lambda p: list(iterate_frames(p))):
            with pytest.raises(VideoError, match=name):
                read(tmp_path / name)
    with pytest.raises(VideoError, match="No such file"):
        probe(tmp_path / "gone.mp4")
    with pytest.raises(VideoError, match="is a folder"):
        probe(tmp_path)


def test_audio_only(tmp_path):
    path = tmp_path / "sound.m4a"
    with av.open(str(path), "w", format="mp4") as out:
        stream = out.add_stream("aac", rate=16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 16000), np.float32), format="fltp", layout="mono")
        frame.sample_rate = 16000
        out.mux(stream.encode(frame))
        out.mux(stream.encode(None))
    with pytest.raises(VideoError, match=r"sound\.m4a: has no picture track, only audio data"):
        probe(path)


def test_damaged_files_never_raise_anything_else(clip, tmp_path):
    whole, rng, path = clip.read_bytes(), np.random.default_rng(0), tmp_path / "damaged.mp4"
    for _ in range(20):
        data = bytearray(whole)
        for place in rng.integers(0, len(data), 8):
            data[place] = rng.integers(256)
        path.write_bytes(data)
        with contextlib.suppress(VideoError):
            assert all(f.dtype == np.uint8 for f in read_frames(path, count=3).frames)


def test_wrong_requests_and_frames(clip, tmp_path):
    with pytest.raises(ValueError, match=r"between 0 and 74, got \[75, -1\]"):
        read_frames(clip, indices=[3, 75, -1])
    with pytest.raises(ValueError, match=r"between 0 and 2\.500 s, got \[9\.0\]"):
        read_frames(clip, times=[1.0, 9.0])
    with pytest.raises(ValueError, match="exactly one"):
        read_frames(clip)
    target = tmp_path / "out.mp4"
    with pytest.raises(VideoError, match="no frames"):
        write_video(target, [], FPS)
    with pytest.raises(VideoError, match=r"frame 1 is uint8 \(10, 12, 3\)"):
        write_video(target, [np.zeros((12, 12, 3), np.uint8), np.zeros((10, 12, 3), np.uint8)], FPS)
    with pytest.raises(VideoError, match="float64"):
        write_video(target, [np.zeros((12, 12, 3))], FPS)
    with pytest.raises(VideoError, match="fps must be positive"):
        write_video(target, [numbered(0)], 0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(VideoError, match="cannot be written"):
        write_video(tmp_path / "file" / "out.mp4", [numbered(0)], FPS)


def test_sampled_frames_are_some_of_all(tmp_path):
    frames = [np.full((32, 48, 3), 5 * number, np.uint8) for number in range(20)]
    write_video(tmp_path / "a.mp4", frames, 10)
    every = [(time, frame) for time, frame in iterate_frames(tmp_path / "a.mp4")]
    for options, numbers in (
        ({"stride": 7}, [0, 7, 14]),
        ({"rate": 5.0}, list(range(0, 20, 2))),
        ({"rate": 4.0}, [0, 3, 5, 8, 10, 13, 15, 18]),  # the first frame at or after 0, 0.25, 0.5 s …
        ({"rate": 1000.0}, list(range(20))),
        ({"stride": 99}, [0]),
    ):
        sampled = list(sampled_frames(tmp_path / "a.mp4", **options))
        assert [number for number, _, _ in sampled] == numbers
        assert all(time == every[n][0] and np.array_equal(frame, every[n][1]) for n, time, frame in sampled)
    for wrong in ({"stride": 0}, {"rate": 0.0}, {"rate": float("nan")}):
        with pytest.raises(ValueError, match="stride of at least 1 and a positive rate"):
            next(sampled_frames(tmp_path / "a.mp4", **wrong))
