"""Rotations against the recordings, SciPy and themselves; finite gradients where formulas break; projection; alignment."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.spatial.transform import Rotation

from pose_tools.geometry import (
    axis_angle_to_matrix,
    matrix_to_axis_angle,
    matrix_to_rotation_6d,
    project,
    rotation_6d_to_matrix,
    similarity,
)

RECORDED = np.load(Path(__file__).parents[1] / "fixtures/egohmr/rotations.npz")
ORDERS = ["column", "row", "prohmr"]
HARD = [[0, 0, 0], [1e-12, 0, 0], [1e-8, -1e-8, 0], [1e-4, 0, 2e-4], [np.pi, 0, 0], [0, np.pi, 0], [0, 0, np.pi]]
HARD += [[np.pi / 2**0.5, -np.pi / 2**0.5, 0], [3.14159, 0, 1e-7], [0, np.pi - 1e-6, 0], [2.2, -1.9, 1.2]]


def recorded(name: str) -> torch.Tensor:
    return torch.from_numpy(RECORDED[name])


def test_recorded_axis_angle():
    assert (axis_angle_to_matrix(recorded("aa")) - recorded("rotmat")).abs().max() < 1e-6
    assert (axis_angle_to_matrix(matrix_to_axis_angle(recorded("rotmat"))) - recorded("rotmat")).abs().max() < 2e-6


def test_recorded_6d():
    assert torch.equal(matrix_to_rotation_6d(recorded("rotmat"), "row"), recorded("rot6d_rowmajor"))
    for order, name in (("prohmr", "rotmat_prohmr"), ("column", "rotmat_prohmr"), ("row", "rotmat_diffusion")):
        # Degenerate inputs are among them: parallel columns, zero columns.
        assert (rotation_6d_to_matrix(recorded("d6"), order) - recorded(name)).abs().max() < 1e-6


def test_recorded_projection():
    for points, (*shift, fx, fy, cx, cy), pixels in zip(*(RECORDED[k] for k in ("proj_points", "proj_args", "proj")), strict=True):
        projected = project(points + shift, np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]]))
        assert np.abs(projected - pixels).max() < 1e-3  # pixels, recorded in float32


@settings(max_examples=100, deadline=None)
@given(vector=st.lists(st.floats(-6, 6), min_size=3, max_size=3))
def test_matrices_agree_with_scipy(vector):
    matrix = axis_angle_to_matrix(torch.tensor(vector, dtype=torch.float64))
    assert np.abs(matrix.numpy() - Rotation.from_rotvec(vector).as_matrix()).max() < 1e-12
    back = matrix_to_axis_angle(matrix)
    assert back.norm() <= np.pi + 1e-9
    assert (axis_angle_to_matrix(back) - matrix).abs().max() < 1e-9


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("vector", HARD)
def test_zero_and_half_turns(vector, dtype):
    x = torch.tensor(vector, dtype=dtype, requires_grad=True)
    matrix = axis_angle_to_matrix(x)
    eps = torch.finfo(dtype).eps
    assert (matrix @ matrix.T - torch.eye(3, dtype=dtype)).abs().max() < 20 * eps
    assert (axis_angle_to_matrix(matrix_to_axis_angle(matrix)) - matrix).abs().max() < 20 * eps
    weights = torch.arange(9, dtype=dtype).reshape(3, 3)
    (gradient,) = torch.autograd.grad((matrix * weights).sum(), x)
    assert torch.isfinite(gradient).all()
    leaf = matrix.detach().requires_grad_()
    (gradient_back,) = torch.autograd.grad(matrix_to_axis_angle(leaf).sum(), leaf)
    assert torch.isfinite(gradient_back).all() and gradient_back.abs().max() < 100
    if dtype == torch.float64:
        step = 1e-6 * torch.eye(3, dtype=dtype)
        moved = [((axis_angle_to_matrix(x.detach() + d) - axis_angle_to_matrix(x.detach() - d)) * weights).sum() / 2e-6 for d in step]
        assert (gradient - torch.stack(moved)).abs().max() < 1e-5


def test_the_chain_through_both_is_the_identity_at_zero():
    x = torch.zeros(3, dtype=torch.float64, requires_grad=True)
    jacobian = torch.autograd.functional.jacobian(lambda v: matrix_to_axis_angle(axis_angle_to_matrix(v)), x)
    assert (jacobian - torch.eye(3, dtype=torch.float64)).abs().max() < 1e-9


@pytest.mark.parametrize("size", [0.0, 1e-9, 1e-7, 9e-3, 1.1e-2])
def test_the_slope_near_zero_is_that_of_the_matrix_exponential(size):
    x = torch.tensor([size, -0.5 * size, 0.25 * size], dtype=torch.float64)

    def exponential(v):
        zero = torch.zeros((), dtype=v.dtype)
        return torch.linalg.matrix_exp(torch.stack([zero, -v[2], v[1], v[2], zero, -v[0], -v[1], v[0], zero]).view(3, 3))

    slope, expected = (torch.autograd.functional.jacobian(f, x) for f in (axis_angle_to_matrix, exponential))
    assert (slope - expected).abs().max() < 1e-14


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_6d_round_trip_and_batch_equals_single(order, count):
    vectors = torch.from_numpy(np.random.default_rng(count).normal(size=(count, 3)))
    matrices = axis_angle_to_matrix(vectors)
    six = matrix_to_rotation_6d(matrices, order)
    assert (rotation_6d_to_matrix(six, order) - matrices).abs().max() < 1e-12
    # A batch of exactly three is where a cross product without dim goes wrong.
    single = torch.stack([rotation_6d_to_matrix(row * 3, order) for row in six])
    assert (single - rotation_6d_to_matrix(six * 3, order)).abs().max() < 1e-12
    assert (torch.linalg.det(rotation_6d_to_matrix(torch.randn(count, 2, 6), order)) - 1).abs().max() < 1e-5


@pytest.mark.parametrize("order", ORDERS)
def test_6d_gradients_are_finite_for_degenerate_input(order):
    x = torch.tensor([[0.0] * 6, [1, 1, 1, 1, 1, 1], [1, 0, 0, 0, 0, 0]], requires_grad=True)
    rotation_6d_to_matrix(x, order).sum().backward()
    assert torch.isfinite(x.grad).all()


def test_project_is_the_pinhole_in_both_libraries():
    rng = np.random.default_rng(0)
    points, k = rng.uniform(0.2, 1, (4, 21, 3)), np.array([[500.0, 0, 96], [0, 510, 90], [0, 0, 1]])
    pixels = project(points, k)
    assert np.allclose(pixels, np.stack([points[..., 0] / points[..., 2] * 500 + 96, points[..., 1] / points[..., 2] * 510 + 90], -1))
    assert np.allclose(project(torch.from_numpy(points), torch.from_numpy(k)).numpy(), pixels)
    assert np.allclose(project(points, np.stack([k] * 4)), pixels)
    assert np.isfinite(project(np.zeros((1, 3)), k)).all()
    with pytest.raises(ValueError, match=r"intrinsics must have shape \(…, 3, 3\), got \(4, 4\)"):
        project(points, np.eye(4))


def test_similarity_finds_what_was_applied():
    rng = np.random.default_rng(1)
    source = rng.normal(size=(5, 21, 3))
    rotation = Rotation.random(5, random_state=2).as_matrix()
    scale, shift = rng.uniform(0.1, 4, 5), rng.normal(size=(5, 3))
    target = scale[:, None, None] * (source @ rotation.transpose(0, 2, 1)) + shift[:, None]
    found = similarity(source, target)
    assert np.allclose(found.scale, scale) and np.allclose(found.rotation, rotation) and np.allclose(found.translation, shift)
    assert np.allclose(found.apply(source), target) and not found.mirrored.any()
    one = similarity(source[2], target[2])
    assert np.allclose(one.rotation, rotation[2]) and np.isclose(one.scale, scale[2])


def test_similarity_and_reflections():
    source = np.random.default_rng(3).normal(size=(21, 3))
    mirrored = source * [-1, 1, 1]
    strict, free = similarity(mirrored, source), similarity(mirrored, source, allow_reflection=True)
    assert strict.mirrored and np.isclose(np.linalg.det(strict.rotation), 1)
    assert np.allclose(free.apply(mirrored), source) and np.isclose(np.linalg.det(free.rotation), -1)
    assert not similarity(source * [1, 1, 0], source * [-1, 1, 0]).mirrored  # flat: its mirror image is a rotation
    rigid = similarity(source * 3, source, with_scale=False)
    assert np.isclose(rigid.scale, 1) and np.allclose(rigid.rotation, np.eye(3))
    assert np.allclose(similarity(np.ones((4, 3)), source[:4]).apply(np.ones((4, 3))), source[:4].mean(0))


def test_a_weight_counts_like_repeated_points_and_zero_like_absent_ones():
    rng = np.random.default_rng(4)
    source, target = rng.normal(size=(2, 6, 3))
    counts = np.array([1, 3, 0, 2, 1, 4])
    found = similarity(source, target, weights=2.5 * counts)
    repeated = similarity(np.repeat(source, counts, 0), np.repeat(target, counts, 0))
    for a, b in zip(found, repeated, strict=True):
        assert np.allclose(a, b)
    with pytest.raises(ValueError, match="weights"):
        similarity(source, target, weights=np.zeros(6))


def test_errors_say_what_was_got():
    with pytest.raises(ValueError, match=r"expected shape \(…, 6\), got \(2, 5\)"):
        rotation_6d_to_matrix(torch.zeros(2, 5))
    with pytest.raises(ValueError, match="'column', 'row' or 'prohmr', got 'rows'"):
        rotation_6d_to_matrix(torch.zeros(6), "rows")
    with pytest.raises(TypeError, match="expected a torch tensor, got ndarray"):
        axis_angle_to_matrix(np.zeros(3))
    with pytest.raises(ValueError, match="finite"):
        similarity(np.full((3, 3), np.nan), np.zeros((3, 3)))
