from __future__ import annotations

import json
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from data.synthetic.detection import DetectionScenes, labels, mirrored, random_view, recolour
from data.synthetic.factors import COLOURS, NAMES
from pose_tools.small_detector import LABELS
from pose_tools.small_detector_losses import IGNORE
from pose_tools.views import View

RECORD = {
    "id": "train-000000", "image": "images/000/000000.jpg", "mask": "masks/000/000000.png", "width": 192, "height": 192,
    "hands": [
        {"side": "left", "bbox_xyxy": [20, 100, 68, 148], "visible_fraction": 0.9, "contact": True, "held": 0},
        {"side": "right", "bbox_xyxy": [120, 90, 180, 140], "visible_fraction": 0.05, "contact": False, "held": None},
    ],
    "objects": [
        {"name": "cup", "colour": "red", "bbox_xyxy": [32, 80, 64, 120], "visible_fraction": 1.0, "held_by": ["left"]},
        {"name": "ball", "colour": "blue", "bbox_xyxy": [100, 20, 132, 52], "visible_fraction": 1.0, "held_by": []},
        {"name": "box", "colour": "green", "bbox_xyxy": [4, 4, 36, 28], "visible_fraction": 1.0, "held_by": ["left", "right"]},
    ],
}  # fmt: skip


def ids_of(record: dict) -> np.ndarray:
    ids = np.zeros((192, 192), np.uint8)
    for value, thing in [(1 + (h["side"] == "right"), h) for h in record["hands"]] + [(10 + k, o) for k, o in enumerate(record["objects"])]:
        x1, y1, x2, y2 = thing["bbox_xyxy"]
        ids[y1:y2, x1:x2] = value
    return ids


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for index in range(3):
        record = RECORD | {"image": f"images/000/{index:06d}.jpg", "mask": f"masks/000/{index:06d}.png"}
        record["hands"] = [h | {"joints_3d": [[0, 0, 0]] * 21} for h in record["hands"]]
        for name, picture in ((record["image"], np.full((192, 192, 3), (10, 90, 200), np.uint8)), (record["mask"], ids_of(record))):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            cv2.imwrite(str(tmp_path / name), picture)
        with (tmp_path / "scenes.jsonl").open("a") as file:
            file.write(json.dumps(record) + "\n")
    return tmp_path


def test_labels_say_what_the_record_says(folder):
    scenes = DetectionScenes(folder)
    assert len(scenes) == 3 and len(DetectionScenes(folder, limit=2)) == 2
    sample = scenes.sample(0)
    np.testing.assert_allclose(sample["pixel_values"][:, 0, 0], [200, 90, 10], atol=3)  # RGB
    label = sample["label_map"]
    assert label.shape == (48, 48)
    assert LABELS[label[130 // 4, 40 // 4]] == "left hand" and LABELS[label[110 // 4, 150 // 4]] == "right hand"
    assert LABELS[label[90 // 4, 40 // 4]] == "object held by left" and LABELS[label[30 // 4, 110 // 4]] == "other object"
    assert label[10 // 4, 10 // 4] == IGNORE and LABELS[label[-1, -1]] == "background"
    assert sample["present"].tolist() == [1, -1, 1, 1]  # 5 % of a hand is too little to say
    assert sample["boxes"][2].tolist() == [32, 80, 64, 120]
    assert sample["states"].tolist() == [1, -1, 1, -1]
    cell = (96 // 16) * 12 + 40 // 16
    assert (NAMES[sample["cell_name"][cell]], COLOURS[sample["cell_colour"][cell]]) == ("cup", "red")
    assert sample["cell_box"][cell].tolist() == [32, 80, 64, 120] and sample["cell_score"][cell] > 0.5
    assert sample["cell_name"][-1] == -1 and sample["cell_score"][-1] == 0


def test_mirrored_picture_has_mirrored_labels():
    view = View.identity((192, 192))
    plain = labels(RECORD, ids_of(RECORD), view)
    flipped = labels(mirrored(RECORD), ids_of(mirrored(RECORD)), view)
    swap = np.arange(256)
    swap[[1, 2, 3, 4]] = 2, 1, 4, 3  # left ↔ right hand, held by left ↔ held by right
    np.testing.assert_array_equal(flipped["label_map"], swap[plain["label_map"][:, ::-1]])
    np.testing.assert_array_equal(flipped["present"], plain["present"][[1, 0, 3, 2]])
    np.testing.assert_array_equal(flipped["states"], plain["states"][[1, 0, 3, 2]])
    for i, j in ((0, 1), (1, 0), (2, 3), (3, 2)):
        if plain["present"][i]:
            x1, y1, x2, y2 = plain["boxes"][i]
            np.testing.assert_allclose(flipped["boxes"][j], [192 - x2, y1, 192 - x1, y2])
    for name in ("cell_name", "cell_colour", "cell_score"):
        np.testing.assert_allclose(flipped[name].reshape(12, 12), plain[name].reshape(12, 12)[:, ::-1], atol=1e-6)
    assert mirrored(mirrored(RECORD)) == RECORD
    touching = RECORD | {"objects": [thing | {"touched_by": thing["held_by"]} for thing in RECORD["objects"]]}
    assert [thing["touched_by"] for thing in mirrored(touching)["objects"]] == [["right"], [], ["left", "right"]]


def test_labels_move_with_the_view():
    rng = np.random.default_rng(0)
    for _ in range(5):
        view = random_view(rng, 192)
        moved = labels(RECORD, ids_of(RECORD), view)
        for i in np.flatnonzero(moved["present"][:3] == 1):  # what both hold has no label
            region = moved["label_map"] == (1, 2, 3, 4)[i]
            ys, xs = np.nonzero(region)
            box = np.array([xs.min(), ys.min(), xs.max() + 1, ys.max() + 1]) * 4
            covered = i == 0  # the held object lies on the hand's upper edge
            assert (np.abs(box - moved["boxes"][i])[[0, 2, 3] if covered else slice(None)] <= 4.01).all()


def test_an_object_teaches_its_colour_or_when_repainted_its_name():
    rng, ids = np.random.default_rng(0), ids_of(RECORD)
    image = rng.integers(60, 200, (192, 192, 3), dtype=np.uint8)
    painted = set()
    for _ in range(8):
        new, record = recolour(rng, image, ids, RECORD)
        assert np.array_equal(new[ids < 10], image[ids < 10])
        sample = labels(record, ids, View.identity((192, 192)))
        taught = {(k, c) for k, c in zip(sample["cell_name"].tolist(), sample["cell_colour"].tolist(), strict=True)} - {(-1, -1)}
        expected = set()
        for k, thing in enumerate(RECORD["objects"]):
            same = np.array_equal(new[ids == 10 + k], image[ids == 10 + k])
            expected.add((-1, COLOURS.index(thing["colour"])) if same else (NAMES.index(thing["name"]), -1))
            painted |= set() if same else {k}
        assert taught == expected
    assert painted == {0, 1, 2} and RECORD["objects"][0]["colour"] == "red"


def test_what_leaves_the_picture_is_not_there():
    away = View(np.array([[1.0, 0, -150], [0, 1, 0]]), (192, 192), (192, 192))
    sample = labels(RECORD, ids_of(RECORD), away)
    assert sample["present"].tolist() == [0, -1, 0, 0]


def test_augmentation_is_a_function_of_seed_index_and_epoch(folder):
    scenes = DetectionScenes(folder, augment=True, seed=1)
    a, b, c = scenes.sample(1, epoch=2), DetectionScenes(folder, augment=True, seed=1).sample(1, epoch=2), scenes.sample(1, epoch=3)
    assert all(np.array_equal(a[k], b[k]) for k in a)
    assert not np.array_equal(a["pixel_values"], c["pixel_values"])
    batch = scenes.collate([a, c])
    assert batch["pixel_values"].shape == (2, 3, 192, 192) and batch["pixel_values"].dtype == torch.uint8
    assert batch["cell_name"].dtype == torch.int64


def test_a_missing_picture_is_named(folder):
    (folder / "masks/000/000001.png").unlink()
    with pytest.raises(ValueError, match="000001.png.*make_synthetic"):
        DetectionScenes(folder).sample(1)
