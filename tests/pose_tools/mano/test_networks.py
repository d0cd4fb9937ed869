"""The regressors: one interface for three trunks, saved = reloaded, batch = single, mirrored = mirrored."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from data.synthetic import hands
from pose_tools.body_models import load_mano
from pose_tools.geometry import project
from pose_tools.mano import load_regressor
from pose_tools.mano.crops import CropError, HandCrops, crop_camera, hand_view
from pose_tools.mano.estimate import HandInPicture, estimate
from pose_tools.mano.losses import RECIPE, HandLoss
from pose_tools.mano.networks import HandRegressor, RegressorConfig, RegressorError
from pose_tools.mano.prediction import HandPrediction
from pose_tools.tool_protocol import BackendMissing
from tests.pose_tools.mano.posed import KINDS, RESNET, mirrored, regressor, sample

SHAPES = {
    "rotations": (16, 3, 3), "betas": (10,), "camera": (3,), "joints_3d": (21, 3), "vertices": (778, 3), "joints_2d": (21, 2),
    "log_scale_2d": (21,), "log_scale_3d": (21,),
}  # fmt: skip


def fields(prediction: HandPrediction) -> dict[str, torch.Tensor]:
    return {name: getattr(prediction, name) for name in SHAPES}


@pytest.mark.parametrize("trunk", KINDS)
def test_one_interface_and_batch_equals_single(trunk):
    model = regressor(trunk)
    pixels = torch.rand(3, 3, 32, 32) * 255
    together = model(pixels)
    for name, value in fields(together).items():
        assert value.shape == (3, *SHAPES[name]) and value.dtype == torch.float32 and torch.isfinite(value).all()
    for i in range(3):
        for name, value in fields(model(pixels[i : i + 1])).items():
            torch.testing.assert_close(value[0], getattr(together, name)[i], atol=2e-5, rtol=1e-4)
    # what is said in numbers is what the hand model makes of them
    posed = hands.mano("right")(together.rotations[:, 0], together.rotations[:, 1:], together.betas, pose_format="rotation_matrix")
    torch.testing.assert_close(posed.joints - posed.joints[:, :1], together.joints_3d)
    assert (together.joints_2d.abs() <= 0.5).all() and ((together.confidence > 0) & (together.confidence < 1)).all()


@pytest.mark.parametrize("trunk", KINDS)
def test_a_fresh_network_says_the_mean_hand(trunk):
    torch.manual_seed(0)
    model = HandRegressor(RegressorConfig(KINDS[trunk], trunk, 32, width=16, layers=1, heads=2), hands.mano("right")).eval()
    found = model(torch.rand(2, 3, 32, 32) * 255)
    mean = hands.mano("right")(torch.zeros(1, 3), hands.mano("right").hands_mean[None]).joints
    assert (found.joints_3d - (mean - mean[:, :1])).abs().max() < 0.01
    assert (found.rotations @ found.rotations.transpose(-1, -2) - torch.eye(3)).abs().max() < 1e-5


@pytest.mark.parametrize("trunk", KINDS)
def test_saved_is_reloaded(trunk, tmp_path):
    model = regressor(trunk)
    model.save(tmp_path / "a")
    first = load_regressor(tmp_path / "a")
    first.save(tmp_path / "b")
    second = load_regressor(tmp_path / "b", mano=load_mano())
    pixels = torch.rand(2, 3, 32, 32) * 255
    for name, value in fields(first(pixels)).items():
        assert torch.equal(value, getattr(second(pixels), name))
        torch.testing.assert_close(value, getattr(model(pixels), name), atol=0.02, rtol=0.02)  # float16 on disk
    assert load_regressor(tmp_path / "a") is first, "one copy in memory"
    names = load_file(tmp_path / "a" / "model.safetensors")
    assert not [name for name in names if name.startswith("mano")], "the hand model's arrays are not ours to give away"


def test_a_pretrained_backbone_is_saved_as_its_architecture(tmp_path):
    """The folder opens where the backbone's name or path means nothing."""
    from transformers import ResNetConfig, ResNetModel

    named = tmp_path / "backbone"
    ResNetModel(ResNetConfig(**{k: v for k, v in RESNET.items() if k != "model_type"})).save_pretrained(named)
    model = regressor(backbone=str(named))
    assert torch.equal(model.features.model.state_dict()["embedder.embedder.convolution.weight"],
                       ResNetModel.from_pretrained(named).state_dict()["embedder.embedder.convolution.weight"])  # fmt: skip
    model.save(tmp_path / "saved")
    shutil.rmtree(named)
    pixels = torch.rand(1, 3, 32, 32) * 255
    torch.testing.assert_close(load_regressor(tmp_path / "saved")(pixels).joints_3d, model(pixels).joints_3d, atol=0.02, rtol=0.02)


def test_every_parameter_is_trained():
    """Distributed training stops at parameters without a gradient."""
    for trunk in KINDS:
        model = regressor(trunk)
        crops = HandCrops([sample(0), sample(1)], 32)
        batch = crops.collate([crops.sample(i) for i in range(2)])
        masks = {name[4:]: value for name, value in batch.items() if name.startswith("has_")}
        HandLoss(RECIPE)(model(batch["pixels"].float()), batch, masks)["total"].backward()
        assert not [name for name, p in model.named_parameters() if p.grad is None], trunk


def test_another_picture_size_works_where_the_trunk_has_positions():
    for trunk in ("transformer", "query"):
        found = regressor(trunk)(torch.rand(1, 3, 48, 48) * 255)
        assert torch.isfinite(found.joints_3d).all()


def test_positions_are_parameters_from_the_start():
    assert "trunk.position" in dict(regressor("transformer").named_parameters())


def test_wrist_is_where_the_camera_says():
    model, hand = regressor(), sample(1)
    projection, _ = crop_camera(hand_view(hand.bbox_xyxy, 32, scale=1.3, mirror=False), hand.intrinsics, False)
    found = model(torch.rand(4, 3, 32, 32) * 255)
    matrix = torch.tensor(projection, dtype=torch.float32).expand(4, 3, 3)
    wrist = found.wrist(matrix)
    torch.testing.assert_close(project(wrist[:, None], matrix)[:, 0], found.camera[:, 1:], atol=1e-4, rtol=1e-3)
    # a step of a millimetre across the middle of the crop at the wrist's depth is `camera` crop widths per metre
    middle = torch.stack([torch.tensor([[0.0, 0, 1], [0.001, 0, 1]]) * z * torch.tensor([[1 / z, 1, 1]]) for z in wrist[:, 2].tolist()])
    step = project(middle, matrix).diff(dim=1)[:, 0].norm(dim=-1) / 0.001
    torch.testing.assert_close(step, found.camera[:, 0], rtol=0.02, atol=0)


@pytest.mark.parametrize("side", ["left", "right"])
def test_mirrored_picture_gives_the_mirrored_hand(side):
    model = regressor()
    hand = sample(3, side)
    pair = [HandInPicture(h.image, h.bbox_xyxy, h.side, h.intrinsics) for h in (hand, mirrored(hand))]
    one, other = estimate(model, pair)
    flip = np.array([-1.0, 1.0, 1.0])
    assert one.pose.side == side and other.pose.side != side
    np.testing.assert_allclose(one.pose.joints_3d * flip, other.pose.joints_3d, atol=1e-4)
    np.testing.assert_allclose(one.vertices * flip, other.vertices, atol=1e-4)
    np.testing.assert_allclose(one.key_points * [-1, 1] + [hand.image.shape[1], 0], other.key_points, atol=0.05)
    for found in (one, other):  # the parameters, posed by that side's own model, are the joints
        pose = found.pose
        vertices, joints = hands.pose_hand(pose.side, pose.global_orient, pose.hand_pose, pose.betas, pose.transl)
        np.testing.assert_allclose(joints, pose.joints_3d, atol=1e-5)
        np.testing.assert_allclose(vertices, found.vertices, atol=1e-5)


def test_estimate_takes_boxes_outside_the_picture_and_refuses_none():
    hand = sample(2)
    assert estimate(regressor(), []) == []
    outside = estimate(regressor(), [HandInPicture(hand.image, np.array([500.0, 500, 560, 570]), "right", hand.intrinsics)])[0]
    assert np.isfinite(outside.pose.joints_3d).all()
    with pytest.raises(CropError, match="x1 < x2"):
        estimate(regressor(), [HandInPicture(hand.image, np.array([50.0, 50, 50, 70]), "right", hand.intrinsics)])


def test_bad_input_is_said():
    model = regressor()
    for bad in (torch.zeros(0, 3, 32, 32), torch.zeros(1, 1, 32, 32), torch.zeros(3, 32, 32)):
        with pytest.raises(RegressorError, match="expected crops"):
            model(bad)
    with pytest.raises(RegressorError, match="right hands"):
        HandRegressor(RegressorConfig(RESNET), load_mano(side="left"))
    with pytest.raises(RegressorError, match="trunk"):
        RegressorConfig(RESNET, "cnn")  # type: ignore[arg-type]
    with pytest.raises(RegressorError, match="multiple of heads"):
        RegressorConfig(RESNET, "query", width=30, heads=8)
    with pytest.raises(RegressorError, match="model_type"):
        HandRegressor(RegressorConfig({"depths": [1]}), load_mano())


def test_broken_folders_are_one_clear_error_each(tmp_path):
    with pytest.raises(BackendMissing, match=r"config.json is missing.*train_mano"):
        load_regressor(tmp_path)
    regressor().save(tmp_path)
    config = (tmp_path / "config.json").read_text()
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | {"colour": 1}))
    with pytest.raises(RegressorError, match="not the config"):
        load_regressor(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps(json.loads(config) | {"width": 20}))
    with pytest.raises(RegressorError, match="another shape"):
        load_regressor(tmp_path)
    (tmp_path / "config.json").write_text(config)
    weights = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(weights[: len(weights) // 2])
    with pytest.raises(RegressorError, match="not a whole file"):
        load_regressor(tmp_path)
