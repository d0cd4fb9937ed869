"""Crops and their labels, the checks before training, the cache, the task, and the script from folder to shipped weights."""

from __future__ import annotations

import json
import logging
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from data.synthetic import hands
from data.synthetic.freihand_writer import write_freihand
from pose_tools.body_models import Mano, standin_hand_arrays
from pose_tools.geometry import project
from pose_tools.mano import load_regressor, sample_cache
from pose_tools.mano.crops import Augmentation, CropError, HandCrops, assumed_intrinsics, crop_camera, hand_view
from pose_tools.mano.label_checks import LabelError, check_labels
from pose_tools.mano.losses import RECIPE, HandLoss
from pose_tools.mano.networks import HandRegressor, RegressorConfig
from pose_tools.mano.sample_cache import SampleCache, SampleCacheError
from pose_tools.mano.training_task import RegressionTask, label_sheet, overfit, predict, score
from pose_tools.user_error import UserError
from scripts import train_mano
from tests.pose_tools.mano.posed import RESNET, mirrored, regressor, sample

STRONG = Augmentation(scale=0.4, shift=0.2, rotation=180.0, rotation_share=1.0)


@settings(max_examples=40, deadline=None)
@given(seed=st.integers(0, 10_000), epoch=st.integers(0, 50), side=st.sampled_from(["left", "right"]))
def test_every_label_stays_with_its_pixels(seed, epoch, side):
    """Any turn, scale and shift: projected 3-D joints are the 2-D joints, and the turned parameters give the turned joints."""
    hand = sample(seed, side)
    crops = HandCrops([hand], 96, augmentation=STRONG, seed=seed)
    found = {name: torch.from_numpy(value)[None] for name, value in crops.sample(0, epoch).items()}
    assert (project(found["joints_3d"].double(), found["projection"].double()) - found["joints_2d"]).abs().max() * 96 < 0.5
    posed = hands.mano("right")(found["rotations"][:, 0], found["rotations"][:, 1:], found["betas"], pose_format="rotation_matrix")
    for ours, label in ((posed.joints, "joints_3d"), (posed.vertices, "vertices")):
        difference = (ours - posed.joints[:, :1]) - (found[label] - found["joints_3d"][:, :1])
        assert difference.abs().max() < 2e-5, label
    assert found["joints_3d"][..., 2].min() > 0


def test_the_crops_pixels_are_where_its_joints_are():
    """White dots on the joints of a picture are at the joints of the crop."""
    hand = sample(5)
    picture = np.zeros((640, 800, 3), np.uint8)
    camera = np.diag([4, 4, 1]) @ hand.intrinsics
    scaled = replace(hand, image=picture, bbox_xyxy=hand.bbox_xyxy * 4, joints_2d=hand.joints_2d * 4, intrinsics=camera)
    for x, y in (scaled.joints_2d - 0.5).round().astype(int):
        picture[max(0, y - 3) : y + 4, max(0, x - 3) : x + 4] = 255
    for side, one in (("right", scaled), ("left", mirrored(scaled))):
        assert one.side == side
        found = HandCrops([one], 128, augmentation=replace(STRONG, colour=0.0, erase=0.0), seed=3).sample(0, 2)
        inside = found["joints_2d"][(np.abs(found["joints_2d"]) < 0.45).all(1)]
        x, y = ((inside + 0.5) * 128).astype(int).T
        assert len(inside) > 5 and found["pixels"][:, y, x].min() > 100


def test_a_left_hand_is_the_mirrored_right_hand():
    hand = sample(7)
    one, other = (HandCrops([h], 64).sample(0) for h in (hand, mirrored(hand)))
    assert np.abs(one["pixels"].astype(int) - other["pixels"]).max() <= 1  # OpenCV's weights are whole numbers
    for name in one:
        if name != "pixels":
            np.testing.assert_allclose(one[name], other[name], atol=2e-5, err_msg=name)


def test_samples_are_a_function_of_seed_index_and_epoch():
    many = [sample(i) for i in range(3)]
    crops, again = (HandCrops(many, 32, augmentation=Augmentation(), seed=4) for _ in range(2))
    again.sample(0, 0)
    for name, value in crops.sample(2, 5).items():
        assert np.array_equal(value, again.sample(2, 5)[name])
    assert not np.array_equal(crops.sample(2, 5)["pixels"], crops.sample(2, 6)["pixels"])


def test_the_plain_crops_camera_looks_at_the_boxs_middle():
    hand = sample(1)
    view = hand_view(hand.bbox_xyxy, 64, scale=1.3, mirror=False)
    projection, turn = crop_camera(view, hand.intrinsics, False)
    np.testing.assert_allclose(project(np.array([[0.0, 0, 1]]), projection), [[0, 0]], atol=1e-9)
    np.testing.assert_allclose(turn @ turn.T, np.eye(3), atol=1e-9)
    assert np.linalg.det(turn) == pytest.approx(1)
    assert np.linalg.det(crop_camera(view, hand.intrinsics, True)[1]) == pytest.approx(-1)
    assert assumed_intrinsics((640, 480), 90.0)[0, 0] == pytest.approx(320)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"joints_3d": np.ones((20, 3))}, r"joints_3d has shape \(20, 3\)"),
        ({"joints_3d": np.random.default_rng(0).normal(0, 80, (21, 3))}, "millimetres"),
        ({"joints_2d": np.full((21, 2), np.nan)}, "not finite"),
        ({"bbox_xyxy": np.array([5.0, 5, 5, 5])}, "x1 < x2"),
        ({"bbox_xyxy": np.array([np.nan, 5, 9, 9])}, "finite"),
    ],
)
def test_a_bad_sample_is_named(change, message):
    crops = HandCrops([sample(0), replace(sample(1), **change)], 32)
    with pytest.raises(CropError, match=rf"sample 1 \(.*'seed': 1.*{message}"):
        crops.sample(1)


def test_what_a_sample_lacks_is_masked():
    bare = replace(sample(0), joints_3d=None, pose=None, vertices=None, intrinsics=None)
    found = HandCrops([bare], 32).sample(0)
    assert not found["has_joints_3d"].any() and found["has_pose"] == 0 and found["has_betas"] == 0 and "vertices" not in found
    assert found["has_joints_2d"].all() and all(np.isfinite(value).all() for value in found.values())
    tight = replace(sample(0), bbox_xyxy=np.array([*sample(0).joints_2d[4], *(sample(0).joints_2d[4] + 6)]))
    hidden = HandCrops([tight], 32).sample(0)["has_joints_2d"]
    assert 0 < hidden.sum() < 21, "joints outside the crop do not count"


def test_labels_that_contradict_each_other_are_refused():
    right = [sample(i) for i in range(6)]
    report = check_labels(right, hands.mano("right"))
    assert report.posed_mm < 0.01 and report.projected_px < 1e-6 and report.inside is None
    assert str(report).startswith(f"{report.samples} checked, posed 0.000 mm off") and "None" not in str(report)
    assert check_labels([mirrored(hand) for hand in right], hands.mano("right")).posed_mm < 0.01
    arrays = dict(standin_hand_arrays())
    arrays["shapedirs"] = np.asarray(arrays["shapedirs"]) * 3
    with pytest.raises(LabelError, match="mm between the posed hand model"):
        check_labels(right, Mano.from_arrays(arrays, "right"))
    shuffled = [replace(hand, joints_2d=other.joints_2d) for hand, other in zip(right, right[1:] + right[:1], strict=True)]
    with pytest.raises(LabelError, match=r"px between .*worst is sample \d+ \({'seed'"):
        check_labels(shuffled, hands.mano("right"))
    mask = np.zeros(right[0].image.shape[:2], bool)
    with pytest.raises(LabelError, match="only 0% of the joints"):
        check_labels([replace(hand, mask=mask) for hand in right], hands.mano("right"))
    assert check_labels([replace(hand, mask=~mask) for hand in right], hands.mano("right")).inside == 1


def test_cached_equals_uncached(tmp_path):
    many = [sample(0), sample(1, "left"), replace(sample(2), pose=None, joints_3d=None, intrinsics=None)]
    rows = map(partial(sample_cache.row, many, 96, 1.9), range(3))
    sample_cache.build(rows, tmp_path, count=3, size=96, margin=1.9, key="three")
    cache = SampleCache(tmp_path, "three")
    plain, small = HandCrops(many, 64), HandCrops(cache, 64)
    for i in range(3):
        one, other = plain.sample(i), small.sample(i)
        assumed = {"projection"} if many[i].intrinsics is None else set()  # a camera of the picture at hand, large or small
        for name in one.keys() - {"pixels", "vertices", "has_vertices"} - assumed:
            np.testing.assert_allclose(other[name], one[name], atol=2e-5, err_msg=name)
    smooth = [replace(hand, image=np.broadcast_to(np.arange(200, dtype=np.uint8)[None, :, None], hand.image.shape)) for hand in many[:1]]
    sample_cache.build(map(partial(sample_cache.row, smooth, 96, 1.9), range(1)), tmp_path, count=1, size=96, margin=1.9, key="one")
    pair = [HandCrops(source, 64).sample(0)["pixels"].astype(int) for source in (smooth, SampleCache(tmp_path))]
    assert np.abs(pair[0] - pair[1]).max() <= 1
    with pytest.raises(SampleCacheError, match="holds 'one', expected 'three'"):
        SampleCache(tmp_path, "three")
    (tmp_path / "labels.npz").write_bytes(b"PK")
    with pytest.raises(SampleCacheError, match="not a whole cache"):
        SampleCache(tmp_path)


def test_metrics_and_the_alarm(caplog):
    many = [sample(i) for i in range(10)]
    crops = HandCrops(many, 32)
    task = RegressionTask(crops, crops, HandLoss(RECIPE))
    torch.manual_seed(0)
    same = HandRegressor(RegressorConfig(RESNET, image_size=32, width=16), hands.mano("right")).eval()
    with caplog.at_level(logging.WARNING):
        metrics = task.evaluate(same)
    assert "COLLAPSE" in caplog.text and metrics["spread"] < 0.1 and metrics["accuracy"] == -metrics["pa_mpjpe"]
    prediction, batch = predict(regressor(), crops, range(10), batch_size=4)
    caplog.clear()
    truth = replace(prediction, joints_3d=batch["joints_3d"] - batch["joints_3d"][:, :1])
    perfect = score(truth, batch)
    assert perfect["pa_mpjpe"] < 1e-3 and perfect["mpjpe"] < 1e-3 and perfect["spread"] == pytest.approx(1)
    assert perfect["constant_mpjpe"] == pytest.approx(metrics["constant_mpjpe"]) and "COLLAPSE" not in caplog.text
    known = truth.joints_3d.clone()
    known[:2, 1:] += 0.01 * torch.randn(2, 20, 3, generator=torch.Generator().manual_seed(0))
    doubt = torch.full((10, 21), -6.0)
    doubt[:2] = -4.0
    assert score(replace(truth, joints_3d=known, log_scale_3d=doubt), batch)["doubtful_ratio"] > 1000


def test_the_contact_sheet_shows_what_the_network_sees():
    sheet = label_sheet(HandCrops([sample(0), sample(1, "left")], 48, augmentation=Augmentation()), 2)
    assert sheet.dtype == np.uint8 and sheet.shape[2] == 3 and sheet.std() > 10


@pytest.fixture(scope="module")
def config(tmp_path_factory):
    """A synthetic FreiHAND of twelve annotations and a config that trains a tiny network on it."""
    folder = tmp_path_factory.mktemp("mano")
    list(write_freihand(folder / "freihand", "train", 0, 12))
    settings = {
        "data": [{"folder": str(folder / "freihand"), "validation": 0.3, "inside_mask": 0.5}],
        "network": {"backbone": RESNET, "image_size": 32, "width": 16, "dropout": 0.0},
        "asset": str(folder / "asset"),
        "training": {"output": str(folder / "run"), "max_steps": 4, "batch_size": 8, "micro_batch_size": 8, "log_every": 2,
                     "evaluate_every": 2, "save_every": 2, "best_metric": "accuracy"},
    }  # fmt: skip
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


@pytest.mark.slow
def test_from_folder_to_shipped_weights(config, capsys):
    assert train_mano.main([str(config), "--check"]) == 0
    assert "total" in capsys.readouterr().out and (config.parent / "run" / "labels.jpg").is_file()
    assert train_mano.main([str(config)]) == 0
    lines = [json.loads(line) for line in (config.parent / "run" / "log.jsonl").read_text().splitlines()]
    assert {"rotation", "joints_2d", "loss"} <= set(lines[0]) and any("constant_pa_mpjpe" in line for line in lines)
    assert train_mano.main([str(config), "--publish"]) == 0
    assert torch.isfinite(load_regressor(config.parent / "asset")(torch.rand(1, 3, 32, 32) * 255).joints_3d).all()
    before = load_regressor(config.parent / "asset")
    assert train_mano.main([str(config), "--calibrate", "20", "--set", "network.doubt=4"]) == 0
    assert "the least confident fifth's is" in capsys.readouterr().out
    after = load_regressor(config.parent / "asset")
    assert before.doubt is None and after.doubt is not None and after.config.doubt == 4
    torch.testing.assert_close(after.read_outs["pose"].weight, before.read_outs["pose"].weight, rtol=0, atol=0)
    with pytest.raises(UserError, match="already holds a run"):
        train_mano.main([str(config)])


def test_colour_versions_stay_on_one_side(config):
    settings = train_mano.typed.load(train_mano.ManoSettings, str(config), [])
    learn, judge = train_mano.read_data(settings.data[0], train_mano.hand_models(), 0)
    sides = [{part[i].annotation for i in range(len(part))} for part in (learn, judge)]
    assert sides[0] and sides[1] and not sides[0] & sides[1]
    assert len(learn) == 4 * len(sides[0]) and len(judge) == 4 * len(sides[1])


def test_data_sets_are_mixed_by_share():
    mixed = train_mano.Mixed([list("ab"), list("xyzuvw")], [1.0, 1.0])
    assert "".join(mixed) == "abababxyzuvw"
    assert len(train_mano.Mixed([list("ab"), list("xyzuvw")], [3.0, 1.0])) == 24


def test_what_cannot_be_trained_is_one_clear_error(config, tmp_path):
    for wrong, message in (
        (["--set", "loss=best"], "expected recipe, simple, mano"),
        (["--set", f"start={tmp_path}/none"], "is missing; train the phase before"),
        (["--set", f"training.output={tmp_path}/none", "--publish"], "train first"),
    ):
        with pytest.raises(UserError, match=message):
            train_mano.main([str(config), *wrong])


@pytest.mark.slow
def test_sixty_four_hands_are_learnt_by_heart(tmp_path):
    """Network, losses and labels are sound: 64 pictures of 64 px to less than 3 mm after alignment (40 s on one core)."""
    from data.freihand import FreiHAND

    list(write_freihand(tmp_path, "train", 1, 64))
    torch.manual_seed(0)
    backbone = {"model_type": "resnet", "embedding_size": 16, "hidden_sizes": [32, 64, 128], "depths": [1, 1, 1], "layer_type": "basic"}
    model = HandRegressor(RegressorConfig(backbone, image_size=64, width=256, dropout=0.0), hands.mano("right"))
    crops = HandCrops(FreiHAND(tmp_path, mano=hands.mano("right"), versions=(0,)), 64)
    batch = crops.collate([crops.sample(i) for i in range(64)])
    constant = score(*predict(model.eval(), crops, range(64)))["constant_pa_mpjpe"]
    assert overfit(model, batch, HandLoss(RECIPE), steps=300) < 3.0 < constant
