"""The user's own MANO files: the checks that the stand-in passes, on $HANDVLM_MANO (a folder or MANO_RIGHT.pkl); skipped without."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch

from pose_tools.body_models import Mano, load_mano, smplx_adapter
from pose_tools.body_models.checks import side_of
from pose_tools.body_models.read import read_arrays
from pose_tools.geometry import axis_angle_to_matrix
from pose_tools.mano.ik import fit

PATH = os.environ.get("HANDVLM_MANO")
pytestmark = pytest.mark.skipif(not PATH, reason="HANDVLM_MANO is not set: name your MANO folder or MANO_RIGHT.pkl to run these")


@pytest.fixture(scope="module")
def mano() -> Mano:
    return load_mano(PATH)


def parameters(batch: int, seed: int = 0) -> tuple[torch.Tensor, ...]:
    g = torch.Generator().manual_seed(seed)
    return tuple(scale * torch.randn(batch, n, generator=g) for n, scale in ((3, 1.0), (45, 0.4), (10, 1.0), (3, 0.2)))


def test_values_and_gradients_agree_with_smplx(mano):
    pytest.importorskip("smplx")
    theirs = smplx_adapter.mano_layer(read_arrays(_right_file()), "right")
    orient, pose, betas, transl = parameters(4)
    rotations = axis_angle_to_matrix(torch.cat([orient, pose], 1).view(4, 16, 3))
    gradients = []
    for layer in (mano, theirs):
        given = [x.clone().requires_grad_() for x in (rotations, betas, transl)]
        if layer is mano:
            out = mano(given[0][:, 0], given[0][:, 1:], given[1], given[2], pose_format="rotation_matrix")
            vertices, joints = out.vertices, out.joints_16
        else:
            out = theirs(global_orient=given[0][:, :1], hand_pose=given[0][:, 1:], betas=given[1], transl=given[2])
            vertices, joints = out.vertices, out.joints[:, :16]
        weights = torch.linspace(-1, 1, vertices[0].numel()).view_as(vertices[0])
        total = (vertices * weights).sum() + joints.square().sum()
        gradients.append((vertices.detach(), joints.detach(), *torch.autograd.grad(total, given)))
    for ours, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, expected, rtol=1e-4, atol=1e-5)


def test_gradients_are_finite_at_zero_and_half_turns(mano):
    for angle in (0.0, np.pi):
        orient, pose = torch.tensor([[0.0, angle, 0.0]], requires_grad=True), torch.zeros(1, 45)
        pose[:, ::3] = angle
        pose.requires_grad_()
        for grad in torch.autograd.grad(mano(orient, pose).vertices.square().sum(), (orient, pose)):
            assert torch.isfinite(grad).all()


def test_it_is_a_right_hand_of_human_size_with_tips_at_its_fingers_ends(mano):
    assert side_of(read_arrays(_right_file())) == "right"
    rest = mano(torch.zeros(1, 3), torch.zeros(1, 45))
    reach = (rest.joints[0, 1:] - rest.joints[0, :1]).norm(dim=1).view(5, 4)
    assert 0.13 < float(reach.max()) < 0.23 and (reach.diff(dim=1)[1:] > 0).all()


def test_exact_landmarks_come_back(mano):
    orient, pose, betas, transl = parameters(16)
    truth = mano(orient, 0.5 * pose, betas, transl).joints
    found = fit(truth, mano=mano, betas=betas)
    posed = mano(found.global_orient, found.hand_pose, found.betas, found.transl).joints * found.scale[:, None, None]
    assert (posed - truth).norm(dim=2).mean(1).median() < 1e-3


def _right_file() -> Path:
    path = Path(str(PATH))
    return next(path.glob("MANO_RIGHT.*")) if path.is_dir() else path
