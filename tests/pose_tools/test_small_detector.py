from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pose_tools import small_detector_losses as losses_of
from pose_tools.detect import detection_tokens
from pose_tools.small_detector import (
    INSTANCES,
    LABELS,
    SmallDetector,
    SmallDetectorConfig,
    SmallDetectorError,
    average_box,
    cell_boxes,
    cell_centres,
    instances,
    label_logits,
    load_small_detector,
    named_object,
    presence_logits,
)
from pose_tools.small_detector_losses import box_overlap, centre_weights
from pose_tools.tool_protocol import BackendMissing

SIZES = {"image_size": 96, "embedding_size": 8, "hidden_sizes": (8, 16, 32), "depths": (1, 1, 1)}
TINY = SmallDetectorConfig(("cup", "ball"), ("red", "blue", "green"), **SIZES)
FIELDS = ("bbox_xyxy", "side", "score", "object_bbox", "object_score")


def tiny(seed: int = 0) -> SmallDetector:
    torch.manual_seed(seed)
    model = SmallDetector(TINY)
    torch.nn.init.constant_(model.heads["instance_cell"].bias, -1.0)  # says something of every picture
    return model.eval()


def pictures(*sizes: tuple[int, int]) -> list[np.ndarray]:
    rng = np.random.default_rng(0)
    return [rng.integers(0, 256, (height, width, 3), dtype=np.uint8) for width, height in sizes]


def perfect_maps(boxes: torch.Tensor, present: torch.Tensor) -> dict[str, torch.Tensor]:
    """What a perfect network would say: boxes (B, 4, 4) grid pixels, present (B, 4)."""
    cells = TINY.cells
    weights = centre_weights(boxes, cells) * present.unsqueeze(-1)
    centres = cell_centres(cells)
    distances = torch.cat([centres - boxes.unsqueeze(2)[..., :2], boxes.unsqueeze(2)[..., 2:] - centres], -1) / (TINY.image_size / 3)
    maps = {name: torch.zeros(len(boxes), channels, cells, cells) for name, channels in TINY.heads().items()}
    maps["instance_cell"] = (weights.clamp(min=1e-9).log() + 6).reshape(len(boxes), 4, cells, cells)
    maps["instance_box"] = distances.transpose(2, 3).reshape(len(boxes), 16, cells, cells)
    return maps


def test_batch_equals_single_at_any_size():
    model = tiny()
    images = pictures((96, 96), (200, 50), (31, 97), (640, 480), (1, 1))
    together = model.detect_batch(images)
    assert [len(hands) for hands in together] == [2] * 5
    for hands, image in zip(together, images, strict=True):
        for a, b in zip(hands, model.detect(image), strict=True):
            assert a.side == b.side and (a.object_bbox is None) == (b.object_bbox is None)
            for name in ("bbox_xyxy", "score", "object_bbox", "object_score"):
                if getattr(a, name) is not None:
                    assert getattr(a, name) == pytest.approx(getattr(b, name), rel=1e-4, abs=1e-3), name
            x1, y1, x2, y2 = a.bbox_xyxy
            assert 0 <= x1 <= image.shape[1] and 0 <= y2 <= image.shape[0] and x2 <= image.shape[1] and y1 >= 0
    assert model.detect_batch([]) == []


def test_boxes_come_back_in_original_pixels(monkeypatch):
    model = tiny()
    boxes = torch.tensor([[[12.0, 30.0, 44.0, 60.0], [50.0, 30.0, 84.0, 62.0], [20.0, 40.0, 40.0, 58.0], [60.0, 60.0, 70.0, 66.0]]])
    monkeypatch.setattr(SmallDetector, "forward", lambda self, pixels: perfect_maps(boxes, torch.tensor([[1, 1, 1, 0]])))
    left, right = model.detect(np.zeros((240, 480, 3), np.uint8))  # letterboxed: scale 1/5, 24 grid pixels above
    assert left.bbox_xyxy == pytest.approx((60, 30, 220, 180), abs=0.1) and left.side == "left" and left.score > 0.9
    assert right.bbox_xyxy == pytest.approx((250, 30, 420, 190), abs=0.1) and right.side == "right"
    assert left.object_bbox == pytest.approx((100, 80, 200, 170), abs=0.1) and left.object_score > 0.9
    assert right.object_bbox is None and right.object_score is None
    tokens = detection_tokens([left, right])
    assert tokens.shape == (2, 11) and np.isnan(tokens[1, 6:10]).all() and tokens[1, 10] == 0


def test_decoding_inverts_the_targets():
    generator = torch.Generator().manual_seed(2)
    corner = torch.rand(50, 4, 2, generator=generator) * 50
    boxes = torch.cat([corner, corner + 6 + torch.rand(50, 4, 2, generator=generator) * 38], -1)
    present = torch.randint(0, 2, (50, 4), generator=generator)
    found, score = instances(perfect_maps(boxes, present), TINY)
    assert torch.equal(score > 0.5, present == 1)
    torch.testing.assert_close(found[present == 1], boxes[present == 1], atol=1e-2, rtol=0)


def test_average_box_stays_with_the_best_cell():
    logits = torch.full((36,), -20.0)
    logits[[7, 8, 34]] = torch.tensor([3.0, 3.0, 2.9])  # 34 is another place
    boxes = torch.arange(36.0).unsqueeze(-1).expand(36, 4)
    torch.testing.assert_close(average_box(logits, boxes), torch.full((4,), 7.5))


def test_every_box_has_a_cell_inside():
    generator = torch.Generator().manual_seed(0)
    corner = torch.rand(200, 2, generator=generator) * 90
    boxes = torch.cat([corner, corner + torch.rand(200, 2, generator=generator) * 6], -1)
    assert (centre_weights(boxes, 6).amax(-1) > 0).all()


def test_named_object_needs_name_and_colour_in_one_place():
    cells = TINY.cells
    maps = {name: torch.zeros(1, channels, cells, cells) for name, channels in TINY.heads().items()}
    maps["object_score"] += -8
    for row, column, name, colour in ((1, 1, 0, 0), (1, 4, 0, 1), (4, 1, 1, 0)):
        maps["object_score"][0, 0, row, column] = 8
        maps["name"][0, name, row, column] = maps["colour"][0, colour, row, column] = 12
    maps = {k: v.expand(4, -1, -1, -1) for k, v in maps.items()}
    boxes, scores = named_object(maps, torch.tensor([0, 0, 1, 1]), torch.tensor([0, 1, 0, 1]))
    centres = (boxes[:, :2] + boxes[:, 2:]) / 2
    torch.testing.assert_close(centres[:3], torch.tensor([[24.0, 24.0], [72.0, 24.0], [24.0, 72.0]]), atol=0.5, rtol=0)
    assert (scores[:3] > 0.9).all() and scores[3] < 0.1


def test_box_overlap_by_hand():
    a = torch.tensor([[0.0, 0.0, 4.0, 4.0], [0.0, 0.0, 2.0, 2.0], [3.0, 3.0, 1.0, 1.0]])
    b = torch.tensor([[2.0, 0.0, 6.0, 4.0], [4.0, 0.0, 6.0, 2.0], [0.0, 0.0, 2.0, 2.0]])
    iou, giou = box_overlap(a, b)
    torch.testing.assert_close(iou, torch.tensor([1 / 3, 0.0, 0.0]))  # a box turned inside out has no area
    torch.testing.assert_close(giou[:2], torch.tensor([1 / 3, -1 / 3]))


def test_saved_equals_reloaded(tmp_path):
    model = tiny(3)
    model.save(tmp_path)
    again = load_small_detector(tmp_path)
    assert again.config == model.config and not again.training
    again_twice = load_small_detector(str(tmp_path))
    assert again_twice is again
    image = pictures((120, 80))[0]
    model.load_state_dict(again.state_dict())
    for a, b in zip(model.detect(image), again.detect(image), strict=True):
        assert all(getattr(a, name) == getattr(b, name) for name in FIELDS)
    for name, value in tiny(3).state_dict().items():
        torch.testing.assert_close(again.state_dict()[name], value, rtol=2e-3, atol=1e-5, check_dtype=False)


def test_a_folder_written_again_is_read_again(tmp_path):
    tiny(3).save(tmp_path)
    first = load_small_detector(tmp_path)
    tiny(4).save(tmp_path)
    second = load_small_detector(tmp_path)
    image = pictures((120, 80))[0]
    assert first.detect(image)[0].bbox_xyxy != second.detect(image)[0].bbox_xyxy
    torch.testing.assert_close(second.state_dict()["heads.name.weight"], tiny(4).state_dict()["heads.name.weight"], rtol=2e-3, atol=1e-5)


def test_a_folder_that_does_not_fit_is_refused_by_name(tmp_path):
    with pytest.raises(BackendMissing, match="config.json is missing.*train_detector"):
        load_small_detector(tmp_path / "nothing")
    tiny().save(tmp_path / "extra")
    path = tmp_path / "extra/model.safetensors"
    save_file(load_file(path) | {"heads.taste.weight": torch.zeros(1)}, path)
    with pytest.raises(SmallDetectorError, match="'heads.taste.weight'"):
        load_small_detector(tmp_path / "extra")
    tiny().save(tmp_path / "short")
    config = json.loads((tmp_path / "short/config.json").read_text())
    (tmp_path / "short/config.json").write_text(json.dumps(config | {"whiskers": 3}))
    with pytest.raises(SmallDetectorError, match="whiskers"):
        load_small_detector(tmp_path / "short")
    tiny().save(tmp_path / "cut")
    path = tmp_path / "cut/model.safetensors"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(SmallDetectorError, match=r"cut/model\.safetensors: not a whole file"):
        load_small_detector(tmp_path / "cut")
    with pytest.raises(ValueError, match="RGB uint8"):
        tiny().detect(np.zeros((10, 10), np.uint8))


def batch(count: int = 8) -> dict[str, torch.Tensor]:
    """Left hands are dark blocks on the left, right hands light ones on the right; a red cup or a blue ball in some right hands."""
    rng = np.random.default_rng(0)
    cells, size = TINY.cells, TINY.image_size
    fine = size // 4
    out = {
        "pixel_values": torch.full((count, 3, size, size), 120, dtype=torch.uint8),
        "label_map": torch.zeros(count, fine, fine, dtype=torch.uint8),
        "boxes": torch.zeros(count, 4, 4),
        "present": torch.zeros(count, 4, dtype=torch.int8),
        "states": torch.full((count, 4), -1, dtype=torch.int8),
        "cell_score": torch.zeros(count, cells**2),
        "cell_box": torch.zeros(count, cells**2, 4),
        "cell_name": torch.full((count, cells**2), -1),
        "cell_colour": torch.full((count, cells**2), -1),
    }
    for n in range(count):
        for i, (x, grey) in enumerate(((4, 30), (52, 220))):
            if n % 4 == 3 - i:
                continue
            x, y = x + int(rng.integers(0, 10)), int(rng.integers(0, 60))
            box = torch.tensor([x, y, x + 30, y + 32])
            paint(out, n, i, box, (grey, grey, grey))
            out["states"][n, i] = out["states"][n, 2 + i] = int(i == 1 and n % 2)
            if i == 1 and n % 2:
                kind = n % 4 // 2
                held = box + torch.tensor([4, 6, -8, -10])
                paint(out, n, 3, held, ((200, 30, 30), (40, 40, 200))[kind])
                weights = centre_weights(held.float(), cells)
                inside = weights > 0
                out["cell_score"][n], out["cell_box"][n] = weights, held.float()
                out["cell_name"][n, inside], out["cell_colour"][n, inside] = kind, kind
    return out


def paint(out: dict[str, torch.Tensor], n: int, i: int, box: torch.Tensor, rgb: tuple[int, int, int]) -> None:
    x1, y1, x2, y2 = box.tolist()
    out["pixel_values"][n, :, y1:y2, x1:x2] = torch.tensor(rgb, dtype=torch.uint8)[:, None, None]
    out["label_map"][n, y1 // 4 : y2 // 4, x1 // 4 : x2 // 4] = LABELS.index(INSTANCES[i])
    out["boxes"][n, i], out["present"][n, i] = box.float(), 1


def test_a_tiny_network_learns_every_answer():
    data = batch()
    torch.manual_seed(0)
    model = SmallDetector(TINY).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=4e-3)
    weights, counts = losses_of.WEIGHTS, losses_of.counts(data)
    for _ in range(120):
        sums = losses_of.losses(model, data)
        optimizer.zero_grad()
        sum(weights[k] * v / counts[k] for k, v in sums.items()).backward()
        optimizer.step()
    assert sums.keys() == counts.keys() == weights.keys()
    with torch.no_grad():
        maps = model(losses_of.normalise(data["pixel_values"]))  # batch statistics: the running ones need longer
    boxes, score = instances(maps, TINY)
    there = data["present"] == 1
    assert torch.equal(score > 0.5, there)
    overlap = box_overlap(boxes, data["boxes"])[0][there]
    assert overlap.min() > 0.5 and overlap.mean() > 0.75
    known = data["cell_score"] > 0.6
    assert (maps["name"].flatten(2).argmax(1) == data["cell_name"])[known].float().mean() > 0.9
    assert (maps["colour"].flatten(2).argmax(1) == data["cell_colour"])[known].float().mean() > 0.9
    assert (label_logits(maps["label_map"]).argmax(1) == data["label_map"]).float().mean() > 0.85
    hand = maps["instance_cell"].flatten(2)[:, :2].argmax(-1, keepdim=True)
    holding = maps["holding"].flatten(2).gather(2, hand)[..., 0] > 0
    asked = data["states"][:, 2:] >= 0
    assert torch.equal(holding[asked], data["states"][:, 2:][asked] == 1)


def test_what_is_not_known_teaches_nothing():
    model, data = tiny(), batch()
    before = losses_of.losses(model, data)
    unknown = {k: v.clone() for k, v in data.items()}
    unknown["present"][0, :], unknown["states"][0], unknown["label_map"][0] = -1, -1, losses_of.IGNORE
    unknown["cell_score"][0], unknown["cell_name"][0], unknown["cell_colour"][0] = -1, -1, -1
    rest = {k: v[1:] for k, v in data.items()}
    for a, b in ((losses_of.losses(model, unknown), losses_of.losses(model, rest)), (losses_of.counts(unknown), losses_of.counts(rest))):
        for name in a:
            torch.testing.assert_close(a[name], b[name], rtol=1e-4, atol=1e-4)
    assert before["label_map"] > losses_of.losses(model, unknown)["label_map"]


def test_presence_is_the_cells_against_nowhere():
    cells = torch.randn(2, 4, 6, 6)
    with_none = torch.cat([cells.flatten(2), torch.zeros(2, 4, 1)], -1).softmax(-1)
    torch.testing.assert_close(torch.sigmoid(presence_logits(cells)), 1 - with_none[..., -1])


def test_cell_boxes_are_linear_in_the_head():
    maps = torch.zeros(1, 8, 6, 6)
    maps[0, 4:, 2, 3] = torch.tensor([0.5, 0.25, 1.0, 0.75])  # thirds of 96: 16, 8, 32, 24
    boxes = cell_boxes(maps)
    assert boxes.shape == (1, 2, 36, 4)
    assert boxes[0, 1, 2 * 6 + 3].tolist() == [56 - 16, 40 - 8, 56 + 32, 40 + 24]
    assert boxes[0, 0, 0].tolist() == [8, 8, 8, 8]
