"""SiMHand's annotation file and scripts/mine_hands.py."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.hand_annotations import AnnotationError, HandAnnotations, read_hand_annotations, write_hand_annotations
from data.synthetic.keypoints import keypoint_pool
from pose_tools.image_io import read_image, write_image
from pose_tools.simhand.mining import mine
from scripts import mine_hands


def make(count=40, videos=5, seed=0):
    points, ids = keypoint_pool(count, videos=videos, seed=seed)
    rng = np.random.default_rng(seed)
    left = rng.random(count) < 0.5
    points[left, :, 0] = 1 - points[left, :, 0]
    names = [f"video{video}/frame_{30 * (row % 7):06d}.jpg" for row, video in enumerate(ids)]
    images = {name: number for number, name in enumerate(dict.fromkeys(names))}
    boxes = np.concatenate([rng.integers(0, 40, (count, 2)), rng.integers(60, 90, (count, 2))], axis=1).astype(float)
    keypoints = np.concatenate([points, rng.normal(size=(count, 21, 1)).astype(np.float32)], axis=2)
    return HandAnnotations(list(range(100, 100 + count)), [images[name] for name in names], names, boxes, left, keypoints)


def same(a, b):
    arrays = all(np.array_equal(getattr(a, name), getattr(b, name)) for name in ("boxes", "left", "keypoints"))
    return arrays and (a.hand_ids, a.image_ids, a.file_names) == (b.hand_ids, b.image_ids, b.file_names)


def test_written_is_read_back_in_the_published_form(tmp_path):
    hands = make()
    hands = hands.with_positives(*mine(hands.right_hand_keypoints(), hands.video_ids, 2))
    write_hand_annotations(tmp_path / "a.json", hands)
    again = read_hand_annotations(tmp_path / "a.json")
    assert same(hands, again) and again.positives == hands.positives and again.distances == hands.distances
    record = json.loads((tmp_path / "a.json").read_text())["annotations"][3]
    assert list(record) == ["hand_id", "image_id", "boxes", "left_right", "keypoint_25d", "positive_sample", "distance"]
    assert isinstance(record["boxes"], str) and json.loads(record["boxes"]) == hands.boxes[3].tolist() and len(record["keypoint_25d"]) == 63
    rows = again.positive_rows()
    assert [again.hand_ids[row] for row in rows] == [near[0] for near in again.positives]
    assert (again.video_ids[rows] != again.video_ids).all()


@given(
    box=st.lists(st.floats(-1e4, 1e4), min_size=4, max_size=4),
    point=st.floats(-2, 2, width=32),
    left=st.booleans(),
    name=st.text(min_size=1, max_size=20),
)
def test_any_hand_round_trips(tmp_path_factory, box, point, left, name):
    path = tmp_path_factory.mktemp("a") / "a.json"
    hands = HandAnnotations(['é"\n' + name], [name], [name], np.array([box]), np.array([left]), np.full((1, 21, 3), point, np.float32))
    write_hand_annotations(path, hands)
    assert same(read_hand_annotations(path), hands)


def test_mirrored_file_gives_the_same_pool():
    hands = make()
    mirrored = make()
    mirrored.left = ~hands.left
    mirrored.keypoints[..., 0] = 1 - hands.keypoints[..., 0]
    np.testing.assert_allclose(mirrored.right_hand_keypoints(), hands.right_hand_keypoints(), atol=1e-6)


def break_one(content, change):
    change(content)
    return content


@pytest.mark.parametrize(("change", "message"), [
    (lambda c: c["annotations"].append(c["annotations"][0]), "hand_id 100 occurs more than once"),
    (lambda c: c["annotations"][2].pop("boxes"), "annotation 2: KeyError: 'boxes'"),
    (lambda c: c["annotations"][2].update(boxes="[1, 2"), "annotation 2: JSONDecodeError"),
    (lambda c: c["annotations"][1].update(left_right="left"), "annotation 1: expected left_right"),
    (lambda c: c["annotations"][1].update(keypoint_25d=[0.0] * 42), "got 'Right', 4, 42|got 'Left', 4, 42"),
    (lambda c: c["annotations"][0].update(image_id=999), "image_id 999 is not among the images"),
    (lambda c: c["images"].append(c["images"][0]), "different ids"),
    (lambda c: c.pop("images"), "expected an object with the lists"),
])  # fmt: skip
def test_bad_files_are_named(tmp_path, change, message):
    write_hand_annotations(tmp_path / "a.json", make())
    (tmp_path / "a.json").write_text(json.dumps(break_one(json.loads((tmp_path / "a.json").read_text()), change)))
    with pytest.raises(AnnotationError, match=message):
        read_hand_annotations(tmp_path / "a.json")


def test_half_a_file_and_foreign_positives(tmp_path):
    write_hand_annotations(tmp_path / "a.json", make())
    text = (tmp_path / "a.json").read_text()
    (tmp_path / "half.json").write_text(text[: len(text) // 2])
    with pytest.raises(AnnotationError, match="not whole JSON"):
        read_hand_annotations(tmp_path / "half.json")
    hands = make()
    hands.positives = [["of another corpus"]] + [[]] * 39
    with pytest.raises(AnnotationError, match="of another corpus"):
        hands.positive_rows()


def test_script_mines_resumes_and_draws(tmp_path, monkeypatch, capsys):
    hands = make()
    write_hand_annotations(tmp_path / "a.json", hands)
    for name in set(hands.file_names):
        (tmp_path / "frames" / name).parent.mkdir(parents=True, exist_ok=True)
        write_image(tmp_path / "frames" / name, np.random.default_rng(0).integers(0, 255, (100, 120, 3)).astype(np.uint8))
    command = [
        str(tmp_path / "a.json"),
        "--out",
        str(tmp_path / "b.json"),
        "--k",
        "3",
        "--sheet",
        str(tmp_path / "s.jpg"),
        "--images",
        str(tmp_path / "frames"),
    ]
    assert mine_hands.main(command) == 0
    index, distance = mine(hands.right_hand_keypoints(), hands.video_ids, 3)
    assert read_hand_annotations(tmp_path / "b.json").positives == hands.with_positives(index, distance).positives
    assert read_image(tmp_path / "s.jpg").shape == (8 * 224, 10 * 224, 3)
    assert not list(tmp_path.glob("*.parts")) and "40 hands with a neighbour, 0 without" in capsys.readouterr().out


def test_an_interrupted_run_goes_on(tmp_path, monkeypatch, capsys):
    keypoints, videos = keypoint_pool(5000, videos=20)
    np.savez(tmp_path / "pool.npz", keypoints=keypoints, video_ids=videos)
    command = [str(tmp_path / "pool.npz"), "--out", str(tmp_path / "pairs.npz"), "--method", "ivf", "--probes", "3"]
    assert mine_hands.main(command) == 0
    whole = dict(np.load(tmp_path / "pairs.npz"))
    (tmp_path / "pairs.npz").unlink()
    chunk, calls = mine_hands.prepare.__globals__["Miner"].chunk, []

    def stop_after(miner, number):
        calls.append(number)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return chunk(miner, number)

    monkeypatch.setattr(mine_hands.prepare.__globals__["Miner"], "chunk", stop_after)
    with pytest.raises(KeyboardInterrupt):
        mine_hands.main(command)
    parts = tmp_path / "pairs.npz.parts"
    assert not (tmp_path / "pairs.npz").exists() and len(list(parts.glob("0*.npz"))) == 3
    (parts / "000001.npz").write_bytes(b"cut off")
    assert mine_hands.main([*command, "--k", "2"]) == 1 and "another run" in capsys.readouterr().err
    assert mine_hands.main(command) == 0
    assert 0 not in calls[4:] and 1 in calls[4:] and 2 not in calls[4:]
    for name, value in whole.items():
        np.testing.assert_array_equal(np.load(tmp_path / "pairs.npz")[name], value)


def test_script_refuses_with_one_line(tmp_path, capsys):
    np.savez(tmp_path / "bad.npz", keypoints=np.zeros((3, 21, 2)))
    (tmp_path / "cut.npz").write_bytes(b"PK\x03\x04")
    np.savez(tmp_path / "twice.npz", keypoints=np.zeros((2, 21, 2)), video_ids=np.arange(2), hand_ids=np.array([1, 1]))
    for name, message in (
        ("bad.npz", "lacks video_ids"),
        ("cut.npz", "is it whole"),
        ("twice.npz", "different names"),
        ("absent.json", "cannot be read"),
    ):
        assert mine_hands.main([str(tmp_path / name), "--out", str(tmp_path / "o.npz")]) == 1
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        mine_hands.main([str(tmp_path / "bad.npz"), "--out", str(tmp_path / "o.json")])
