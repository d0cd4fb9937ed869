"""SiMHand's annotation file and scripts/mine_hands.py."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from data.hand_annotations import AnnotationError, HandAnnotations, read_hand_annotations, write_hand_annotations
from data.hand_shards import HandShards, ShardHand
from data.hand_shards_writer import hand_id, write_index, write_unit
from data.synthetic.keypoints import keypoint_pool
from pose_tools.image_io import read_image, write_image
from pose_tools.simhand import faiss_search
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


@pytest.mark.parametrize(("hand", "positive"), [(str, int), (int, str), (str, str)])
def test_positives_are_found_whether_written_as_numbers_or_texts(hand, positive, tmp_path):
    """The published loader turns a positive into a text before it looks for it among the hands' ids."""
    hands = make()
    hands = hands.with_positives(*mine(hands.right_hand_keypoints(), hands.video_ids, 2))
    write_hand_annotations(tmp_path / "a.json", hands)
    content = json.loads((tmp_path / "a.json").read_text())
    for record in content["annotations"]:
        record.update(hand_id=hand(record["hand_id"]), positive_sample=[positive(near) for near in record["positive_sample"]])
    (tmp_path / "a.json").write_text(json.dumps(content))
    again = read_hand_annotations(tmp_path / "a.json")
    assert np.array_equal(again.positive_rows(), hands.positive_rows()) and isinstance(again.positives[0][0], hand)


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


def test_an_interrupted_run_goes_on_and_lists_on_disk_are_those_in_memory(tmp_path, monkeypatch, capsys):
    pytest.importorskip("faiss")
    keypoints, videos = keypoint_pool(5000, videos=20)
    np.savez(tmp_path / "pool.npz", keypoints=keypoints, video_ids=videos)
    command = [str(tmp_path / "pool.npz"), "--out", str(tmp_path / "pairs.npz"), "--method", "ivf", "--probes", "3"]
    assert mine_hands.main(command) == 0
    whole = dict(np.load(tmp_path / "pairs.npz"))
    (tmp_path / "pairs.npz").unlink()
    monkeypatch.setattr(faiss_search, "CHUNK", 1000)
    monkeypatch.setattr(faiss_search, "ON_DISK", 0)
    monkeypatch.setattr(faiss_search, "BLOCK", 1700)
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


def test_shares_joined_are_one_run(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("pose_tools.simhand.neighbours.CHUNK", 8)
    keypoints, videos = keypoint_pool(60, videos=6)
    np.savez(tmp_path / "pool.npz", keypoints=keypoints, video_ids=videos)
    command = [str(tmp_path / "pool.npz"), "--k", "2", "--out"]
    for share in ("2/3", "1/3", "3/3"):
        assert mine_hands.main([*command, str(tmp_path / "shared.npz"), "--share", share]) == 0
        assert not (tmp_path / "shared.npz").exists()
    parts = len(list((tmp_path / "shared.npz.parts").glob("0*.npz")))
    monkeypatch.setattr(mine_hands.prepare.__globals__["Miner"], "chunk", None)  # nothing is left to search
    assert parts > 1 and mine_hands.main([*command, str(tmp_path / "shared.npz")]) == 0
    monkeypatch.undo()
    assert mine_hands.main([*command, str(tmp_path / "alone.npz")]) == 0
    with np.load(tmp_path / "shared.npz") as one, np.load(tmp_path / "alone.npz") as other:
        assert np.array_equal(one["indices"], other["indices"]) and np.array_equal(one["distances"], other["distances"])
    for wrong in ("0/3", "4/3", "x", "2"):
        with pytest.raises(SystemExit):
            mine_hands.main([*command, str(tmp_path / "a.npz"), "--share", wrong])


def test_script_mines_shards_as_their_annotations(tmp_path, capsys):
    """Shards → pairs, the published file and a sheet; the published file mined again gives the same."""
    pytest.importorskip("pyarrow")
    rng, hands = np.random.default_rng(0), make()
    for video in np.unique(hands.video_ids):
        rows = np.flatnonzero(hands.video_ids == video)
        points = hands.right_hand_keypoints()[rows] * 32
        made = (
            ShardHand(
                hand_id(video, 30 * n, 0), video, 30 * n, "left" if hands.left[row] else "right", 1.0, hands.boxes[row], hands.boxes[row],
                rng.integers(0, 255, (32, 32, 3), dtype=np.uint8), points[n],
            )
            for n, row in enumerate(rows)
        )  # fmt: skip
        write_unit(tmp_path / "shards", video, made, {})
    write_index(tmp_path / "shards", np.unique(hands.video_ids).tolist())
    command = [str(tmp_path / "shards"), "--k", "2", "--sheet", str(tmp_path / "s.png"), "--out"]
    assert mine_hands.main([*command, str(tmp_path / "pairs.npz")]) == mine_hands.main([*command, str(tmp_path / "pairs.json")]) == 0
    shards, pairs = HandShards(tmp_path / "shards"), np.load(tmp_path / "pairs.npz")
    index, distance = mine(shards.keypoints, shards.video_ids, 2)
    np.testing.assert_array_equal(pairs["indices"], index)
    np.testing.assert_array_equal(pairs["distances"], distance)
    assert read_image(tmp_path / "s.png").shape == (8 * 32, 10 * 32, 3)
    published = read_hand_annotations(tmp_path / "pairs.json")
    np.testing.assert_allclose(published.right_hand_keypoints(), shards.keypoints / 32, atol=1e-6)
    np.testing.assert_array_equal(published.positive_rows(), index[:, 0])
    np.testing.assert_array_equal(published.video_ids, shards.video_ids)


def test_one_video_and_a_damaged_folder(tmp_path, capsys):
    keypoints, _ = keypoint_pool(50, videos=5)
    np.savez(tmp_path / "one.npz", keypoints=keypoints, video_ids=np.zeros(50, int))
    assert mine_hands.main([str(tmp_path / "one.npz"), "--out", str(tmp_path / "pairs.npz"), "--k", "60"]) == 0
    assert "0 hands with a neighbour, 50 without (0 of them lack key points)" in capsys.readouterr().out
    assert (np.load(tmp_path / "pairs.npz")["indices"] == -1).all()
    (tmp_path / "shards").mkdir()
    assert mine_hands.main([str(tmp_path / "shards"), "--out", str(tmp_path / "o.npz")]) == 1
    assert "index.parquet is missing" in capsys.readouterr().err


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
