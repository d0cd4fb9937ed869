"""Capsules around the body's bones, the box's points, and the interfaces of COAP and VolumetricSMPL."""

import types

import pytest
import torch

from pose_tools.body_models import load_smpl
from pose_tools.egohmr.body import PosedBody, pose_body
from pose_tools.egohmr.collision import CapsuleField, CoapField, VolumetricSmplField, collision_ratio, inside_box, near_points, penetration
from pose_tools.egohmr.compat import first_points
from pose_tools.geometry import axis_angle_to_matrix


@pytest.fixture(scope="module")
def smpl():
    return load_smpl()


@pytest.fixture(scope="module")
def field(smpl):
    return CapsuleField(smpl)


def standing(smpl, batch=1, bend=0.0):
    pose = axis_angle_to_matrix(torch.zeros(batch, 24, 3) + bend)
    return pose_body(smpl, pose, torch.zeros(batch, 10))


def test_capsules_have_the_bodys_size(smpl, field):
    body = standing(smpl)
    assert (field.radius > 0.01).all() and (field.radius < 0.25).all()
    distance = field.signed_distance(body, body.vertices)[0]
    # its surface is near the skin, and its inside the bones'
    assert distance.abs().median() < 0.03 and distance.abs().quantile(0.9) < 0.08
    assert field.inside(body, body.joints)[0].float().mean() > 0.9
    far = body.vertices.amax(1)[:, None] + 0.5
    assert not field.inside(body, far).any() and (field.signed_distance(body, far) > 0.5).all()


def test_penetration_pushes_the_body_off_a_point(smpl, field):
    pose = (0.05 * torch.randn(1, 24, 3, generator=torch.Generator().manual_seed(0))).requires_grad_()
    knee = standing(smpl).joints[:, 4:5].detach()
    points = torch.cat([knee + torch.tensor([0.02, -0.1, 0.03]), knee + 5], 1)
    deep = penetration(field, pose_body(smpl, axis_angle_to_matrix(pose), torch.zeros(1, 10)), points)
    (gradient,) = torch.autograd.grad(deep.sum(), pose)
    assert deep > 0 and torch.isfinite(gradient).all() and gradient[0, 1].abs().sum() > 0
    with torch.no_grad():
        after = pose - 0.05 * gradient / gradient.norm()
        assert penetration(field, pose_body(smpl, axis_angle_to_matrix(after), torch.zeros(1, 10)), points) < deep


def test_guidance_by_few_vertices_is_that_by_all(smpl, field):
    pose = axis_angle_to_matrix(0.2 * torch.randn(3, 24, 3, generator=torch.Generator().manual_seed(4)))
    betas = 0.5 * torch.randn(3, 10, generator=torch.Generator().manual_seed(5))
    whole, few = pose_body(smpl, pose, betas), pose_body(field.lean.body, pose, betas)
    assert few.vertices.shape[1] < 500
    torch.testing.assert_close(few.joints, whole.joints, rtol=0, atol=1e-6)
    points = whole.joints[:, :1] + 0.5 * torch.randn(3, 400, 3, generator=torch.Generator().manual_seed(6))
    torch.testing.assert_close(field.lean.signed_distance(few, points), field.signed_distance(whole, points), rtol=0, atol=1e-5)
    low, high = field.lean.box(few)
    inside = field.inside(whole, points)
    assert inside.any() and inside_box(few, points, (low, high))[inside].all()


def test_only_points_in_the_box_count_packed_or_not(smpl, field):
    body = standing(smpl, 3, bend=0.05)
    points = body.joints[:, :1] + 0.6 * torch.randn(3, 500, 3, generator=torch.Generator().manual_seed(1))
    near, valid = near_points(body, points)
    mask = inside_box(body, points)
    assert [len(row[ok]) for row, ok in zip(near, valid, strict=True)] == mask.sum(1).tolist()
    whole = (field.penetration(body, points) * mask).sum(1)
    torch.testing.assert_close(penetration(field, body, points), whole, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(collision_ratio(field, body, points), (field.inside(body, points) & mask).float().mean(1))
    few, few_valid = near_points(body, points, most=20)
    assert few.shape[1] <= 20 and few_valid.sum(1).min() > 9
    away = points + 50
    assert (penetration(field, body, away) == 0).all() and (collision_ratio(field, body, away) == 0).all()


def test_the_published_loss_drops_late_points_of_crowded_clouds(smpl):
    body = standing(smpl)
    points = body.joints[:, :1] + 0.01 * torch.randn(1, 9000, 3, generator=torch.Generator().manual_seed(2))
    assert inside_box(body, first_points(body, points)).sum() == 4000
    assert torch.equal(first_points(body, points[:, :3999]), points[:, :3999])


def test_coap_and_volumetric_smpl_get_smplx_outputs(smpl):
    seen = []

    def query(points, output):
        seen.append(output)
        return (points - output.joints[:, :1]).norm(dim=-1)

    volume = types.SimpleNamespace(query=lambda points, output: query(points, output) - 0.2)
    model = types.SimpleNamespace(coap=types.SimpleNamespace(query=query), volume=volume)
    body = standing(smpl, 2, bend=0.1)
    points = body.joints[:, :1] + torch.tensor([[[0.1, 0, 0], [0, 0.7, 0]]])
    assert CoapField(model).inside(body, points).tolist() == [[False, True]] * 2
    assert VolumetricSmplField(model).inside(body, points).tolist() == [[True, False]] * 2
    torch.testing.assert_close(CoapField(model).penetration(body, points), torch.tensor([[0.0, 0.2]] * 2))
    torch.testing.assert_close(VolumetricSmplField(model).penetration(body, points), torch.tensor([[0.1, 0.0]] * 2))
    torch.testing.assert_close(seen[0].full_pose, torch.full((2, 72), 0.1), rtol=1e-4, atol=1e-5)
    assert isinstance(body, PosedBody) and seen[0].vertices is body.vertices
