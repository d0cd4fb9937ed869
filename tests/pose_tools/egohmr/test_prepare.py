"""A user's own picture and scan, from files' arrays to bodies; everything that can be wrong with them."""

import numpy as np
import pytest
import torch

from pose_tools.egohmr.prepare import around_person, prepare_scene
from pose_tools.egohmr.scene import SceneError
from tests.pose_tools.egohmr.small import small_stage1, small_stage2

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (240, 320, 3), dtype=np.uint8)
INTRINSICS = np.array([[300.0, 0, 158], [0, 301, 122], [0, 0, 1]])
SCENE = RNG.uniform([-2, -1, 0.2], [2, 1.2, 6], (2000, 3))
BOX = (120, 60, 220, 260)


def test_a_picture_of_any_size_goes_through_both_stages():
    batch, assumed = prepare_scene(IMAGE, BOX, INTRINSICS, SCENE, side=64, target=500)
    assert assumed and "visible" in assumed[0]
    assert batch["img"].shape == (1, 3, 64, 64)
    assert batch["box_size"].tolist() == [240.0] and batch["box_center"].tolist() == [[170.0, 160.0]]
    with torch.no_grad():
        first = small_stage1()(batch, 2)
        inside = first["transl"][:, 0].clamp(-1, 3)
        batch["scene_pcd_verts_full"] = around_person(SCENE, inside[0], target=500)
        out = small_stage2().sample(batch | {"stage1_transl_full": inside}, 3, "ddim5")
    assert out["vertices"].shape == (1, 3, 6890, 3) and torch.isfinite(out["vertices"]).all() and out["visible"].all()
    points = np.concatenate([RNG.uniform(0, 240, (25, 2)), np.ones((25, 1))], 1)
    points[3] = np.nan
    batch, assumed = prepare_scene(IMAGE, BOX, INTRINSICS, SCENE, points, side=32, target=50)
    found = batch["orig_keypoints_2d"][0].numpy()
    assert not assumed and found[3, 2] == 0 and np.allclose((found[4, :2] + 0.5) * [320, 240], points[4, :2], atol=1e-3)


def test_the_cube_is_upright_whichever_way_the_camera_looks():
    level = around_person(SCENE, (0, 0, 3), target=100)[0].numpy()
    assert np.abs(level[:, [0, 2]] - [0, 3]).max() <= 1 + 1e-5
    assert np.linalg.norm(SCENE[None] - level[:, None], axis=-1).min(1).max() < 1e-5  # the scan's own points, nothing moved
    turn = np.array([[0.0, 1, 0], [-1, 0, 0], [0, 0, 1]])  # a camera lying on its side
    tilted = around_person(SCENE @ turn.T, turn @ [0, 0, 3], up=turn @ [0, -1, 0], target=100)[0].numpy()
    height = tilted @ (turn @ [0, -1, 0])
    assert height.max() - height.min() <= 2 + 1e-5 and np.abs(tilted @ turn[:, 2] - 3).max() <= 1 + 1e-5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox_xyxy": (400, 10, 500, 90)}, "outside the picture"),
        ({"bbox_xyxy": (50, 10, 50, 90)}, "x1 < x2"),
        ({"intrinsics": None}, "focal length"),
        ({"intrinsics": np.diag([300.0, 200, 1])}, "square pixels"),
        ({"intrinsics": np.zeros((3, 3))}, "positive focal"),
        ({"scene": None}, "scanned scene"),
        ({"scene": -SCENE}, "in front"),
        ({"scene": np.full((10, 3), np.nan)}, "finite"),
        ({"keypoints_2d": np.zeros((17, 3))}, "BODY_25"),
        ({"image": IMAGE[..., 0]}, "RGB"),
    ],
)
def test_what_does_not_fit_is_said(change, message):
    given = {"image": IMAGE, "bbox_xyxy": BOX, "intrinsics": INTRINSICS, "scene": SCENE} | change
    with pytest.raises((ValueError, SceneError), match=message):
        prepare_scene(**given)


def test_ten_points_are_a_scene():
    batch, _ = prepare_scene(IMAGE, BOX, INTRINSICS, SCENE[:10], side=32, target=64)
    assert batch["scene_pcd_verts_full"].shape == (1, 64, 3)
