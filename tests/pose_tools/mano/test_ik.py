"""Inverse kinematics: the accuracy bars, equalities (batch = single, mirrored = mirrored, moved = moved), derivatives, bad input."""

from __future__ import annotations

import numpy as np
import pytest
import roma
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pose_tools.body_models import Mano, load_mano, standin_hand_arrays
from pose_tools.geometry import axis_angle_to_matrix, project
from pose_tools.joints import convert
from pose_tools.mano.ik import IKResult, as_result, better_of, fit
from pose_tools.mano.ik_chain import SCALE, State, hand_constants, landmarks, landmarks_and_jacobian, moved
from pose_tools.mano.ik_clip import fit_clip
from pose_tools.mano.ik_prior import energy, pose_terms, prior_of

K = torch.tensor([[600.0, 0, 320], [0, 610, 240], [0, 0, 1]])
MIRROR = torch.tensor([-1.0, 1.0, 1.0])


@pytest.fixture(scope="module")
def mano() -> Mano:
    return load_mano()


def hands(mano: Mano, batch: int, seed: int = 0, depth: float = 0.0, shape: float = 0.0) -> tuple[torch.Tensor, ...]:
    """Rotations over the whole sphere, poses from the hand's statistics, places: (orient, pose, betas, transl)."""
    g = torch.Generator().manual_seed(seed)
    factor = torch.linalg.cholesky(mano.pose_covariance.double() + 1e-9 * torch.eye(45))
    pose = mano.pose_mean + (torch.randn(batch, 45, generator=g).double() @ factor.T).float()
    orient = roma.unitquat_to_rotvec(torch.nn.functional.normalize(torch.randn(batch, 4, generator=g), dim=1))
    transl = 0.1 * torch.randn(batch, 3, generator=g) + torch.tensor([0.0, 0.0, depth])
    return orient, pose, shape * torch.randn(batch, 10, generator=g), transl


def joints_of(mano: Mano, found: IKResult, tips: str = "freihand") -> torch.Tensor:
    return found.scale[:, None, None] * mano(found.global_orient, found.hand_pose, found.betas, found.transl, tips=tips).joints


def error(mano: Mano, found: IKResult, truth: torch.Tensor) -> torch.Tensor:
    """Mean distance (B,) of all joints, metres, nothing aligned."""
    return (joints_of(mano, found) - truth).norm(dim=2).mean(1)


# ---------------------------------------------------------------- the bars


def test_exact_landmarks_from_a_cold_start_come_back_below_a_millimetre(mano):
    inputs = hands(mano, 64, shape=1.0)
    truth = mano(*inputs).joints
    errors = error(mano, fit(truth, mano=mano, betas=inputs[2]), truth)
    assert errors.median() < 1e-4 and errors.max() < 1e-3


def test_poses_far_from_the_statistics_come_back_too(mano):
    orient, _, betas, transl = hands(mano, 32, 1)
    truth = mano(orient, 0.3 * torch.randn(32, 45, generator=torch.Generator().manual_seed(2)), betas, transl).joints
    assert error(mano, fit(truth, mano=mano), truth).median() < 1e-3


def test_noise_of_five_millimetres_leaves_less_than_six_and_less_than_it_was(mano):
    truth = mano(*hands(mano, 64, 3)).joints
    noise = 0.005 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(4))
    found = fit(truth + noise, mano=mano)
    errors = error(mano, found, truth)
    assert errors.mean() < 6e-3 and errors.mean() < 0.75 * noise.norm(dim=2).mean()
    assert found.residual.mean() > 4e-3  # the residual is that to the noisy landmarks


@pytest.mark.parametrize("tips", ["smplx", "manopth", "ho3d"])
def test_tips_of_another_convention_fit_only_as_such(mano, tips):
    inputs = hands(mano, 4, 5)
    truth = mano(*inputs, tips=tips).joints
    right, wrong = fit(truth, mano=mano, tips=tips), fit(truth, mano=mano)
    assert (joints_of(mano, right, tips) - truth).norm(dim=2).mean() < 1e-4
    assert (right.residual < wrong.residual).all()


def test_shape_and_scale_are_found(mano):
    inputs = hands(mano, 8, 6, shape=1.0)
    truth = mano(*inputs).joints
    shaped, scaled = fit(truth, mano=mano, fit_shape=True), fit(1000 * truth, mano=mano, betas=inputs[2], fit_scale=True)
    assert shaped.residual.max() < 2e-4 < fit(truth, mano=mano).residual.min()
    assert torch.allclose(scaled.scale, torch.full((8,), 1000.0), rtol=1e-3)
    assert (joints_of(mano, scaled) - 1000 * truth).norm(dim=2).mean() < 0.2


def test_one_wrong_landmark_pulls_little_and_a_hidden_one_not_at_all(mano):
    truth = mano(*hands(mano, 8, 7)).joints
    noisy = truth + 0.002 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(8))
    wrong, confidence = noisy.clone(), torch.ones(8, 21)
    wrong[:, 8] += torch.tensor([0.1, 0.0, 0.05])
    confidence[:, 8] = 0
    keep = [j for j in range(21) if j not in (5, 6, 7, 8)]

    def others(found: IKResult) -> torch.Tensor:
        return (joints_of(mano, found) - truth).norm(dim=2)[:, keep].mean()

    assert others(fit(wrong, mano=mano)) < 1.5 * others(fit(noisy, mano=mano))
    hidden = noisy.clone()
    hidden[:, 8] = torch.nan
    first, second = fit(wrong, mano=mano, confidence=confidence), fit(hidden, mano=mano, confidence=confidence)
    assert torch.equal(first.hand_pose, second.hand_pose)


# ---------------------------------------------------------------- pictures


def test_pixels_with_intrinsics_give_the_hand_at_the_depth_its_size_implies(mano):
    truth = mano(*hands(mano, 16, 9, depth=0.5)).joints
    found = fit(project(truth, K), mano=mano, intrinsics=K)
    assert found.residual.max() < 1.0 and (found.scale == 1).all()  # pixels
    assert error(mano, found, truth).median() < 8e-3
    pixels = project(joints_of(mano, found), K)
    assert torch.allclose((pixels - project(truth, K)).norm(dim=2).mean(1), found.residual, atol=1e-3)


def test_noisy_pixels_are_smoothed(mano):
    truth = mano(*hands(mano, 16, 10, depth=0.5)).joints
    noise = 2.0 * torch.randn(16, 21, 2, generator=torch.Generator().manual_seed(11))
    found = fit(project(truth, K) + noise, mano=mano, intrinsics=K)
    off = (project(joints_of(mano, found), K) - project(truth, K)).norm(dim=2).mean()
    assert off < noise.norm(dim=2).mean()


def test_without_intrinsics_pixels_are_scale_times_x_and_y(mano):
    orient, pose, betas, transl = hands(mano, 8, 12)
    pixels = 800 * mano(orient, pose, betas, transl).joints[..., :2]
    found = fit(pixels, mano=mano)
    assert torch.allclose((joints_of(mano, found)[..., :2] - pixels).norm(dim=2).mean(1), found.residual, atol=1e-3)
    assert found.residual.median() < 1.0 and (found.scale / 800 - 1).abs().median() < 0.05 and (found.transl[:, 2] == 0).all()


# ---------------------------------------------------------------- equalities


def test_batch_equals_single_and_permuted(mano):
    truth = mano(*hands(mano, 3, 13, depth=0.5)).joints
    noisy = truth + 0.004 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(14))
    for given_joints, options in ((noisy, {}), (project(noisy, K), {"intrinsics": K})):
        together = fit(given_joints, mano=mano, **options)
        for i in range(3):
            alone = fit(given_joints[i : i + 1], mano=mano, **options)
            for name in ("global_orient", "hand_pose", "transl", "residual"):
                torch.testing.assert_close(getattr(alone, name)[0], getattr(together, name)[i], rtol=0, atol=1e-5)
            assert alone.iterations[0] == together.iterations[i]
    assert fit(truth[:0], mano=mano).hand_pose.shape == (0, 45)
    assert fit(truth[:0, :, :2], mano=mano, intrinsics=K).residual.shape == (0,)


def test_mirrored_landmarks_give_the_mirrored_left_hand(mano):
    truth = mano(*hands(mano, 4, 15)).joints + 0.003 * torch.randn(4, 21, 3, generator=torch.Generator().manual_seed(16))
    right, left = fit(truth, mano=mano), fit(truth * MIRROR, mano=load_mano(side="left"))
    torch.testing.assert_close(left.hand_pose, -right.hand_pose * MIRROR.repeat(15), rtol=0, atol=1e-4)  # (x, −y, −z)
    torch.testing.assert_close(left.transl, right.transl * MIRROR, rtol=0, atol=1e-5)


def test_turned_landmarks_give_the_turned_hand(mano):
    truth = mano(*hands(mano, 4, 17)).joints + 0.003 * torch.randn(4, 21, 3, generator=torch.Generator().manual_seed(18))
    turn, shift = axis_angle_to_matrix(torch.tensor([0.4, -2.0, 1.0])), torch.tensor([0.3, -0.2, 1.0])
    here, there = fit(truth, mano=mano), fit(truth @ turn.T + shift, mano=mano)
    torch.testing.assert_close(there.hand_pose, here.hand_pose, rtol=0, atol=1e-4)
    torch.testing.assert_close(joints_of(mano, there), joints_of(mano, here) @ turn.T + shift, rtol=0, atol=1e-5)


def test_a_start_of_ones_own_helps_where_the_closed_form_is_blind_and_never_harms(mano):
    inputs = hands(mano, 6, 19, depth=0.5)
    truth = mano(*inputs).joints
    pixels = project(truth, K)
    cold = fit(pixels, mano=mano, intrinsics=K)
    warm = fit(pixels, mano=mano, intrinsics=K, init=dict(zip(("global_orient", "hand_pose", "betas", "transl"), inputs, strict=True)))
    assert error(mano, warm, truth).mean() <= error(mano, cold, truth).mean() + 1e-3
    far = fit(truth, mano=mano, init={"global_orient": inputs[0] + 2, "hand_pose": torch.zeros(6, 45), "transl": inputs[3] + 1})
    assert error(mano, far, truth).max() < 1e-3
    assert error(mano, fit(truth, mano=mano, init=fit(truth, mano=mano)), truth).max() < 1e-3


def test_better_of_takes_each_hand_from_where_it_explains_its_landmarks_better(mano):
    inputs = hands(mano, 4, 20)
    truth = mano(*inputs).joints
    names = ("global_orient", "hand_pose", "betas", "transl")
    exact = as_result(dict(zip(names, inputs, strict=True)), truth, mano=mano)
    assert exact.residual.max() < 1e-6
    pose = inputs[1].clone()
    pose[:2] += 0.5
    bent = as_result({"global_orient": axis_angle_to_matrix(inputs[0]), "hand_pose": pose, "transl": inputs[3]}, truth, mano=mano)
    pose = inputs[1].clone()
    pose[2:] += 0.5
    other = as_result({**dict(zip(names, inputs, strict=True)), "hand_pose": pose}, truth, mano=mano)
    best = better_of(bent, other)
    torch.testing.assert_close(best.hand_pose, inputs[1])
    assert torch.equal(best.residual, torch.minimum(bent.residual, other.residual))
    with pytest.raises(ValueError, match="4 hands against 2"):
        better_of(best, IKResult(*(x[:2] for x in best)))


# ---------------------------------------------------------------- derivatives and priors


def random_state(batch: int, seed: int) -> State:
    g = torch.Generator().manual_seed(seed)
    root, pose, transl, betas = (torch.randn(batch, n, generator=g).double() for n in (3, 45, 3, 10))
    return State(axis_angle_to_matrix(root), 0.5 * pose, transl, torch.zeros(batch, 1).double(), betas)


@pytest.mark.parametrize("tips", ["freihand", "ho3d"])
def test_landmarks_are_the_layers_and_the_jacobian_is_their_slope(tips):
    mano = load_mano(side="left").double()
    if tips == "ho3d":  # the stand-in's finger tips have no pose directions; MANO's have
        bulges = np.random.default_rng(0).normal(0, 5e-4, (778, 3, 135))
        mano = Mano.from_arrays({**standin_hand_arrays(), "posedirs": bulges}, "right").double()
    hand, state = hand_constants(mano, tips), random_state(3, 21)
    state.pose[0] = 0
    points, jacobian = landmarks_and_jacobian(hand, state, True)
    expected = fit_free_joints(mano, state, tips)
    torch.testing.assert_close(convert(points, "mano16_plus_tips", "freihand"), expected, rtol=0, atol=1e-9)
    columns = [c for c in range(62) if c != SCALE.start]
    for place, column in enumerate(columns):
        step = torch.zeros(3, 62).double()
        step[:, column] = 1e-6
        slope = (landmarks(hand, moved(state, step)) - landmarks(hand, moved(state, -step))) / 2e-6
        torch.testing.assert_close(jacobian[..., place], slope, rtol=0, atol=1e-8)


def fit_free_joints(mano: Mano, state: State, tips: str) -> torch.Tensor:
    fingers = axis_angle_to_matrix(state.pose.view(-1, 15, 3))
    return mano(state.root, fingers, state.betas, state.transl, pose_format="rotation_matrix", tips=tips).joints


def test_the_priors_gradient_is_the_slope_of_its_energy(mano):
    prior, zero = prior_of(mano), torch.zeros(2, 10).double()
    pose = random_state(2, 22).pose
    pose.requires_grad_()
    (slope,) = torch.autograd.grad(energy(prior, pose, zero).sum(), pose)
    gradient, hessian = pose_terms(prior, pose.detach())
    torch.testing.assert_close(2 * gradient, slope)
    assert (torch.linalg.eigvalsh(hessian) > 0).all()


def test_a_model_without_pose_statistics_has_a_prior_as_well():
    bare = {name: value for name, value in standin_hand_arrays().items() if name != "hands_coeffs"}
    mano = Mano.from_arrays(bare, "right")
    assert mano.pose_covariance is None and torch.equal(mano.pose_mean, mano.hands_mean)
    truth = mano(*hands(load_mano(), 4, 23)).joints
    assert error(mano, fit(truth, mano=mano), truth).max() < 1e-3


# ---------------------------------------------------------------- clips


def clip(mano: Mano, frames: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Joints (T, 21, 3) of a hand that turns, closes and moves, and its betas (1, 10)."""
    orient, pose, betas, transl = hands(mano, 2, 24, depth=0.5, shape=1.0)
    share = torch.linspace(0, 1, frames)[:, None]
    share = share * share * (3 - 2 * share)
    orient = orient[:1] * 0.3 + share * torch.tensor([[0.5, -0.6, 0.8]])
    mixed = [a[:1] * (1 - share) + a[1:] * share for a in (pose, transl)]
    return mano(orient, mixed[0], betas[:1].expand(frames, -1), mixed[1]).joints, betas[:1]


def test_a_clip_shares_its_shape_and_is_nearer_to_the_truth_than_its_frames(mano):
    truth, betas = clip(mano, 30)
    noisy = truth + 0.005 * torch.randn(truth.shape, generator=torch.Generator().manual_seed(25))
    together, alone = fit_clip(noisy, 30.0, mano=mano), fit(noisy, mano=mano, fit_shape=True)
    assert (together.betas == together.betas[0]).all()
    assert error(mano, together, truth).mean() < 0.85 * error(mano, alone, truth).mean()
    exact = fit_clip(truth, 30.0, mano=mano)
    assert error(mano, exact, truth).max() < 1e-3


def test_frames_without_landmarks_are_filled_in(mano):
    truth, betas = clip(mano, 20)
    given_joints, confidence = truth.clone(), torch.ones(20, 21)
    given_joints[8:11], confidence[8:11] = torch.nan, 0
    found = fit_clip(given_joints, 30.0, mano=mano, confidence=confidence, betas=betas, fit_shape=False)
    assert error(mano, found, truth)[8:11].max() < 5e-3
    with pytest.raises(ValueError, match="none of 20 frames"):
        fit_clip(given_joints, 30.0, mano=mano, confidence=torch.zeros(20, 21))


def test_a_clip_of_one_frame_is_a_fit(mano):
    truth, betas = clip(mano, 1)
    one, single = fit_clip(truth, 30.0, mano=mano, betas=betas, fit_shape=False), fit(truth, mano=mano, betas=betas)
    torch.testing.assert_close(joints_of(mano, one), joints_of(mano, single), rtol=0, atol=1e-4)
    with pytest.raises(ValueError, match="fps=0"):
        fit_clip(truth, 0, mano=mano)
    with pytest.raises(ValueError, match="pixels need intrinsics"):
        fit_clip(truth[..., :2], 30, mano=mano)


# ---------------------------------------------------------------- bad input


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda j: {"joints": j[:, :20]}, r"shape \(2, 20, 3\).*20 joints are not a hand's 21"),
        (lambda j: {"joints": j[0]}, r"joints\[None\]"),
        (lambda j: {"joints": 1000 * j}, "hand 0: the landmarks span .* millimetres: divide by 1000"),
        (lambda j: {"joints": 1e-4 * j}, "fit_scale=True"),
        (lambda j: {"joints": j.index_fill(1, torch.tensor([5]), torch.nan)}, "hand 0: index_1 is .nan, nan, nan. with confidence 1"),
        (lambda j: {"joints": torch.ones(2, 21, 3)}, "hand 0: all landmarks are equal"),
        (lambda j: {"joints": torch.full((2, 21, 2), 40.0)}, "all landmarks are equal"),
        (lambda j: {"joints": j, "confidence": torch.ones(2, 20)}, r"confidence has shape \(2, 20\)"),
        (lambda j: {"joints": j, "confidence": -torch.ones(21)}, "confidence must be finite and ≥ 0"),
        (lambda j: {"joints": j, "confidence": torch.eye(21)[0]}, "1 landmarks have a confidence above 0"),
        (lambda j: {"joints": j, "intrinsics": K}, "landmarks in space need none"),
        (lambda j: {"joints": j[..., :2], "intrinsics": K[:2]}, "intrinsics have shape"),
        (lambda j: {"joints": j[..., :2], "intrinsics": -K}, "fx, fy > 0"),
        (lambda j: {"joints": j[..., :2], "intrinsics": K, "fit_scale": True}, "a larger hand farther away looks the same"),
        (lambda j: {"joints": j, "betas": torch.zeros(2, 9)}, "betas has shape"),
        (lambda j: {"joints": j, "init": {"pose": j}}, "init has pose"),
        (lambda j: {"joints": j, "init": 3}, "init is a int"),
        (lambda j: {"joints": j, "tips": "mine"}, "tips='mine'"),
        (lambda j: {"joints": j, "noise": -1.0}, "noise=-1.0"),
    ],
)
def test_bad_input_is_refused_with_the_reason(mano, change, message):
    joints = mano(*hands(mano, 2, 26)).joints
    with pytest.raises(ValueError, match=message):
        fit(**change(joints), mano=mano)


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 1000), size=st.floats(0.05, 0.5), flat=st.booleans())
def test_any_cloud_of_points_gives_finite_parameters(mano, seed, size, flat):
    cloud = np.random.default_rng(seed).uniform(-0.5, 0.5, (1, 21, 3)) * size
    if flat:
        cloud[..., 2] = cloud[..., 1] = 0
    found = fit(cloud, mano=mano, max_iterations=5)
    assert all(torch.isfinite(x).all() for x in found)
    assert found.hand_pose.dtype == torch.float64
