"""What the tests of the hand readers share: the agreement of a sample's parts."""

from __future__ import annotations

import numpy as np

from pose_tools.geometry import project


def assert_sample_agrees(sample, hand, *, atol: float = 2e-6) -> None:
    """A HandSample equals the world's labelled hand, and its own parts agree."""
    assert sample.side == hand.side and sample.joints_valid.all()
    np.testing.assert_allclose(sample.joints_3d, hand.joints, atol=atol)
    np.testing.assert_allclose(project(sample.joints_3d, sample.intrinsics), sample.joints_2d, atol=1e-6)
    if sample.pose is not None:
        np.testing.assert_allclose(sample.pose.joints_3d, hand.joints, atol=atol)
        np.testing.assert_allclose(sample.vertices, hand.vertices, atol=atol)
        np.testing.assert_allclose(sample.pose.hand_pose, hand.hand_pose, atol=atol)
        np.testing.assert_allclose(sample.pose.betas, hand.betas, atol=atol)
        np.testing.assert_allclose(sample.pose.transl, hand.transl, atol=atol)
