"""Metrics, lifting and targets of SiMHand's fine-tuning."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import torch

from pose_tools.joints import BONES, convert
from pose_tools.simhand.compat import key_point_auc, key_point_errors
from pose_tools.simhand.detnet_training import detnet_losses, heat_map_accuracy, heat_maps, joint_targets
from pose_tools.simhand.encoder import load_detnet
from pose_tools.simhand.evaluate import lift_25d, peclr_freihand, peclr_joints, peclr_view, root_scale_aligned, to_25d
from pose_tools.simhand.views import normalise
from tests.pose_tools.simhand.networks import detnet, pixels

INTRINSICS = torch.tensor([[480.0, 0, 112], [0, 470, 115], [0, 0, 1]], dtype=torch.float64)


def hands(n=6, seed=0):
    """Joints (n, 21, 3) metres, hand-sized, half a metre away."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 0.04, (n, 21, 3)) + [0, 0, 0.6]


def test_alignment_forgives_root_and_scale_and_nothing_else():
    gt = hands()
    found = root_scale_aligned(3 * gt + [1, 2, 3], gt)
    assert found["mean"] == pytest.approx(0, abs=1e-9) and found["auc_20_50"] == pytest.approx(1) and found["invalid"] == 0
    turned = gt @ np.array([[0, -1, 0], [1, 0, 0], [0, 0, 1.0]])
    assert root_scale_aligned(turned, gt)["mean"] > 10
    millimetres = root_scale_aligned(1000 * turned, 1000 * gt, unit="mm")
    assert millimetres["mean"] == pytest.approx(root_scale_aligned(turned, gt)["mean"])
    assert millimetres["mean"] == pytest.approx(root_scale_aligned(torch.from_numpy(turned), torch.from_numpy(gt))["mean"])


def test_the_numbers_by_hand():
    gt = np.zeros((2, 21, 3))
    gt[:, 9, 0] = 0.1
    pred = gt.copy()
    pred[0, 5, 1], pred[1, 5, 1] = 0.035, 0.001  # 35 mm and 1 mm at one joint of 21
    found = root_scale_aligned(pred, gt)
    thresholds = np.linspace(20, 50, 15)
    curve = np.where(thresholds >= 35, 1.0, 0.5)
    expected = np.trapezoid(curve, thresholds) / 30
    assert found["mean"] == pytest.approx(18 / 21) and found["median"] == pytest.approx(18 / 21)
    assert found["auc_20_50"] == pytest.approx((20 + expected) / 21)
    np.testing.assert_allclose(found["pck"], (20 + curve) / 21)
    only = np.zeros((2, 21), bool)
    only[0, 5] = True
    assert root_scale_aligned(pred, gt, valid=only)["mean"] == pytest.approx(35)


def test_predictions_that_cannot_be_scaled_are_counted():
    gt = hands()
    pred = gt.copy()
    pred[2, 9] = pred[2, 0]
    pred[3] = np.nan
    found = root_scale_aligned(pred, gt)
    assert found["invalid"] == 2 and found["mean"] == pytest.approx(0, abs=1e-9) and found["auc_20_50"] == pytest.approx(4 / 6)


def test_2_5d_there_and_back():
    joints = torch.from_numpy(convert(hands(), "freihand", "ait"))
    xy, z_rel, scale = to_25d(joints, INTRINSICS)
    torch.testing.assert_close(lift_25d(xy, z_rel, scale, INTRINSICS), joints, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(lift_25d(xy[0], z_rel[0], scale[0], INTRINSICS), joints[0], rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(lift_25d(xy, z_rel[..., None], scale[:, None], INTRINSICS.expand(6, 3, 3)), joints, rtol=1e-6, atol=1e-7)
    other = to_25d(joints, INTRINSICS, bone=(8, 3))
    torch.testing.assert_close(lift_25d(*other, INTRINSICS, bone=(8, 3)), joints, rtol=1e-6, atol=1e-7)


def test_peclr_protocol_recovers_a_known_hand():
    """A stand-in net that answers with the true 2.5-D pose: the two crops and the orders must cancel."""
    freihand = hands(1, seed=3)[0] * [1, 1, 0] + [0, 0, 0.6]
    palm = (freihand[0] + freihand[9]) / 2
    ait = torch.from_numpy(convert(np.concatenate([palm[None], freihand[1:]]), "freihand", "ait"))
    ait = ait.clone()
    seen = []

    def net(pictures, intrinsics):
        assert pictures.shape == (1, 3, 224, 224)
        points = ait @ intrinsics[0].double().T
        seen.append(points[:, :2] / points[:, 2:])
        return {"kp2d": seen[-1][None], "kp3d": (ait / 0.03)[None]}

    found = peclr_freihand(net, np.zeros((224, 224, 3), np.uint8), INTRINSICS.numpy(), 0.03)
    np.testing.assert_allclose(found, freihand, atol=1e-6)
    extent = seen[1].max(0).values - seen[1].min(0).values
    assert extent.max().item() == pytest.approx(0.7 * 224, rel=0.03)
    assert peclr_joints(ait)[0].numpy() == pytest.approx(freihand[0])


def test_peclr_pictures_are_where_their_intrinsics_say():
    picture = np.random.default_rng(0).integers(0, 256, (224, 224, 3), dtype=np.uint8)
    seen = []

    def net(pictures, intrinsics):
        seen.append((pictures[0].numpy(), intrinsics[0].double().numpy() @ np.linalg.inv(INTRINSICS.numpy())))
        return {"kp2d": torch.linspace(40, 150, 42).view(1, 21, 2), "kp3d": torch.ones(1, 21, 3)}

    peclr_freihand(net, picture, INTRINSICS.numpy(), 0.03)
    for given, matrix in seen:
        shown = cv2.warpAffine(picture, matrix[:2], (224, 224))  # the published crop
        assert (np.abs(given - normalise(shown)) > 0.02).mean() < 0.005  # float32 intrinsics may move a grey level


def test_peclr_view_refuses_a_point():
    with pytest.raises(ValueError, match="no extent"):
        peclr_view([3, 3, 3, 3], (224, 224))


def test_published_pre_training_metrics():
    gt = hands()
    pred = gt + [0.0025, 0, 0]
    assert key_point_errors(pred, gt)["median"] == pytest.approx(0.0025)
    further = np.zeros((1, 2, 3)), np.array([[[3, 4, 0], [0, 0, 1.0]]])
    assert key_point_errors(*further) == {"mean": 3, "median": 1, "min": 1, "max": 5}  # torch's median: the lower of the middle two
    assert key_point_auc(pred, gt) == pytest.approx(1 - 0.5 * 0.005 / 0.495)
    assert key_point_auc(gt, gt) == pytest.approx(1 - 0.5 * 0.005 / 0.495)  # strictly below: nothing is below 0


def test_heat_maps():
    points = np.array([[64.0, 32.0], [-2, 3], [0, 0], [127.9, 127.9], [-17, 5], [140.1, 5]] + [[10.0, 20.0]] * 15)
    maps, veil = heat_maps(points)
    assert maps[0, 8, 16] == 1 and maps[0].sum() == pytest.approx(np.exp(-(np.arange(-3, 4) ** 2) / 2).sum() ** 2, rel=1e-6)
    assert maps[1, 0, 0] == 1  # −0.5 cells is cut to 0
    assert maps[3, 31, 31] == 1 and veil[:4].tolist() == [1, 1, 1, 1]
    assert veil[4] == 1 and maps[4].max() == 0  # four cells outside: not veiled, as published
    assert veil[5] == 0 and maps[5].max() == 0
    assert (heat_map_accuracy(torch.from_numpy(maps)[None], torch.from_numpy(maps)[None])[[0, 3, 6]] == 1).all()
    accuracy = heat_map_accuracy(torch.from_numpy(maps[::-1].copy())[None], torch.from_numpy(maps)[None])
    assert accuracy[0] == 0 and torch.isnan(accuracy[1]) and torch.isnan(accuracy[4])


def test_joint_targets():
    joints = hands(1)[0]
    location, delta = joint_targets(joints)
    assert np.linalg.norm(location[9]) == pytest.approx(1) and (location[0] == 0).all() and (delta[0] == 0).all()
    np.testing.assert_allclose(np.linalg.norm(delta[1:], axis=-1), 1)
    parent, child = BONES[7]
    np.testing.assert_allclose(np.cross(delta[child], joints[child] - joints[parent]), 0, atol=1e-12)
    for name, moved in (("scaled", 7 * joints), ("moved", joints + 1)):
        np.testing.assert_allclose(joint_targets(moved)[0], location, atol=1e-9, err_msg=name)
    with pytest.raises(ValueError, match="no scale"):
        joint_targets(np.zeros((21, 3)))


def test_detnet_losses_by_hand():
    rng = torch.Generator().manual_seed(0)
    maps = torch.stack([torch.from_numpy(heat_maps(np.random.default_rng(i).uniform(10, 118, (21, 2)))[0]) for i in range(3)])
    targets = {"heat_map": maps, "veil": torch.ones(3, 21), "location": torch.randn(3, 21, 3, generator=rng),
               "delta": torch.randn(3, 21, 3, generator=rng), "has_3d": torch.tensor([True, False, True])}  # fmt: skip
    targets["veil"][0, 4] = 0
    output = {"h_map": torch.rand(3, 21, 32, 32, generator=rng), "d_map": torch.randn(3, 21, 3, 32, 32, generator=rng),
              "l_map": torch.randn(3, 21, 3, 32, 32, generator=rng)}  # fmt: skip
    found = detnet_losses(output, targets)
    heat = sum(0.5 * (((output["h_map"][:, j] - maps[:, j]) * targets["veil"][:, j, None, None]) ** 2).mean() for j in range(21))
    gap = [(output["l_map"][b] - targets["location"][b][..., None, None]) * maps[b][:, None] for b in (0, 2)]
    torch.testing.assert_close(found["heat_map"], heat)
    torch.testing.assert_close(found["location"], torch.stack(gap).norm() / 2)
    torch.testing.assert_close(found["total"], 100 * found["heat_map"] + found["delta"] + 10 * found["location"])
    flat = detnet_losses(output, targets | {"has_3d": torch.zeros(3, dtype=torch.bool)})
    assert flat["delta"] == 0 and flat["location"] == 0


@pytest.mark.parametrize("own", [False, True])
def test_detection_net_against_the_published_module(own):
    recorded = np.load(Path(__file__).parents[2] / "fixtures/simhand/detnet.npz")
    with torch.no_grad():
        found = load_detnet(detnet(own))(pixels(2, 2, 3, 128, 128))
    for name, value in found.items():
        value = value[..., ::8, ::8] if name.endswith("map") else value
        np.testing.assert_allclose(value, recorded[f"{'own' if own else 'resnet50'}_{name}"], rtol=1e-4, atol=1e-6)
