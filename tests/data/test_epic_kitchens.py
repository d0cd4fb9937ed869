"""EPIC-KITCHENS: frame numbers, labels and questions as published, and what broken files say."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.interpolate import CubicHermiteSpline

from data.epic_kitchens import (
    EpicError,
    clip_frames,
    frame_path,
    frames_before,
    observed_frames,
    read_actions,
    read_label,
    read_questions,
    trajectory_label,
)  # fmt: skip
from pose_tools.body_models.read import UnsafePickleError


def label(**paths: np.ndarray) -> dict:
    return {"frame_indices": [1, 2], "homography": [np.eye(3)], "contact": 20, "obj_trajs": {}, "affordance": None,
            "hand_trajs": {side: {"traj": traj} for side, traj in paths.items()}}  # fmt: skip


def path_from(x: float) -> np.ndarray:
    return np.stack([x + np.arange(21.0), 128 - np.arange(21.0)], -1)


def test_float32_rounding_of_the_published_loader():
    assert observed_frames(123456)[0] == 123260  # 123261 in exact arithmetic
    assert observed_frames(61) == [1] * 10
    with pytest.raises(EpicError, match="nothing to observe"):
        observed_frames(60)


def test_an_action_that_starts_after_the_gap_by_its_timestamp(tmp_path: Path):
    """Published: the timestamp decides, in hundredths of a second, what is left out (a question of RBHP is about such an action)."""
    assert observed_frames(60, start_time=1.0) == [1] * 10 == observed_frames(55, start_time=1.1)
    with pytest.raises(EpicError, match="nothing to observe"):
        observed_frames(60, start_time=0.99)
    file = tmp_path / "EPIC_100_validation.csv"
    file.write_text("participant_id,video_id,start_timestamp,start_frame,stop_frame,narration,verb,noun\n"
                    "P26,P26_37,00:00:01.00,60,150,take cup,take,cup\n")  # fmt: skip
    (action,) = read_actions(file)
    assert action.start_time == 1.0 and frames_before(action) == [1] * 10


@given(st.integers(61, 400_000))
def test_frame_numbers_are_exact_or_one_lower(start: int):
    exact = [max(start - 61 + 15 * (i - 9), 0) + 1 for i in range(10)]
    assert all(e - ours in (0, 1) for e, ours in zip(exact, observed_frames(start), strict=True))


def test_other_rates_and_numbers_of_frames():
    assert observed_frames(1001, 50, count=4) == [913, 926, 938, 951]


def test_a_label_in_fractions_left_before_right():
    found = trajectory_label(label(RIGHT=path_from(300), LEFT=path_from(100)))
    for hand, x in enumerate((100, 300)):
        np.testing.assert_allclose(found["future_hands"][hand], path_from(x)[::5] / (456, 256), rtol=1e-6)
    assert found["future_hands"].dtype == np.float32 and found["future_valid"].all() and found["step_valid"].all()


def test_a_missing_hand_and_steps_off_the_picture():
    found = trajectory_label(label(RIGHT=path_from(445)))
    assert found["future_valid"].tolist() == [False, True]
    np.testing.assert_array_equal(found["future_hands"][0], np.tile(np.float32([0.25, 1.5]), (5, 1)))
    assert found["step_valid"].tolist() == [[False] * 5, [True, True, True, False, False]]
    none = trajectory_label(label())
    np.testing.assert_array_equal(none["future_hands"][1], np.tile(np.float32([0.75, 1.5]), (5, 1)))


@pytest.mark.parametrize("protocol", [0, 2, 4, 5])
@pytest.mark.parametrize("dtype", ["float32", "float64", "int64"])
def test_a_label_file_says_what_its_content_says(tmp_path: Path, protocol: int, dtype: str):
    content = label(LEFT=path_from(9).astype(dtype))
    (tmp_path / "label_3.pkl").write_bytes(pickle.dumps(content, protocol))
    for name, value in trajectory_label(tmp_path / "label_3.pkl").items():
        np.testing.assert_array_equal(value, trajectory_label(content)[name])
    np.testing.assert_array_equal(read_label(tmp_path / "label_3.pkl")["homography"][0], np.eye(3))


@pytest.mark.parametrize("protocol", [2, 3, 4])
def test_a_published_label_with_its_fitted_curves(tmp_path: Path, protocol: int):
    """The maker of the published labels keeps, beside the points, the splines that filled their gaps, and where hands were seen."""
    seen = np.arange(0.0, 21, 5)
    curves = [CubicHermiteSpline(seen, start + slope * seen, np.full(5, slope)) for start, slope in ((300, 1.0), (128, -1.0))]
    made = {"traj": np.stack([curve(np.arange(21.0)) for curve in curves], -1).astype(np.float32), "fit_curve": curves,
            "fill_indices": [int(k) for k in seen], "centers": [np.float32([300, 128]), None] * 10 + [None]}  # fmt: skip
    content = label() | {"hand_trajs": {"RIGHT": made}, "frame_indices": list(np.arange(1, 64, 3, dtype=np.int32)),
                         "contact": np.arange(21) > 9, "affordance": {"select_points_homo": np.ones((5, 2)), "RIGHT": np.arange(4)},
                         "obj_trajs": {"traj": path_from(9), "fill_indices": [0, 20], "centers": [None] * 21}}  # fmt: skip
    (tmp_path / "label_3.pkl").write_bytes(pickle.dumps(content, protocol))
    found = trajectory_label(tmp_path / "label_3.pkl")
    np.testing.assert_allclose(found["future_hands"][1], path_from(300)[::5] / (456, 256), rtol=1e-6)
    assert found["future_valid"].tolist() == [False, True]
    assert read_label(tmp_path / "label_3.pkl")["hand_trajs"]["RIGHT"]["fit_curve"] == [None, None]


class Code:
    def __reduce__(self):
        return os.system, ("touch ran",)


def test_a_label_with_code_in_it_is_refused_unrun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    Path("label_0.pkl").write_bytes(pickle.dumps(label() | {"affordance": Code()}))
    with pytest.raises(UnsafePickleError, match="system"):
        trajectory_label("label_0.pkl")
    assert not Path("ran").exists()


@pytest.mark.parametrize("broken", [b"", b"\x80\x04", pickle.dumps([1]), pickle.dumps(label(LEFT=path_from(1)))[:-30]])
def test_a_damaged_label_names_its_file(tmp_path: Path, broken: bytes):
    (tmp_path / "label_0.pkl").write_bytes(broken)
    with pytest.raises(EpicError, match="label_0.pkl"):
        trajectory_label(tmp_path / "label_0.pkl")


@pytest.mark.parametrize("spoilt", [np.full((21, 2), np.nan), np.zeros((20, 2)), np.zeros((21, 2), complex), None])
def test_points_that_are_none(spoilt):
    with pytest.raises(EpicError, match="LEFT"):
        trajectory_label(label(LEFT=spoilt))
    with pytest.raises(EpicError, match="hand_trajs"):
        trajectory_label({})


def annotations(folder: Path, start: str = "211") -> Path:
    file = folder / "EPIC_100_train.csv"
    file.write_text(
        "narration_id,participant_id,video_id,start_frame,stop_frame,narration,verb,noun\n"
        f'a,P01,P01_01,{start},300,"open, slowly",open,door\nb,P01,P01_101,500,600,take cup,take,cup\n'
    )
    return file


def test_actions_and_their_frames(tmp_path: Path):
    first, second = read_actions(annotations(tmp_path), first_uid=7)
    assert (first.uid, second.uid, first.narration, second.video_id) == (7, 8, "open, slowly", "P01_101")
    for number in observed_frames(first.start_frame):
        path = tmp_path / frame_path("P01", "P01_01", number)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    assert [path.name for path in clip_frames(first, tmp_path)] == [f"frame_{n:010d}.jpg" for n in observed_frames(211)]
    path.unlink()
    with pytest.raises(EpicError, match="1 of 10 observed frames are missing"):
        clip_frames(first, tmp_path)


def test_annotations_of_a_spreadsheet(tmp_path: Path):
    """With a byte-order mark, lines that end as on Windows, columns in another order and more of them."""
    file = tmp_path / "a.csv"
    rows = "video_id,participant_id,narration,noun,verb,stop_frame,start_frame,all_nouns\r\nP01_01,P01,cut,onion,cut,300,211,['onion']\r\n"
    file.write_bytes(b"\xef\xbb\xbf" + rows.encode())
    (action,) = read_actions(file)
    assert (action.video_id, action.start_frame, action.noun) == ("P01_01", 211, "onion")


def test_broken_annotations(tmp_path: Path):
    with pytest.raises(EpicError, match="row 1.*whole numbers"):
        read_actions(annotations(tmp_path, start="soon"))
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    with pytest.raises(EpicError, match="no columns participant_id"):
        read_actions(tmp_path / "other.csv")
    with pytest.raises(EpicError, match="no such file"):
        read_actions(tmp_path / "gone.csv")
    (tmp_path / "cut.csv").write_bytes(annotations(tmp_path).read_bytes()[:-2] + b"\xff\xfe")
    with pytest.raises(EpicError, match="cut.csv: no csv file"):
        read_actions(tmp_path / "cut.csv")
    with pytest.raises(EpicError, match="row 2: cut off|row 2: start_frame"):
        (tmp_path / "cut.csv").write_bytes(annotations(tmp_path).read_bytes()[:-16])
        read_actions(tmp_path / "cut.csv")
    with pytest.raises(EpicError, match="no name"):
        frame_path("..", "P01_01", 1)


def test_questions_are_what_stands_between_quotes(tmp_path: Path):
    key, other = frame_path("P01", "P01_01", 5), frame_path("P01", "P01_01", 9)
    file = tmp_path / "ek100_questions.json"
    file.write_text(json.dumps({key: '1. "Where to?"\n2. "And now?"', other: "Where to?"}))
    assert read_questions(file) == {key: ["Where to?", "And now?"]}
    for content, said in (('{"../x": "\\"a\\""}', "leaves"), ("[1]", "expected a json object"), ("{", "not whole json")):
        file.write_text(content)
        with pytest.raises(EpicError, match=said):
            read_questions(file)


@pytest.mark.parametrize(
    "data, said",
    [
        (b"\x80\x05\x96" + (1 << 40).to_bytes(8, "little") + b"x.", "only 2 remain"),
        (pickle.dumps({"a": bytearray(8)}, 5), "holds a bytearray"),
    ],
)
def test_bytes_of_a_label_are_those_of_its_arrays(data: bytes, said: str, tmp_path: Path):
    """The newest protocol keeps arrays in byte arrays: no length is believed, and alone they are nothing."""
    (tmp_path / "label.pkl").write_bytes(data)
    with pytest.raises(EpicError, match=said):
        read_label(tmp_path / "label.pkl")


@pytest.mark.parametrize(
    "numbers", [{"fps": 0}, {"fps": float("nan")}, {"fps": -60}, {"count": 0}, {"rate": 0}, {"gap": -1}, {"gap": float("inf")}]
)
def test_numbers_that_mean_nothing_are_refused(numbers):
    with pytest.raises(EpicError, match="expected positive numbers"):
        observed_frames(300, **numbers)
    with pytest.raises(EpicError, match="expected a frame's number"):
        observed_frames(10**20)


@pytest.mark.parametrize(
    "paths, said",
    [
        ({"LEFT": {"traj": [[1, 2]] * 20 + [[1]]}}, "LEFT: lists of several lengths"),
        ({"LEFT": {"traj": np.full((21, 2), 1e300)}}, "21 of 21 points are not finite"),
        ({"left": {"traj": path_from(1)}}, "has 'left', expected RIGHT, LEFT"),
    ],
)
def test_labels_of_other_makers(paths, said: str, tmp_path: Path):
    (tmp_path / "label_3.pkl").write_bytes(pickle.dumps({"hand_trajs": paths}))
    with pytest.raises(EpicError, match=f"label_3.pkl.*{said}"):
        trajectory_label(tmp_path / "label_3.pkl")
    with pytest.raises(EpicError, match="hand_trajs is NoneType"):
        trajectory_label([paths])


@pytest.mark.parametrize(
    "was, now, said",
    [
        ("take cup", "take cup, slowly", "row 2: 'cup' is in no column.*double quotes"),
        ("P01_101", "P01\\P01_101", "row 2: .*no name of a participant or video"),
        (",narration,", ",words,", "no columns narration in its first line, which names 'narration_id', .*'words'"),
    ],
)
def test_a_row_that_reads_otherwise_than_it_was_meant_is_named(tmp_path: Path, was: str, now: str, said: str):
    file = annotations(tmp_path)
    file.write_text(file.read_text().replace(was, now))
    with pytest.raises(EpicError, match=f"EPIC_100_train.csv.*{said}"):
        read_actions(file)
    file.write_text(annotations(tmp_path).read_text().replace("cup\n", "cup,,\n"))  # empty cells, as spreadsheets leave them
    assert len(read_actions(file)) == 2


def test_question_files_with_a_byte_order_mark_or_a_frame_twice(tmp_path: Path):
    file, key = tmp_path / "q.json", frame_path("P01", "P01_01", 5)
    file.write_text(json.dumps({key: '"Where?"'}), encoding="utf-8-sig")
    assert read_questions(file) == {key: ["Where?"]}
    file.write_text(f'{{"{key}": "a", "{key}": "b"}}')
    with pytest.raises(EpicError, match="stands there twice"):
        read_questions(file)
    file.write_text(json.dumps({key: ["Where?"]}))
    with pytest.raises(EpicError, match=f"{key}' has .'Where.'., expected one string"):
        read_questions(file)
