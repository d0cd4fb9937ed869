"""MANO and SMPL: agreement with the recorded layer and with smplx, and equalities."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from pose_tools.body_models import (
    Mano,
    Smpl,
    load_mano,
    mirror_arrays,
    smplx_adapter,
    standin_body_arrays,
    standin_hand_arrays,
)
from pose_tools.body_models.kinematics import MANO_PARENTS, TIP_VERTICES, kintree_table
from pose_tools.body_models.lbs_model import BodyOutput
from pose_tools.geometry import axis_angle_to_matrix

FIXTURE = Path(__file__).parents[1] / "fixtures" / "mano" / "a_mano_layer.npz"
RECORDED = [
    f"{precision}.{kind}.{mean}"
    for precision, kinds in (("f64", ("aa", "pca6", "pca12", "pca44", "pca45_true")), ("f32", ("aa", "pca6")))
    for kind in kinds
    for mean in ("flat", "meanpose")
] + ["f64.layer_rotmat", "f32.layer_rotmat"]
TOLERANCE = {"f64": 5e-8, "f32": 1e-6}


def synthetic_mano() -> dict:
    """The model the recordings were made with, drawn as tests/fixtures/mano/README.md says."""
    rs = np.random.RandomState(20190322)
    d = {"v_template": rs.standard_normal((778, 3)) * [0.03, 0.01, 0.05]}
    d["shapedirs"] = rs.standard_normal((778, 3, 10)) * 0.002
    d["posedirs"] = rs.standard_normal((778, 3, 135)) * 0.0005
    d["J_regressor"] = rs.random_sample((16, 778)) ** 40
    d["J_regressor"] /= d["J_regressor"].sum(1, keepdims=True)
    d["weights"] = rs.random_sample((778, 16)) ** 8
    d["weights"] /= d["weights"].sum(1, keepdims=True)
    d["hands_components"] = rs.standard_normal((45, 45))
    d["hands_components"] /= np.linalg.norm(d["hands_components"], axis=1, keepdims=True)
    d["hands_mean"] = rs.standard_normal(45) * 0.2
    d["f"] = rs.randint(0, 778, (1538, 3)).astype(np.uint32)
    d["kintree_table"] = kintree_table(MANO_PARENTS)
    d["J"] = d["J_regressor"] @ d["v_template"]
    d["bs_style"], d["bs_type"] = "lbs", "lrotmin"
    return d


@pytest.fixture(scope="module")
def recorded() -> dict[str, np.ndarray]:
    with np.load(FIXTURE) as file:
        return dict(file)


def random_pose(batch: int, joints: int, seed: int = 0, scale: float = 0.5) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(torch.randn(batch, n, generator=g) * s for n, s in ((3, 1.0), (3 * joints, scale), (10, 1.0), (3, 0.3)))


# ---------------------------------------------------------------- agreement with the recordings and with smplx


def test_synthetic_model_has_the_recorded_check_sums():
    d = synthetic_mano()
    assert d["v_template"].sum() == pytest.approx(-2.6575395052879713, abs=1e-10)
    assert np.abs(d["posedirs"]).sum() == pytest.approx(125.73150549495378, abs=1e-8)
    assert (d["weights"] ** 2).sum() == pytest.approx(231.40880398816532, abs=1e-8)
    assert int(d["f"].sum()) == 1789295


@pytest.mark.parametrize("tag", RECORDED)
def test_mano_agrees_with_the_recorded_layer(recorded, tag):
    precision, kind, *mean = tag.split(".")
    flat = mean != ["meanpose"]
    dtype = torch.float64 if precision == "f64" else torch.float32
    mano = Mano.from_arrays(synthetic_mano(), "right").to(dtype)
    orient, pose, betas, transl, coefficients = (
        torch.tensor(recorded[n], dtype=dtype) for n in ("global_orient", "hand_pose", "betas", "transl", "pca_coeffs")
    )
    pose_format = "axis_angle"
    if kind == "layer_rotmat":
        orient, pose, pose_format = (
            *(torch.tensor(recorded[f"layer.{n}_rotmat"], dtype=dtype) for n in ("global_orient", "hand_pose")),
            "rotation_matrix",
        )
    elif kind.startswith("pca"):
        pose, pose_format = coefficients[:, : int(kind.removeprefix("pca").removesuffix("_true"))], "pca"
    out = mano(orient, pose, betas, transl, pose_format=pose_format, flat_hand_mean=flat)
    tolerance = TOLERANCE[precision]
    np.testing.assert_allclose(out.vertices[:, recorded["vertex_subset"]].numpy(), recorded[f"{tag}.verts_subset"], rtol=0, atol=tolerance)
    np.testing.assert_allclose(out.joints_16.numpy(), recorded[f"{tag}.joints16"], rtol=0, atol=tolerance)
    if precision == "f64":
        np.testing.assert_allclose(out.vertices.sum((1, 2)).numpy(), recorded[f"{tag}.verts_sum"], rtol=0, atol=2e-6)
        np.testing.assert_allclose(out.vertices.abs().sum((1, 2)).numpy(), recorded[f"{tag}.verts_abs_sum"], rtol=0, atol=2e-6)


@pytest.mark.parametrize("tips", sorted(TIP_VERTICES))
def test_21_joints_in_freihand_order_with_each_tip_convention(recorded, tips):
    mano = Mano.from_arrays(synthetic_mano(), "right").double()
    inputs = (torch.tensor(recorded[n], dtype=torch.float64) for n in ("global_orient", "hand_pose", "betas", "transl"))
    joints = mano(*inputs, flat_hand_mean=False, tips=tips).joints
    np.testing.assert_allclose(joints.numpy(), recorded[f"f64.aa.meanpose.joints21_freihand_order.tips_{tips}"], rtol=0, atol=5e-8)


def test_gradients_agree_with_the_recorded_ones_and_are_finite(recorded):
    mano = Mano.from_arrays(synthetic_mano(), "right").double()
    names = ("global_orient", "hand_pose", "betas", "transl")
    inputs = [torch.tensor(recorded[n], dtype=torch.float64, requires_grad=True) for n in names]
    out = mano(*inputs, flat_hand_mean=False)
    loss = (out.vertices * torch.tensor(np.random.RandomState(11).standard_normal((8, 778, 3)))).sum()
    loss = loss + (out.joints_16 * torch.tensor(np.random.RandomState(12).standard_normal((8, 16, 3)))).sum()
    assert loss.item() == pytest.approx(float(recorded["grad.loss"]), abs=2e-6)
    for name, grad in zip(names, torch.autograd.grad(loss, inputs), strict=True):
        assert torch.isfinite(grad).all(), name
        np.testing.assert_allclose(grad.numpy(), recorded[f"grad.{name}"], rtol=0, atol=1e-6, err_msg=name)


@pytest.mark.parametrize("angle", [0.0, np.pi])
def test_gradients_at_zero_and_half_turns_are_the_true_slopes(angle):
    mano = load_mano().double()
    pose = torch.zeros(1, 45, dtype=torch.float64)
    pose[0, ::3] = angle
    orient = torch.tensor([[0.0, angle, 0.0]], dtype=torch.float64)
    w = torch.randn(1, 778, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))

    def value(p: torch.Tensor, r: torch.Tensor) -> torch.Tensor:
        return (mano(r, p).vertices * w).sum()

    pose.requires_grad_(), orient.requires_grad_()
    grads = torch.autograd.grad(value(pose, orient), (pose, orient))
    with torch.no_grad():
        for k in (0, 1, 17, 44):
            step = torch.zeros_like(pose)
            step[0, k] = 1e-6
            slope = (value(pose + step, orient) - value(pose - step, orient)) / 2e-6
            assert grads[0][0, k].item() == pytest.approx(slope.item(), abs=2e-6)
        for k in range(3):
            step = torch.zeros_like(orient)
            step[0, k] = 1e-6
            assert grads[1][0, k].item() == pytest.approx(
                ((value(pose, orient + step) - value(pose, orient - step)) / 2e-6).item(), abs=2e-6
            )


@pytest.mark.parametrize("model", ["left hand", "right hand", "body"])
def test_stand_ins_agree_with_smplx_values_and_gradients(model):
    joints = 23 if model == "body" else 15
    arrays = (
        standin_body_arrays()
        if model == "body"
        else standin_hand_arrays()
        if model == "right hand"
        else mirror_arrays(standin_hand_arrays())
    )
    ours = Smpl.from_arrays(arrays) if model == "body" else Mano.from_arrays(arrays, model.split()[0])
    theirs = smplx_adapter.smpl_layer(arrays) if model == "body" else smplx_adapter.mano_layer(arrays, model.split()[0])
    orient, pose, betas, transl = random_pose(3, joints)
    rotations = axis_angle_to_matrix(torch.cat([orient, pose], 1).view(3, joints + 1, 3)).requires_grad_()
    betas.requires_grad_(), transl.requires_grad_()
    out = ours(rotations[:, 0], rotations[:, 1:], betas, transl, pose_format="rotation_matrix")
    ref = theirs(
        global_orient=rotations[:, :1], betas=betas, transl=transl, **{"body_pose" if model == "body" else "hand_pose": rotations[:, 1:]}
    )
    raw = out.joints if model == "body" else out.joints_16
    torch.testing.assert_close(out.vertices, ref.vertices, rtol=0, atol=2e-6)
    torch.testing.assert_close(raw, ref.joints[:, : joints + 1], rtol=0, atol=2e-6)
    w = torch.randn(out.vertices.shape, generator=torch.Generator().manual_seed(2))
    mine = torch.autograd.grad((out.vertices * w).sum() + raw.sum(), (rotations, betas, transl))
    other = torch.autograd.grad((ref.vertices * w).sum() + ref.joints[:, : joints + 1].sum(), (rotations, betas, transl))
    for a, b in zip(mine, other, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-3)


def test_backward_is_the_slope_of_forward_for_every_input():
    mano = load_mano().double()
    rotations = axis_angle_to_matrix(
        torch.randn(2, 16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    ).requires_grad_()
    betas, transl = torch.zeros(2, 10, dtype=torch.float64, requires_grad=True), torch.zeros(2, 3, dtype=torch.float64, requires_grad=True)

    def some(r: torch.Tensor, b: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        out = mano(r[:, 0], r[:, 1:], b, t, pose_format="rotation_matrix")
        return torch.cat([out.vertices[:, ::100].flatten(), out.joints.flatten()])

    assert torch.autograd.gradcheck(some, (rotations, betas, transl), eps=1e-6, atol=1e-7)


# ---------------------------------------------------------------- equalities


@pytest.mark.parametrize("batch", [1, 2, 70])
def test_batch_equals_single(batch):
    mano = load_mano()
    inputs = random_pose(batch, 15)
    together = mano(*inputs)
    alone = [mano(*(x[i : i + 1] for x in inputs)) for i in range(batch)]
    torch.testing.assert_close(together.vertices, torch.cat([o.vertices for o in alone]), rtol=0, atol=1e-6)
    torch.testing.assert_close(together.joints, torch.cat([o.joints for o in alone]), rtol=0, atol=1e-6)


@pytest.mark.parametrize("batch", [6, 70])  # 6: one slice of the vertices, 70: several
def test_gradients_of_a_batch_equal_those_of_single_hands(batch):
    mano = load_mano()
    inputs = [x.requires_grad_() for x in random_pose(batch, 15)]

    def loss(out: BodyOutput) -> torch.Tensor:
        return (out.vertices * ramp).sum() + (out.joints.square() - out.joints_16[:, :1]).sum()

    ramp = torch.linspace(-1, 1, 778 * 3).view(778, 3)
    together = torch.autograd.grad(loss(mano(*inputs)), inputs)
    first = [torch.autograd.grad(loss(mano(*(x[i : i + 1] for x in inputs))), inputs) for i in (0, batch - 1)]
    for name, grad, *alone in zip(("orient", "pose", "betas", "transl"), together, *first):
        for i, one in zip((0, -1), alone, strict=True):
            torch.testing.assert_close(grad[i], one[i], rtol=1e-4, atol=1e-4, msg=name)


def test_calls_share_no_memory_whatever_the_mode_and_the_thread():
    mano = load_mano()
    inputs = [random_pose(40, 15, seed=seed) for seed in range(4)]
    with torch.inference_mode():
        alone = [mano(*x).vertices.clone() for x in inputs]
    with ThreadPoolExecutor(4) as pool:
        both = list(pool.map(lambda x: mano(*x).vertices, inputs))
    for got, expected in zip(both, alone, strict=True):
        torch.testing.assert_close(got, expected, rtol=0, atol=0)
    pose = [x[1].clone().requires_grad_() for x in inputs[:2]]
    outputs = [mano(x[0], p, x[2]) for x, p in zip(inputs, pose)]  # two graphs at once, used in the other order
    late = [torch.autograd.grad(out.vertices.square().sum(), p)[0] for out, p in reversed(list(zip(outputs, pose)))][::-1]
    for x, p, grad in zip(inputs, pose, late):
        torch.testing.assert_close(torch.autograd.grad(mano(x[0], p, x[2]).vertices.square().sum(), p)[0], grad, rtol=0, atol=0)


def test_what_is_given_out_goes_on_as_any_tensor():
    mano = load_mano()
    orient, pose, betas, transl = random_pose(2, 15)
    scale = torch.ones(3, requires_grad=True)
    fixed = mano(orient, pose, betas, transl)
    (fixed.vertices * scale).sum().backward()
    torch.testing.assert_close(scale.grad, fixed.vertices.sum((0, 1)))
    for points in (fixed.vertices, fixed.joints, fixed.joints_16):
        assert not points.is_inference()
    parameters = [x.clone().requires_grad_() for x in (orient, pose, betas, transl)]
    mano(*parameters).joints.square().sum().backward()
    assert not any(x.grad.is_inference() for x in parameters)
    torch.optim.SGD(parameters, lr=0.1).step()


def test_one_shape_goes_with_many_poses_and_no_shape_is_zeros():
    mano = load_mano()
    orient, pose, betas, transl = random_pose(4, 15)
    torch.testing.assert_close(
        mano(orient, pose, betas[:1]).vertices, mano(orient, pose, betas[:1].expand(4, -1), torch.zeros(4, 3)).vertices
    )
    assert mano(orient[:0], pose[:0]).joints.shape == (0, 21, 3)


def test_left_is_the_mirrored_right():
    orient, pose, betas, transl = random_pose(3, 15)
    flip = torch.tensor([1.0, -1.0, -1.0])
    mirror = torch.tensor([-1.0, 1.0, 1.0])
    right = load_mano()(orient, pose, betas, transl)
    left = load_mano(side="left")(orient * flip, pose * flip.repeat(15), betas, transl * mirror)
    torch.testing.assert_close(left.vertices, right.vertices * mirror, rtol=0, atol=1e-6)
    torch.testing.assert_close(left.joints, right.joints * mirror, rtol=0, atol=1e-6)
    relative = load_mano(side="left")(orient * flip, pose * flip.repeat(15), betas, transl * mirror, flat_hand_mean=False)
    torch.testing.assert_close(
        relative.vertices, load_mano()(orient, pose, betas, transl, flat_hand_mean=False).vertices * mirror, rtol=0, atol=1e-6
    )
    twice = mirror_arrays(mirror_arrays(standin_hand_arrays()))
    for name in ("v_template", "shapedirs", "posedirs", "f", "hands_mean", "hands_components"):
        np.testing.assert_array_equal(twice[name], standin_hand_arrays()[name])


def test_formats_of_one_pose_agree():
    mano = load_mano().double()
    orient, pose, betas, transl = (x.double() for x in random_pose(3, 15))
    plain = mano(orient, pose, betas, transl).vertices
    matrices = mano(
        axis_angle_to_matrix(orient), axis_angle_to_matrix(pose.view(3, 15, 3)), betas, transl, pose_format="rotation_matrix"
    ).vertices
    coefficients = (pose - mano.hands_mean) @ torch.linalg.inv(mano.hands_components)
    pca = mano(orient, coefficients, betas, transl, pose_format="pca", flat_hand_mean=False).vertices
    torch.testing.assert_close(matrices, plain, rtol=0, atol=1e-12)
    torch.testing.assert_close(pca, plain, rtol=0, atol=1e-7)
    torch.testing.assert_close(mano.absolute_pose(coefficients, pose_format="pca"), pose, rtol=0, atol=1e-7)


def test_mixed_precision_leaves_the_layer_in_float32_and_float64_inputs_in_float64():
    mano = load_mano()
    inputs = random_pose(2, 15)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = mano(*inputs)
    torch.testing.assert_close(mixed.vertices, mano(*inputs).vertices, rtol=0, atol=0)
    assert mano(*(x.bfloat16() for x in inputs)).vertices.dtype == torch.float32
    assert mano(*(x.double() for x in inputs)).vertices.dtype == torch.float64


def test_moving_the_model_after_a_call_moves_its_constants():
    mano = load_mano()
    inputs = random_pose(1, 15)
    before = mano(*inputs).vertices
    torch.testing.assert_close(mano.double()(*(x.double() for x in inputs)).vertices.float(), before, rtol=0, atol=1e-6)
    assert mano.float()(*inputs).vertices.dtype == torch.float32
