"""Folders of scenes and their questions: stopped = uninterrupted, one worker = two, and every answer is in the record."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from data.synthetic import factors, journal, questions, scenes
from pose_tools.files import FolderBusyError, exclusive
from scripts import make_synthetic

SIZE = 96


def contents(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file() and p.name != ".lock"}


def make(folder: Path, count: int, *, split="train", seed=1, workers=1) -> Path:
    list(scenes.make_scenes(folder, scenes.Settings(split, seed, SIZE), count, workers))
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    """24 scenes written in one go."""
    return make(tmp_path_factory.mktemp("scenes") / "train", 24)


def test_stopped_and_continued_is_uninterrupted(whole, tmp_path):
    folder = tmp_path / "train"
    steps = scenes.make_scenes(folder, scenes.Settings("train", 1, SIZE), 24, 1)
    assert [next(steps) for _ in range(6)] == list(range(6))
    steps.close()
    there = json.loads((folder / "manifest.json").read_text())
    assert (there["count"], there["complete"]) == (5, False)
    # as if the power had gone in the middle of a line, its pictures already written
    with (folder / "scenes.jsonl").open("ab") as file:
        file.write((whole / "scenes.jsonl").read_bytes().split(b"\n")[5][:40])
    assert len(scenes.read_scenes(folder)) == 5
    make(folder, 24)
    assert contents(folder) == contents(whole)


def test_a_folder_of_any_length_begins_the_same(whole, tmp_path):
    folder = make(tmp_path / "train", 7)
    short, long = contents(folder), contents(whole)
    assert all(long[name] == short[name] for name in short if name not in ("manifest.json", "scenes.jsonl"))
    assert long["scenes.jsonl"].startswith(short["scenes.jsonl"])
    # asked for fewer than there are: nothing changes
    make(folder, 3)
    assert contents(folder) == short


@pytest.mark.two_process
def test_one_worker_is_two(whole, tmp_path):
    assert contents(make(tmp_path / "train", 24, workers=2)) == contents(whole)


def test_other_settings_are_refused(whole):
    with pytest.raises(journal.FolderError, match=r"seed 1 \(asked for 2\).*choose another --out"):
        make(whole, 24, seed=2)
    with pytest.raises(journal.FolderError, match="split"):
        make(whole, 24, split="val")


def test_two_writers_of_one_folder(whole):
    with exclusive(whole), pytest.raises(FolderBusyError, match="another process is writing"):
        make(whole, 30)


def test_broken_and_missing_journals(whole, tmp_path):
    with pytest.raises(journal.FolderError, match="make_synthetic.py"):
        scenes.read_scenes(tmp_path / "nowhere")
    folder = tmp_path / "train"
    shutil.copytree(whole, folder)
    lines = (folder / "scenes.jsonl").read_bytes().split(b"\n")
    (folder / "scenes.jsonl").write_bytes(b"\n".join([lines[0], lines[1][:50], *lines[2:]]))
    with pytest.raises(journal.FolderError, match="line 2"):
        scenes.read_scenes(folder)
    for content in ('{"kind": "st', "[]"):
        (folder / "manifest.json").write_text(content)
        with pytest.raises(journal.FolderError, match=r"manifest\.json: not a manifest.*delete the folder"):
            make(folder, 24)
    (folder / "manifest.json").unlink()
    with pytest.raises(journal.FolderError, match="delete the folder"):
        make(folder, 24)


def test_masks_are_read_back(whole):
    for record in scenes.read_scenes(whole)[:4]:
        mask = scenes.read_mask(record, whole)
        for k, thing in enumerate(record["objects"]):
            rows, cols = np.nonzero(mask == 10 + k)
            assert thing["bbox_xyxy"] == [cols.min(), rows.min(), cols.max() + 1, rows.max() + 1]
    with pytest.raises(journal.FolderError, match="missing"):
        scenes.read_mask({"mask": "masks/none.png"}, whole)


def test_the_manifest_covers_every_byte(whole, tmp_path):
    import hashlib

    manifest = json.loads((whole / "manifest.json").read_text())
    assert manifest["records_sha256"] == hashlib.sha256((whole / "scenes.jsonl").read_bytes()).hexdigest()
    assert manifest["factors_sha256"] == factors.factors_hash() and manifest["complete"]
    for record in scenes.read_scenes(whole):
        assert (
            record["sha256"] == hashlib.sha256((whole / record["image"]).read_bytes() + (whole / record["mask"]).read_bytes()).hexdigest()
        )


@pytest.mark.parametrize("split", factors.SPLITS)
def test_what_is_on_disk_has_the_factors_of_its_split_only(whole, tmp_path, split):
    """The leakage test on written records: with the tables disjoint (see test_synthetic_world), no split has a factor of another."""
    folder = whole if split == "train" else make(tmp_path / split, 4, split=split)
    for record in scenes.read_scenes(folder):
        assert record["background"] % 10 in factors.TENTHS[split] and record["camera"]["bin"] in factors.camera_bins(split)
        for thing in record["objects"]:
            assert (thing["name"], thing["colour"]) in factors.pairs(split)
            assert {thing["family"], thing["shade"]} <= set(factors.TENTHS[split])


def test_command(tmp_path, capsys):
    command = ["stills", "--out", str(tmp_path), "--count", "2", "--seed", "1", "--split", "test", "--size", str(SIZE), "--workers", "1"]
    assert make_synthetic.main(command) == 0
    assert len(scenes.read_scenes(tmp_path / "test")) == 2
    before = contents(tmp_path)
    assert make_synthetic.main(command) == 0 and contents(tmp_path) == before
    command[6] = "9"
    assert make_synthetic.main(command) == 1
    assert "belongs to other pictures: seed 1 (asked for 9)" in capsys.readouterr().err
    (tmp_path / "file").write_text("")
    assert make_synthetic.main(["stills", "--out", str(tmp_path / "file"), "--count", "1", "--workers", "1"]) == 1
    for wrong in (["--count", "0"], ["--count", "1", "--size", "8"], ["--count", "1", "--seed", "-1"]):
        with pytest.raises(SystemExit):
            make_synthetic.main(["stills", "--out", str(tmp_path), *wrong])
        assert re.search(rf"{wrong[-2]} is {wrong[-1]}, expected", capsys.readouterr().err)


# ---- questions


@pytest.fixture(scope="module")
def asked(whole):
    """(record, samples) of every scene."""
    return [(r, questions.questions(r, whole, split="train", seed=0)) for r in scenes.read_scenes(whole)]


def test_answers_are_what_the_record_says(asked):
    for record, samples in asked:
        hands = {h["side"]: h for h in record["hands"]}
        for sample in samples:
            targets, kind, side = sample.targets, sample.targets["kind"], sample.targets["side"]
            answer = sample.messages[1]["content"]
            assert [p["bbox_xyxy"] for p in answer if p["type"] == "box"] == targets["boxes"]
            if not targets["boxes"] and targets["text"] is None:
                assert answer == [{"type": "none"}]
            if kind.startswith("hand_"):
                assert targets["boxes"] == ([hands[side]["bbox_xyxy"]] if side in hands else [])
            elif kind == "hands":
                assert targets["labels"] == [f"{s} hand" for s in ("left", "right") if s in hands]
            elif kind.startswith("held_l") or kind == "held_right":
                held = hands[side]["held"] if side in hands else None
                assert targets["boxes"] == ([] if held is None else [record["objects"][held]["bbox_xyxy"]])
            elif kind == "held_name":
                held = hands[side]["held"] if side in hands else None
                assert targets["text"] == (None if held is None else questions.thing_name(record["objects"][held]))
            elif kind == "contact":
                assert targets["text"] == ("yes" if hands[side]["contact"] else "no")


def test_named_things_are_unmistakable(asked):
    for record, samples in asked:
        for sample in samples:
            if sample.targets["kind"] in ("object", "holding_hand"):
                question = sample.messages[0]["content"][1]["text"]
                colour, name = re.search(rf"({'|'.join(factors.COLOURS)}) ({'|'.join(factors.NAMES)})", question).groups()
                assert (name, colour) in factors.pairs("train")
                there = [o for o in record["objects"] if (o["name"], o["colour"]) == (name, colour)]
                if sample.targets["kind"] == "object":
                    assert [o["bbox_xyxy"] for o in there] == sample.targets["boxes"]
                else:
                    words = {(): None, ("left",): "left hand", ("right",): "right hand", ("left", "right"): "both hands"}
                    assert len(there) == 1 and sample.targets["text"] == words[tuple(there[0]["held_by"])]


def test_questions_depend_only_on_seed_record_and_kind(whole, asked):
    for record, samples in asked[:6]:
        again = questions.questions(record, whole, split="train", seed=0, kinds=["object", "hand_left"])
        by_kind = {s.targets["kind"]: s for s in samples}
        assert [s.messages for s in again] == [by_kind[s.targets["kind"]].messages for s in again]
    one, other = (
        " ".join(s.messages[0]["content"][1]["text"] for r, _ in asked for s in questions.questions(r, whole, split="train", seed=n))
        for n in (0, 1)
    )
    assert one != other
    with pytest.raises(ValueError, match="the kinds are hand_left"):
        questions.questions(asked[0][0], whole, split="train", seed=0, kinds=["colour"])


def test_wordings_are_held_out():
    for kind in questions.KINDS:
        train, test = set(questions.phrasings(kind, "train")), set(questions.phrasings(kind, "test"))
        assert len(train) >= 6 and test and not train & test and questions.phrasings(kind, "val") == questions.phrasings(kind, "test")


def test_every_kind_and_answer_occurs(tmp_path):
    """Over the plans of many scenes each kind is asked, and each has present and absent answers in a sound proportion."""
    counts: Counter[tuple[str, bool]] = Counter()
    texts: Counter[str] = Counter()
    for index in range(400):
        record = _record_of_plan(index)
        for sample in questions.questions(record, tmp_path, split="test", seed=0):
            counts[sample.targets["kind"], sample.messages[1]["content"] == [{"type": "none"}]] += 1
            texts[str(sample.targets["text"])] += 1
    for kind in questions.KINDS:
        present, absent = counts[kind, False], counts[kind, True]
        assert present > 50 and (kind == "contact" or 0.03 < absent / (present + absent) < 0.7), (kind, present, absent)
    assert texts["both hands"] and texts["left hand"] and texts["right hand"] and texts["yes"] and texts["no"]


def _record_of_plan(index: int) -> dict:
    """A record with the plan's things and made-up boxes: what questions look at, without drawing."""
    from data.synthetic import world

    plan = world.draw_plan(world.picture_rng(0, "test", index, 0), "test")
    hands, objects = [], []
    for side, thing in plan.holds.items():
        objects.append({"name": thing.name, "colour": thing.colour, "held_by": ["left", "right"] if side == "both" else [side]})
    objects += [{"name": t.name, "colour": t.colour, "held_by": []} for t in (*plan.touches.values(), *plan.free)]
    for side in plan.hands:
        held = next((k for k, o in enumerate(objects) if side in o["held_by"]), None)
        hands.append({"side": side, "held": held, "contact": held is not None or side in plan.touches, "bbox_xyxy": [1.0, 2.0, 30.0, 40.0]})
    objects = [{**o, "bbox_xyxy": [float(k), 0.0, k + 5.0, 5.0]} for k, o in enumerate(objects)]
    return {"id": f"test-{index:06d}", "image": f"images/{index}.jpg", "hands": hands, "objects": objects}


@pytest.mark.two_process
@pytest.mark.slow
def test_a_killed_run_leaves_no_process_behind(tmp_path, root):
    command = [
        sys.executable,
        str(root / "scripts" / "make_synthetic.py"),
        "stills",
        "--out",
        str(tmp_path),
        "--count",
        "5000",
        "--workers",
        "2",
    ]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)
    journal_file = tmp_path / "train" / "scenes.jsonl"
    try:
        wait_for(lambda: (journal_file.is_file() and journal_file.stat().st_size) or process.poll() is not None)
        process.send_signal(signal.SIGTERM)
        assert process.wait(timeout=60) == 143
    finally:
        process.kill()
    count = json.loads((tmp_path / "train" / "manifest.json").read_text())["count"]
    assert count == len(scenes.read_scenes(tmp_path / "train")) > 0
    with exclusive(tmp_path / "train"):
        pass
    assert wait_for(lambda: not subprocess.run(["ps", "-o", "pid=", "-g", str(process.pid)], capture_output=True, text=True).stdout.split())


def wait_for(condition, seconds: float = 60) -> bool:
    """Whether a condition comes true in time."""
    end = time.monotonic() + seconds
    while not (there := condition()) and time.monotonic() < end:
        time.sleep(0.05)
    return bool(there)
