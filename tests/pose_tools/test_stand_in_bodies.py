"""The licence-free hand and body: closed or open where they should be, of the right size, and without skin that cuts itself."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.spatial import cKDTree

from pose_tools.body_models import (
    articulation,
    load_mano,
    load_smpl,
    standin_body_arrays,
    standin_hand_arrays,
)
from pose_tools.body_models.kinematics import TIP_VERTICES


def edges_of(faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    directed = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    return directed, np.unique(np.sort(directed, 1), axis=0)


def crossings(vertices: np.ndarray, faces: np.ndarray) -> int:
    """How often an edge of one triangle passes through another triangle that shares no vertex with it."""
    corners = vertices[faces]
    centre = corners.mean(1)
    reach = np.linalg.norm(corners - centre[:, None], axis=2).max(1)
    near = cKDTree(centre).query_pairs(2 * reach.max(), output_type="ndarray")
    near = near[np.linalg.norm(centre[near[:, 0]] - centre[near[:, 1]], axis=1) < reach[near].sum(1)]
    pairs = np.concatenate([near, near[:, ::-1]])
    apart = ~(faces[pairs[:, 0]][:, :, None] == faces[pairs[:, 1]][:, None, :]).any((1, 2))
    pairs = pairs[apart]
    a, b, c = (corners[pairs[:, 1], k] for k in range(3))
    found = 0
    for k in range(3):
        p, d = corners[pairs[:, 0], k], corners[pairs[:, 0], (k + 1) % 3] - corners[pairs[:, 0], k]
        h = np.cross(d, c - a)
        det = ((b - a) * h).sum(1)
        det = np.where(np.abs(det) < 1e-20, np.nan, det)
        s = p - a
        q = np.cross(s, b - a)
        u, v, t = (s * h).sum(1) / det, (d * q).sum(1) / det, ((c - a) * q).sum(1) / det
        found += int(((u > 0) & (v > 0) & (u + v < 1) & (t > 0) & (t < 1)).sum())
    return found


def test_crossings_finds_a_crossing():
    points = np.array([[0, 0, 0], [1, 0, 0], [0, 1, 0], [0.2, 0.2, -0.5], [0.2, 0.2, 0.5], [0.9, 0.9, 0.5]], float)
    faces = np.array([[0, 1, 2], [3, 4, 5]])
    assert crossings(points, faces) > 0
    points[3:, 2] += 1
    assert crossings(points, faces) == 0


def test_hand_mesh_is_one_sheet_with_an_open_wrist_and_no_self_intersection():
    a = standin_hand_arrays()
    faces = a["f"].astype(int)
    directed, edges = edges_of(faces)
    assert a["v_template"].shape == (778, 3) and faces.shape == (1538, 3)
    assert len(np.unique(directed, axis=0)) == len(directed), "every edge is walked once each way"
    assert 778 - len(edges) + 1538 == 1, "a disc"
    rim = {tuple(e) for e in directed} - {tuple(e[::-1]) for e in directed}
    assert len(rim) == 16
    assert np.ptp(a["v_template"][[i for i, _ in rim], 0]) < 1e-12, "the wrist is cut straight"
    assert crossings(a["v_template"], faces) == 0
    area = np.linalg.norm(np.cross(*(a["v_template"][faces[:, k]] - a["v_template"][faces[:, 0]] for k in (1, 2))), axis=1) / 2
    assert area.min() > 1e-6


def test_hand_has_manos_size_axes_and_tips():
    a = standin_hand_arrays()
    joints = load_mano()(torch.zeros(1, 3), torch.zeros(1, 45)).joints[0].numpy()
    np.testing.assert_allclose(a["J"][0], [0.0957, 0.0064, 0.0062], atol=1e-12)
    assert 0.17 < np.linalg.norm(joints[12] - joints[0]) < 0.19
    tips = joints[[4, 8, 12, 16, 20]]
    assert tips[:, 0].argmin() == 2 and tips[0, 2] == tips[:, 2].max(), "fingers along −x, the middle one longest; thumb towards +z"
    for ids in TIP_VERTICES.values():
        assert np.linalg.norm(a["v_template"][list(ids)] - tips, axis=1).max() < 0.007
    faces = a["f"].astype(int)
    p, q, r = (a["v_template"][faces[:, k]] for k in range(3))
    assert np.einsum("fk,fk->", p - joints[0], np.cross(q - joints[0], r - joints[0])) > 0, "faces look outward"


def test_hand_arrays_are_consistent_and_always_the_same():
    a = standin_hand_arrays()
    weights, regressor = a["weights"], a["J_regressor"].toarray()
    assert weights.min() >= 0 and regressor.min() >= 0
    np.testing.assert_allclose(weights.sum(1), 1, atol=1e-12)
    np.testing.assert_allclose(regressor.sum(1), 1, atol=1e-9)
    np.testing.assert_allclose(a["hands_components"] @ a["hands_components"].T, np.eye(45), atol=1e-12)
    _, edges = edges_of(a["f"].astype(int))
    assert np.abs(weights[edges[:, 0]] - weights[edges[:, 1]]).max() < 0.65, "no edge jumps from one bone to another"
    standin_hand_arrays.cache_clear()
    again = standin_hand_arrays()
    for name in ("v_template", "f", "weights", "shapedirs", "posedirs", "hands_coeffs"):
        np.testing.assert_array_equal(again[name], a[name])


def test_hand_keeps_its_skin_apart_in_shapes_and_open_poses():
    mano, faces = load_mano(), standin_hand_arrays()["f"].astype(int)
    poses = torch.tensor(np.array([articulation.named_pose(n) for n in ("relaxed", "pinch", "grasp", "spread")]), dtype=torch.float32)
    betas = torch.randn(4, 10, generator=torch.Generator().manual_seed(0))
    for vertices in (mano(torch.zeros(4, 3), poses).vertices, mano(torch.zeros(4, 3), torch.zeros(4, 45), betas).vertices):
        assert [crossings(v.double().numpy(), faces) for v in vertices] == [0] * 4


def test_fist_closes_and_pinch_meets():
    mano = load_mano()
    poses = torch.tensor(np.array([articulation.named_pose(n) for n in ("flat", "fist", "pinch")]), dtype=torch.float32)
    joints = mano(torch.zeros(3, 3), poses).joints
    reach = (joints[:, [8, 12, 16, 20]] - joints[:, :1]).norm(dim=-1)
    assert (reach[1] < 0.65 * reach[0]).all()
    assert (joints[2, 4] - joints[2, 8]).norm() < 0.02 < (joints[0, 4] - joints[0, 8]).norm()
    with pytest.raises(ValueError, match="no hand pose named 'wave'"):
        articulation.named_pose("wave")


def test_body_mesh_is_closed_and_stands_as_smpl_does():
    a = standin_body_arrays()
    faces = a["f"].astype(int)
    directed, edges = edges_of(faces)
    assert a["v_template"].shape == (6890, 3) and faces.shape == (13776, 3)
    assert 6890 - len(edges) + 13776 == 2 and {tuple(e) for e in directed} == {tuple(e[::-1]) for e in directed}
    p, q, r = (a["v_template"][faces[:, k]] for k in range(3))
    assert 0.05 < np.einsum("fk,fk->", p, np.cross(q, r)) / 6 < 0.10, "a body of 50 to 100 litres, faces outward"
    height = np.ptp(a["v_template"][:, 1])
    assert 1.6 < height < 1.8 and abs(np.ptp(a["v_template"][:, 0]) - height) < 0.1
    joints = load_smpl()(torch.zeros(1, 3), torch.zeros(1, 69)).joints[0].numpy()
    np.testing.assert_allclose(joints, a["J"], atol=1e-6)
    assert joints[1, 0] > 0 > joints[2, 0] and joints[22, 0] > 0.6 and joints[10, 2] > joints[7, 2], "left is +x, toes ahead"
    np.testing.assert_allclose(a["weights"].sum(1), 1, atol=1e-12)
    assert crossings(a["v_template"], faces) == 0
