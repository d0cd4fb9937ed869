"""Which way is up in a scan, how a body stands, its pictures and files."""

import numpy as np
import pytest
import torch

from pose_tools.body_models import load_smpl
from pose_tools.egohmr.export import export_bodies
from pose_tools.egohmr.pictures import in_picture, in_scene, panels
from pose_tools.egohmr.recover import LEVEL, box_of_keypoints, facing, posture, upward
from pose_tools.geometry import axis_angle_to_matrix
from pose_tools.types import BodyPose

RNG = np.random.default_rng(0)
CAMERA = np.array([[150.0, 0, 80], [0, 150, 60], [0, 0, 1]])


def room() -> np.ndarray:
    """A floor, a wall and a table, a level camera's frame."""
    floor = np.concatenate([RNG.uniform([-2, 1.4, 1], [2, 1.4, 5], (1500, 3)), RNG.uniform([-1, 0.7, 2], [0, 0.7, 3], (300, 3))])
    return np.concatenate([floor, RNG.uniform([-2, -1, 5], [2, 1.4, 5], (2500, 3))]) + RNG.normal(0, 0.003, (4300, 3))


@pytest.mark.parametrize("pitch", [-35.0, -10.0, 0.0, 30.0])
def test_up_is_found_however_the_camera_is_tilted(pitch):
    turn = axis_angle_to_matrix(torch.tensor([np.radians(pitch), 0.0, 0.1])).numpy()
    found, known = upward(room() @ turn.T)
    assert known and np.degrees(np.arccos(np.clip(found @ turn @ LEVEL, -1, 1))) < 1.5


def test_a_wall_alone_does_not_say_what_is_up():
    wall = RNG.uniform([-2, -1, 5], [2, 1.4, 5], (800, 3))
    assert not upward(wall)[1] and not upward(wall[:20])[1]


@pytest.fixture(scope="module")
def smpl():
    return load_smpl()


def body(smpl, orient=(np.pi, 0, 0), **bent) -> tuple[np.ndarray, np.ndarray, BodyPose]:
    pose = torch.zeros(1, 69)
    for joint, angle in bent.items():
        pose[0, 3 * (int(joint[1:]) - 1)] = angle
    orient, transl = torch.tensor([orient], dtype=torch.float32), torch.tensor([[0.0, 0.3, 3.0]])
    with torch.no_grad():
        out = smpl(orient, pose, torch.zeros(1, 10), transl)
    joints = out.joints[0].double().numpy()
    return out.vertices[0].double().numpy(), joints, BodyPose(orient[0].numpy(), pose[0].numpy(), np.zeros(10), transl[0].numpy(), joints)


def test_postures_and_directions(smpl):
    up = np.array(LEVEL)
    _, standing, pose = body(smpl)
    assert posture(standing, up) == "standing" and facing(pose, up) == "towards the camera"
    sitting = body(smpl, j1=-1.5, j2=-1.5, j4=1.5, j5=1.5)[1]
    assert posture(sitting, up) == "sitting"
    assert posture(body(smpl, j3=0.5, j6=0.5, j9=0.3)[1], up) == "bending"
    turned = body(smpl, orient=(0.0, 0.0, np.pi))[2]  # upright, its back to the camera
    assert facing(turned, up) == "away from the camera"


def test_boxes_follow_what_was_seen():
    points = np.concatenate([RNG.uniform(20, 60, (25, 2)), np.ones((25, 1))], 1)
    low, high = points[:, :2].min(0), points[:, :2].max(0)
    box = box_of_keypoints(points, (160, 120))
    assert (box[:2] < low).all() and (box[2:] > high).all() and (box >= 0).all()
    points[3:, 2] = 0
    points[0, 0] = np.nan
    assert np.all(box_of_keypoints(points, (160, 120))[2:] - box_of_keypoints(points, (160, 120))[:2] < box[2:] - box[:2] + 10)
    assert box_of_keypoints(points * [1, 1, 0], (160, 120)) is None


def test_pictures_show_the_body(smpl):
    vertices, _, _ = body(smpl)
    image = np.full((120, 160, 3), 90, np.uint8)
    over = in_picture(image, vertices, smpl.faces.numpy(), CAMERA, box=(60, 20, 100, 110))
    assert over.shape[1] / over.shape[0] == pytest.approx(160 / 120, abs=0.01) and (over.astype(int) - 90 > 60).any()
    side = in_scene(vertices, smpl.faces.numpy(), room(), size=(120, 100), others=[vertices + [0.3, 0, 0]])
    empty = in_scene(vertices, smpl.faces.numpy(), np.zeros((0, 3)), size=(120, 100))
    pink = (side[..., 0].astype(int) - side[..., 2] > 20).sum()
    assert side.shape == (100, 120, 3) and pink > 50 and (empty == 244).any() and not (side == empty).all()
    sheet = panels([[image, side], [over]], 60)
    assert sheet.shape[0] == 2 * 60 + 4 and (sheet[-1, -1] == 255).all()


def test_meshes_come_back_as_they_were(smpl, tmp_path):
    import trimesh

    vertices, _, _ = body(smpl)
    export_bodies(tmp_path / "a.ply", [vertices, vertices + 1], smpl.faces.numpy())
    read = trimesh.load(tmp_path / "a.ply", process=False)
    assert np.allclose(read.vertices, np.concatenate([vertices, vertices + 1]), atol=1e-5)
    export_bodies(tmp_path / "a.glb", [vertices], smpl.faces.numpy(), room())
    scene = trimesh.load(tmp_path / "a.glb", process=False)
    assert np.allclose(scene.geometry["body 0"].vertices, vertices * [1, -1, -1], atol=1e-5)
    assert len(scene.geometry["scene"].vertices) == len(room())
    with pytest.raises(ValueError, match=".ply or .glb"):
        export_bodies(tmp_path / "a.obj", [vertices], smpl.faces.numpy())
    with pytest.raises(ValueError, match="no body"):
        export_bodies(tmp_path / "b.glb", [], smpl.faces.numpy())
