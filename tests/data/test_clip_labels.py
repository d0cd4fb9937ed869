"""The label maker: a filmed wall on which two marked hands move, seen by a camera that turns, so that every future point is known."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import cv2
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from data.clip_labels import FUTURE, LabelSettings, counts, label_window, make_labels, read_windows
from data.clip_sheet import write_sheet
from data.clip_windows import Moment, Window, listed, plan, read_moments, sliding, video_names
from data.epic_clips import EpicClips
from data.epic_kitchens import EpicError
from data.hand_extraction import Source
from data.synthetic.journal import FolderError
from pose_tools.detect import HandDetection
from pose_tools.files import FolderBusyError
from pose_tools.image_io import read_image
from pose_tools.render import SIDE_COLOURS
from pose_tools.video import write_video

SIZE, RATE = (160, 120), 20
COLOURS = {"left": (0, 255, 0), "right": (255, 0, 255)}


def camera(second: float) -> np.ndarray:
    """(3, 3) from the wall to the frame at a moment: it pans, turns and comes nearer."""
    turn, zoom = 0.05 * np.sin(2 * second), 1 + 0.03 * second
    c, s = zoom * np.cos(turn), zoom * np.sin(turn)
    return np.array([[c, -s, -90 - 12 * second], [s, c, -70 + 6 * np.cos(second)], [0, 0, 1.0]])


def on_wall(side: str, second: float) -> np.ndarray:
    return np.array([130, 140]) + [7 * second, 3 * second] if side == "left" else np.array([215 - 10 * second, 110 + 8 * np.sin(second)])


def in_frame(points: np.ndarray, second: float) -> np.ndarray:
    """Pixels counted from a pixel's corner, as boxes are; OpenCV draws and warps from its middle."""
    moved = np.append(points, 1) @ camera(second).T
    return moved[:2] / moved[2] + 0.5


@cache
def wall() -> np.ndarray:
    rng = np.random.default_rng(5)
    noise = sum(cv2.resize(rng.normal(size=(300 // s, 400 // s)), (400, 300), interpolation=cv2.INTER_CUBIC) for s in (4, 10, 25))
    return np.repeat(np.clip(110 + 25 * noise, 0, 200).astype(np.uint8)[..., None], 3, 2)


def film(path: Path, seconds: float = 4.3, *, hands: Sequence[str] = ("left", "right"), plain: bool = False) -> Path:
    """A video at RATE; without hands, or before a plain wall."""
    frames = []
    for number in range(round(seconds * RATE)):
        second = number / RATE
        picture = np.full((*SIZE[::-1], 3), 90, np.uint8) if plain else cv2.warpPerspective(wall(), camera(second), SIZE)
        for side in hands:
            x, y = in_frame(on_wall(side, second), second) - 0.5
            cv2.ellipse(picture, (round(16 * x), round(16 * y)), (16 * 8, 16 * 6), 0, 0, 360, COLOURS[side], -1, cv2.LINE_AA, 4)
        frames.append(picture)
    write_video(path, frames, RATE, crf=8)
    return path


def by_colour(frames: Sequence[np.ndarray]) -> list[list[HandDetection]]:
    """A detector that knows the two marks."""
    return [[hand for side, colour in COLOURS.items() if (hand := _marked(frame, side, colour))] for frame in frames]


def _marked(frame: np.ndarray, side, colour: tuple[int, int, int]) -> HandDetection | None:
    rows, columns = np.nonzero(np.abs(frame.astype(int) - colour).max(-1) < 110)
    if len(rows) < 20:
        return None
    return HandDetection((columns.min(), rows.min(), columns.max() + 1.0, rows.max() + 1.0), side, 0.9)


def windows_of(path: Path, every: float = 0.5) -> list[Window]:
    return sliding(path, path.stem, "P03", every)


def make(out: Path, windows: list[Window], **options) -> Path:
    list(make_labels(out, windows, LabelSettings(size=120), detector=by_colour, **options))
    return out


@pytest.fixture(scope="module")
def video(tmp_path_factory) -> Path:
    return film(tmp_path_factory.mktemp("videos") / "kitchen.mp4")


@pytest.fixture(scope="module")
def made(video: Path, tmp_path_factory) -> Path:
    return make(tmp_path_factory.mktemp("made") / "clips", windows_of(video))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def test_future_points_are_those_of_the_world(made: Path):
    """Also for the reader that trains on them: within a pixel and a half although the camera moved by up to 19."""
    reader = EpicClips(made)
    assert len(reader) == 3 and not reader.skipped
    moved = []
    for number, record in enumerate(read_windows(made)):
        now = 2.25 + 0.5 * number
        (sample,) = reader.samples(number, split="train", seed=0)
        assert np.array(record["known"]).all() and sample.targets["valid"].all()
        for hand, side in enumerate(COLOURS):
            truth = np.array([in_frame(on_wall(side, now + later), now) for later in FUTURE])
            assert np.linalg.norm(np.array(record["points"][hand]) - truth, axis=-1).max() < 1.5
            np.testing.assert_allclose(sample.targets["future"][hand], truth[5::5], atol=1.5)
            moved += [np.linalg.norm(in_frame(on_wall(side, now + 1), now + 1) - truth[-1])]
    assert max(moved) > 10, "this film asks for no homography"


def test_frames_are_the_observed_ones(made: Path, video: Path):
    clip = EpicClips(made).clips[1]
    assert [int(path.stem[-10:]) for path in clip.frames] == [1 + 15 * k + 30 for k in range(10)] and clip.frames[0].parts[-4] == "P03"
    picture = read_image(clip.frames[-1])
    marks = {hand.side: hand.bbox_xyxy for hand in by_colour([picture])[0]}
    x1, y1, x2, y2 = marks["left"]
    np.testing.assert_allclose([(x1 + x2) / 2, (y1 + y2) / 2], in_frame(on_wall("left", 2.75), 2.75), atol=1)


def test_words_are_asked_for_where_there_are_none(made: Path):
    for wording in (None, "narration", "action"):
        for sample in EpicClips(made, wording=wording).samples(0, split="train", seed=0):
            words = [p["text"] for m in sample.messages if m["role"] == "user" for p in m["content"] if p["type"] == "text"]
            assert words and all(len(text.split()) > 3 and "{}" not in text and "to ?" not in text for text in words)


def test_stopped_and_taken_up_is_uninterrupted(made: Path, video: Path, tmp_path: Path):
    steps = make_labels(tmp_path / "clips", windows_of(video), LabelSettings(size=120), detector=by_colour)
    assert [next(steps) for _ in range(3)] == [0, 1, 2]
    steps.close()
    assert len(EpicClips(tmp_path / "clips")) == 2, "what is done can be trained on"
    make(tmp_path / "clips", windows_of(video))
    assert contents(tmp_path / "clips") == contents(made)


def test_a_run_that_is_refused_changes_nothing(made: Path, video: Path, tmp_path: Path):
    """Its labels, of the windows there were when it came, would take the place of those that the other run writes at its end."""
    out = tmp_path / "clips"
    first = make_labels(out, windows_of(video), LabelSettings(size=120), detector=by_colour)
    assert [next(first), next(first)] == [0, 1]
    before = contents(out)
    with pytest.raises(FolderBusyError):
        make(out, windows_of(video))
    assert contents(out) == before
    assert list(first) == [2, 3] and contents(out) == contents(made)


def test_windows_may_be_added_but_not_changed(video: Path, tmp_path: Path):
    windows = windows_of(video)
    out = make(tmp_path / "clips", windows[:1])
    make(out, windows[:2])
    assert len(EpicClips(out)) == 2
    with pytest.raises(FolderError, match="line 1.*may only be added behind"):
        make(out, windows[1:])
    with pytest.raises(FolderError, match="2 windows, 1 are asked"):
        make(out, windows[:1])
    with pytest.raises(FolderError, match="size"):
        list(make_labels(out, windows, LabelSettings(size=64), detector=by_colour))


def test_a_folder_of_other_things_is_left_alone(video: Path, tmp_path: Path):
    """EPIC-KITCHENS' own labels and annotation file have the same names."""
    out = tmp_path / "epic_kitchens"
    (out / "labels").mkdir(parents=True)
    (out / "labels/label_7.pkl").write_bytes(b"theirs")
    (out / "EPIC_100_train.csv").write_text("theirs")
    before = contents(out)
    with pytest.raises(FolderError, match=r"EPIC_100_train.csv, labels.*new folder as --out"):
        make(out, windows_of(video))
    assert contents(out) == before


def test_no_hand_no_camera_no_future(video: Path, tmp_path: Path):
    empty, plain = film(tmp_path / "empty.mp4", 3.3, hands=()), film(tmp_path / "plain.mp4", 3.3, plain=True)
    one = film(tmp_path / "one.mp4", 3.3, hands=("right",))
    moments = [Moment("kitchen", start, start + 1, "cut", "cut", "", "") for start in (0.5, 9.0)]
    windows = [*(w for path in (empty, plain, one) for w in windows_of(path)), *listed(moments, video, "kitchen", "P01")]
    out = make(tmp_path / "clips", windows)
    found = counts(read_windows(out))
    assert json.loads((out / "videos.json").read_text()) == found
    assert [found[name]["left_out"] for name in ("empty", "plain", "one")] == [{"have no hand": 1}, {"have no homography": 1}, {}]
    assert found["kitchen"]["left_out"] == {"begin before anything is observed": 1, "end after the video": 1}
    assert (found["one"]["left"], found["one"]["right"], found["plain"]["frames_registered"]) == (0, 1, round(1 / 21, 4))
    (sample,) = EpicClips(out).samples(0, split="train", seed=0)
    assert sample.targets["valid"].tolist() == [[False] * 4, [True] * 4]
    assert not list((out / "P03/rgb_frames").glob("empty/*")), "frames of what cannot be used are not written"


def test_a_hand_that_goes_out_of_sight_is_marked(video: Path, tmp_path: Path):
    """From half a second on no hand is seen: the first two of four points are labels, the others only fill the path."""
    def blind(frames):
        return [hands if number < 20 else [] for number, hands in enumerate(by_colour(frames))]

    (out := tmp_path / "clips").mkdir()
    list(make_labels(out, windows_of(video)[:1], LabelSettings(size=120), detector=blind))
    (sample,) = EpicClips(out).samples(0, split="train", seed=0)
    assert sample.targets["valid"].tolist() == [[True, True, False, False]] * 2
    (published,) = EpicClips(out, wording="action").samples(0, split="train", seed=0)
    part = next(part for part in published.messages[1]["content"] if part["type"] == "trajectory")
    assert np.array(part["valid"]).tolist() == [[True, True, False, False]] * 2


def test_frames_smaller_than_the_video(made: Path, video: Path):
    record, files = label_window(windows_of(video)[0], LabelSettings(size=60), by_colour)
    assert record["size"] == [80, 60] and len(files) == 10
    np.testing.assert_allclose(2 * np.array(record["points"]), read_windows(made)[0]["points"], atol=3)


def test_the_sheet_shows_paths(made: Path, tmp_path: Path):
    sheet = read_image(write_sheet(made, 2))
    for colour in SIDE_COLOURS.values():
        assert (np.abs(sheet.astype(int) - colour).max(-1) < 90).sum() > 20


def test_actions_of_a_file(video: Path, tmp_path: Path):
    file = tmp_path / "actions.csv"
    file.write_text("video,start,narration\nkitchen.mp4,3.25,cut the onion\nkitchen,0:00:03.5,\n")
    sources = video_names([Source("kitchen", video)])
    windows, unread = plan(sources, read_moments(file), every=1, participant="P09")
    assert [(w.start_frame, w.narration, w.participant_id) for w in windows["kitchen"]] == [(196, "cut the onion", "P09"), (211, "", "P09")]
    file.write_text("participant_id,video_id,start_timestamp,stop_timestamp,narration,verb,noun\nP02,kitchen,00:00:03.25,00:00:04.00,cut,cut,onion\n")
    (window,) = plan(sources, read_moments(file), every=1, participant="P09")[0]["kitchen"]
    assert (window.participant_id, window.stop_frame, window.verb, window.noun) == ("P02", 241, "cut", "onion") and not unread


@pytest.mark.parametrize("name", ["2024.05.12", "2024.05.12.mp4", "2024_05_12", "2024_05_12.mp4"])
def test_a_name_with_points_is_found_with_and_without_its_ending(name: str, video: Path, tmp_path: Path):
    (tmp_path / "actions.csv").write_text(f"video,start\n{name},3.25\n")
    sources = video_names([Source("2024.05.12", video)])
    assert len(plan(sources, read_moments(tmp_path / "actions.csv"), every=1, participant="P09")[0]["2024_05_12"]) == 1


def test_a_name_of_several_videos_is_refused_and_the_whole_name_is_meant_first(video: Path, tmp_path: Path):
    below = tmp_path / "b" / video.name
    below.parent.mkdir()
    below.write_bytes(video.read_bytes())
    sources, file = {"a_kitchen": Source("a/kitchen", video), "b_kitchen": Source("b/kitchen", below)}, tmp_path / "actions.csv"
    file.write_text("video,start\nb/kitchen.mp4,3.25\n")
    assert [len(some) for some in plan(sources, read_moments(file), every=1, participant="P01")[0].values()] == [0, 1]
    file.write_text("video,start\nkitchen,3.25\n")
    with pytest.raises(EpicError, match="names 'kitchen', which may be .*name it with its folder"):
        plan(sources, read_moments(file), every=1, participant="P01")
    one = {"kitchen": Source("kitchen", video), "b_kitchen": Source("b/kitchen", below)}
    assert len(plan(one, read_moments(file), every=1, participant="P01")[0]["kitchen"]) == 1


@pytest.mark.parametrize(
    "text, said",
    [
        ("video,when\na,1\n", "no column start"), ("", "no column video and no start"), ("video,start\na,soon\n", "row 1, start: 'soon'"),
        ("video,start\n,1\n", "row 1: names no video"), ("video,start,stop\na,2,1\n", "before its start"),
        ("video,start,participant\na,2,../x\n", "letters, digits"), ("video,start\nother,2\n", "first 'other'; there are kitchen"),
        ("video,start\na,-1\n", "no moment"), ("video,start\na,1:2:3:4\n", "no moment"),
        ("video,start,narration\na,2,cut, slowly\n", "row 1: ' slowly' is in no column"),
        ("video,start\n.,1\n", "first '.'"), ("video,start\n/,1\n", "first '/'"),
    ],
)  # fmt: skip
def test_broken_action_files(text: str, said: str, video: Path, tmp_path: Path):
    (tmp_path / "actions.csv").write_text(text)
    with pytest.raises(EpicError, match=said):
        plan(video_names([Source("kitchen", video)]), read_moments(tmp_path / "actions.csv"), every=1, participant="P01")


CELL = st.text(st.characters(codec="utf-8"), max_size=8) | st.sampled_from(["a", "1", "2.5", "0:01:02.5"])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.lists(CELL, min_size=1, max_size=4), max_size=4), raw=st.binary(max_size=40))
def test_any_action_file_is_read_or_refused(rows: list[list[str]], raw: bytes, tmp_path: Path):
    file = tmp_path / "a.csv"
    for content in ("\n".join(["video,start,stop,narration", *(",".join(row) for row in rows)]).encode(), raw):
        file.write_bytes(content)
        try:
            found = read_moments(file)
        except EpicError as error:
            assert str(file) in str(error)
        else:
            assert all(0 <= moment.start <= moment.stop for moment in found)


def test_videos_that_cannot_be_read_or_named(video: Path, tmp_path: Path):
    broken = tmp_path / "broken.mp4"
    broken.write_bytes(video.read_bytes()[:900])
    windows, unread = plan(video_names([Source("kitchen", video), Source("broken", broken)]), None, every=1, participant="P01")
    assert len(windows["kitchen"]) == 2 and windows["broken"] == [] and "broken.mp4" in unread["broken"]
    with pytest.raises(EpicError, match="folder of pictures"):
        video_names([Source("frames", tmp_path)])
    with pytest.raises(EpicError, match="both be called 'a_b'"):
        video_names([Source("a-b", video), Source("a b", broken)])
    with pytest.raises(EpicError, match="participant"):
        plan({}, None, every=1, participant="a/b")
    with pytest.raises(EpicError, match="every 0"):
        plan(video_names([Source("kitchen", video)]), None, every=0, participant="P01")


@pytest.mark.slow
@pytest.mark.two_process
def test_the_command_on_the_synthetic_world(video: Path, tmp_path: Path, capsys, monkeypatch):
    """The small detector, two processes as one, labels near the truth of rendered videos, a broken video beside them."""
    from data.synthetic.clip_videos import make_video
    from scripts import prepare_clips

    monkeypatch.setenv("HANDVLM_HANDS", "small")
    videos, truth = tmp_path / "videos", {}
    videos.mkdir()
    for number in range(2):
        filming = make_video(3, "test", number, (256, 256))
        write_video(videos / f"v{number}.mp4", filming.frames, RATE)
        truth[f"v{number}"] = filming.future
    (videos / "broken.mp4").write_bytes(b"no video")
    for out, workers in (("one", 1), ("two", 2)):
        assert prepare_clips.main([str(videos), "--out", str(tmp_path / out), "--workers", str(workers), "--sheet", "2"]) == 0
        assert "2 of 2 clips of 2 videos can be used; 1 could not be read" in capsys.readouterr().out
    assert contents(tmp_path / "one") == contents(tmp_path / "two")
    for record in read_windows(tmp_path / "one"):
        for hand in range(2):
            known = np.array(record["known"][hand])
            if np.isfinite(truth[record["video_id"]][hand]).all():
                points = np.array([[np.nan] * 2 if p is None else p for p in record["points"][hand]])
                assert known.mean() > 0.7
                assert np.median(np.linalg.norm(points - truth[record["video_id"]][hand], axis=-1)[known]) < 15
    assert prepare_clips.main([str(videos / "broken.mp4"), "--out", str(tmp_path / "none"), "--workers", "1"]) == 1
    assert prepare_clips.main([str(tmp_path / "nowhere"), "--out", str(tmp_path / "none")]) == 1
    assert "no such file or folder" in capsys.readouterr().err
