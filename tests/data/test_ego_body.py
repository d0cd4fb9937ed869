"""A synthetic EgoBody folder, read as the published one: labels agree, moved items belong to moved bodies, what is broken is said."""

import json
import pickle
import shutil

import numpy as np
import pytest
import torch

from data.ego_body import Augmentation, EgoBody, collate, crop_matrix, read_annotations, read_mocap
from data.ego_body_cameras import EgoBodyError, image_key, recording_of
from data.ego_body_scenes import keyframes, preprocess_stage1, preprocess_stage2, read_points
from data.synthetic.ego_body_writer import write_ego_body
from pose_tools.body_models import load_smpl
from pose_tools.body_models.read import UnsafePickleError
from pose_tools.egohmr.body import BODY_25, MIRROR_BODY_25, MIRROR_SMPL, keypoints_45, true_body
from pose_tools.egohmr.camera import project_normalised
from pose_tools.egohmr.scene import SceneError, transform

COUNT = 12  # one whole recording and the beginning of another
MOVED = Augmentation(shift=(0.02, -0.01), scale=1.2, turn=20.0, flip=True, gain=(0.9, 1.0, 1.1))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("rooms")
    assert list(write_ego_body(found, "train", 0, COUNT))[-1] == COUNT
    return found


@pytest.fixture(scope="module")
def scenes(folder, tmp_path_factory):
    found = tmp_path_factory.mktemp("scenes")
    list(preprocess_stage1(folder, "train", found / "s1", target=400, spacing=5))
    list(preprocess_stage2(folder, "train", found / "s2", target=400))
    return found


def body_of(batch, smpl):
    return true_body(dict.fromkeys(("neutral", "male", "female"), smpl), batch["smpl_params"], batch["gender"])


@pytest.mark.parametrize("augmentation", [Augmentation(), Augmentation(flip=True), MOVED], ids=["as it is", "mirrored", "moved"])
def test_parameters_joints_and_key_points_agree(folder, scenes, augmentation):
    smpl = load_smpl()
    data = EgoBody(folder, "train", smpl=smpl, scenes=scenes / "s1", side=64)
    batch = collate([data.item(index, augmentation=augmentation) for index in range(COUNT)])
    body = body_of(batch, smpl)
    # the stand-in is not mirror-symmetric to the millimetre, nor is a person
    tolerance = 0.02 if augmentation.flip else 2e-5
    assert (body.joints - batch["keypoints_3d_full"]).abs().max() < tolerance
    shifted = batch["keypoints_3d_full"] - batch["keypoints_3d"]
    assert (shifted - shifted[:, :1]).abs().max() < 1e-4
    if not augmentation.turn:  # a turn about the crop's axis is only nearly a turn of the camera
        seen = batch["orig_keypoints_2d"]
        miss = (project_normalised(keypoints_45(body)[:, list(BODY_25)], batch) - seen[..., :2]).abs() * batch["image_size"][:, None]
        points = list(range(1, 15)) if augmentation.flip else list(range(25))  # the stand-in's face and toes are not paired vertices
        assert (miss * (seen[..., 2:] > 0))[:, points].max() < (12 if augmentation.flip else 6)  # the labels' own noise is 1.2 pixels
    assert batch["img"].shape == (COUNT, 3, 64, 64) and batch["img"].dtype == torch.float32
    assert set(batch["gender"].tolist()) <= {0, 1} and batch["scene_pcd_verts_full"].shape == (COUNT, 400, 3)


def test_a_joint_stays_where_it_is_in_the_moved_crop(folder):
    data = EgoBody(folder, "train", smpl=load_smpl(), side=128)
    for index in (0, 5):
        still, moved = data.item(index), data.item(index, augmentation=MOVED)
        at = (still["orig_keypoints_2d"][:, :2] + 0.5) * still["image_size"]
        image = data.picture(index)
        there = (moved["keypoints_2d"][:, :2] + 0.5) * 128
        order = np.array(MIRROR_BODY_25)
        for point in np.flatnonzero(still["keypoints_2d_vis_mask"]):
            x, y = at[point].round().astype(int)
            u, v = there[np.flatnonzero(order == point)[0]].round().astype(int)
            if 3 < x < image.shape[1] - 3 and 3 < y < image.shape[0] - 3 and 3 < u < 125 and 3 < v < 125:
                colour = image[y - 2 : y + 3, x - 2 : x + 3].mean((0, 1))
                shown = moved["img"][:, v - 1 : v + 2, u - 1 : u + 2].mean((1, 2))
                normal = (np.clip(colour * MOVED.gain, 0, 255) / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
                assert np.abs(shown - normal).max() < 1.5  # the same patch, not the wall beside it


def test_the_crop_is_the_published_one_to_the_last_digit():
    centre, side = np.float32([431.27, 288.6]).astype(np.float64), float(np.float32(313.3)) * 1.13
    recorded = [[0.5824186204017083, 0.24722199785422555, -210.52794211165548],
                [-0.24722199785422574, 0.5824186204017084, 50.533410895795754]]  # fmt: skip
    np.testing.assert_allclose(crop_matrix(centre, side, 23.0, 224), recorded, rtol=1e-13)


def test_key_points_outside_the_crop_are_not_in_its_mask(folder):
    item = EgoBody(folder, "train", smpl=load_smpl(), side=32).item(0, augmentation=Augmentation(scale=0.5))
    points, found = item["keypoints_2d"], item["keypoints_2d"][:, 2] > 0
    inside = (np.abs(points[:, :2]) <= 0.5).all(1)
    assert (found & ~inside).any() and (found & inside).any()
    assert np.array_equal(item["keypoints_2d_vis_mask"], found & inside)


def test_camera_matrices_are_the_recordings_own(folder, scenes):
    data = EgoBody(folder, "train", smpl=load_smpl(), scenes=scenes / "s1", side=32)
    item = data.item(0)
    clouds, frames = data._stage1_clouds
    points = transform(clouds[frames[image_key(data.name(0))]], item["transf_kinect2holo"])
    points = transform(points, item["transf_holo2pv"])  # the headset camera's axes: y up, z backwards
    np.testing.assert_allclose(points * [1, -1, -1], item["scene_pcd_verts_full"], atol=1e-9)


def test_moving_nothing_changes_nothing_and_a_mirror_twice_is_no_mirror(folder, scenes):
    data = EgoBody(folder, "train", smpl=load_smpl(), scenes=scenes / "s1", side=32)
    for index in range(3):
        item, same = data[index], data.item(index, augmentation=Augmentation())
        assert np.array_equal(item["img"], same["img"])
        mirrored = data.item(index, augmentation=Augmentation(flip=True))
        assert np.allclose(mirrored["scene_pcd_verts_full"], item["scene_pcd_verts_full"] * [-1, 1, 1], atol=1e-9)
        assert np.allclose(mirrored["keypoints_3d_full"][list(MIRROR_SMPL)], item["keypoints_3d_full"] * [-1, 1, 1], atol=1e-9)
        assert np.isclose(mirrored["cam_cx"], item["image_size"][0] - item["cam_cx"])
        assert np.allclose(mirrored["orig_keypoints_2d"][list(MIRROR_BODY_25), 2], item["orig_keypoints_2d"][:, 2])


def test_augmentation_is_a_function_of_seed_index_and_epoch(folder):
    data = EgoBody(folder, "train", smpl=load_smpl(), side=32, augment=True, seed=3)
    assert np.array_equal(data.item(4, 7)["img"], data.item(4, 7)["img"])
    assert not np.array_equal(data.item(4, 7)["img"], data.item(4, 8)["img"])


def test_the_cloud_of_stage_one_is_in_front_and_of_stage_two_around_the_person(folder, scenes):
    smpl = load_smpl()
    first, second = (EgoBody(folder, "train", smpl=smpl, scenes=scenes / f"s{stage}", stage=stage, side=32) for stage in (1, 2))
    assert (first.scene_points(0)[:, 2] > 0).all()  # a picture with points of its own
    for index in range(COUNT):
        item = second[index]
        away = item["scene_pcd_verts_full"] - item["keypoints_3d_full"][0]
        assert np.abs(away).max() < 3.2 and np.linalg.norm(away, axis=1).min() < 1.2
        # the room's points under the feet are at the feet's height
        up = second.cameras.scene_to_camera(second.name(index))[:3, 1]
        assert ((away @ up).min() < (item["keypoints_3d_full"][[7, 8]] - item["keypoints_3d_full"][0]) @ up).all()


def test_keyframes_and_shared_clouds(folder, scenes):
    data = EgoBody(folder, "train", smpl=load_smpl(), scenes=scenes / "s1")
    names = [data.name(index) for index in range(COUNT)]
    assert keyframes(data.cameras, names, 5) == [0, 5, 10] and keyframes(data.cameras, names, 7) == [0, 7, 10]
    with (scenes / "s1" / "map_dict_train.pkl").open("rb") as file:
        shared = pickle.load(file)
    assert [shared[name] for name in names] == [names[0]] * 5 + [names[5]] * 5 + [names[10]] * 2


def test_interrupted_is_uninterrupted_and_workers_do_not_matter(folder, scenes, tmp_path):
    for _ in range(2):
        for done in preprocess_stage2(folder, "train", tmp_path, target=400):
            if done == 5:
                break
    list(preprocess_stage2(folder, "train", tmp_path, target=400))
    ours = sorted(path.relative_to(tmp_path) for path in tmp_path.rglob("*.npy"))
    assert len(ours) == COUNT
    assert all((tmp_path / path).read_bytes() == (scenes / "s2" / path).read_bytes() for path in ours)
    with pytest.raises(ValueError, match="points 400"):
        list(preprocess_stage2(folder, "train", tmp_path, target=500))


def test_test_cubes_lie_around_stage_ones_translation(folder, tmp_path):
    data = EgoBody(folder, "train", smpl=load_smpl())
    transl = data.rows["transl_pv"] + 0.2
    with (tmp_path / "results.pkl").open("wb") as file:
        pickle.dump({"pred_cam_full_list": transl.astype(np.float32)}, file, protocol=2)
    list(preprocess_stage2(folder, "train", tmp_path / "out", transl=tmp_path / "results.pkl", target=300))
    found = EgoBody(folder, "train", smpl=load_smpl(), scenes=tmp_path / "out", stage=2, transl=tmp_path / "results.pkl", side=32)[3]
    assert np.allclose(found["stage1_transl_full"], transl[3], atol=1e-6)
    assert np.linalg.norm(found["scene_pcd_verts_full"] - transl[3], axis=1).max() < 1.5 * 2
    with pytest.raises(EgoBodyError, match="another split"):
        EgoBody(folder, "train", smpl=load_smpl(), transl=transl[:4])


def test_scans_of_every_kind_and_their_errors(tmp_path):
    points = np.random.default_rng(0).normal(0, 1, (10, 3))
    np.save(tmp_path / "a.npy", points)
    np.savez(tmp_path / "a.npz", points=points)
    (tmp_path / "a.obj").write_text("".join(f"v {x} {y} {z}\n" for x, y, z in points))
    header = "ply\nformat ascii 1.0\nelement vertex 10\nproperty float x\nproperty float y\nproperty float z\nend_header\n"
    (tmp_path / "a.ply").write_text(header + "".join(f"{x} {y} {z}\n" for x, y, z in points))
    for suffix in ("npy", "npz", "obj", "ply"):
        assert np.allclose(read_points(tmp_path / f"a.{suffix}"), points, atol=1e-5), suffix
    np.save(tmp_path / "flat.npy", points[:, :2])
    (tmp_path / "bad.npy").write_bytes(b"nothing")
    for name, message in (("none.ply", "no such scan"), ("flat.npy", "points"), ("bad.npy", "cannot be read")):
        with pytest.raises(SceneError, match=message):
            read_points(tmp_path / name)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("annotation", "is missing"), ("column", "no column pose"), ("camera", "no recording"), ("calibration", "is missing"),
        ("time", "no camera at time"),
    ],  # fmt: skip
)
def test_what_is_missing_is_named(folder, scenes, tmp_path, what, message):
    root = shutil.copytree(folder, tmp_path / "copy")
    path = root / "annotation_egocentric_smpl_npz" / "egocapture_train_smpl.npz"
    if what == "annotation":
        path.unlink()
    elif what == "column":
        with np.load(path) as file:
            rest = {name: file[name] for name in file if name != "pose"}
        np.savez(path, **rest)
    elif what in ("camera", "time"):
        pickled = root / "transf_matrices_all_seqs.pkl"
        content = pickle.loads(pickled.read_bytes())
        content = {} if what == "camera" else {name: value | {"trans_world2pv": {}} for name, value in content.items()}
        pickled.write_bytes(pickle.dumps(content, protocol=2))
    else:
        shutil.rmtree(root / "calibrations")
    with pytest.raises(EgoBodyError, match=message):
        EgoBody(root, "train", smpl=load_smpl(), scenes=scenes / "s2", stage=2, side=32)[0]


def test_no_code_is_run_and_no_path_leaves_the_folder(folder, scenes, tmp_path):
    root = shutil.copytree(folder, tmp_path / "copy")
    (root / "transf_matrices_all_seqs.pkl").write_bytes(b"cos\nsystem\n(S'echo run'\ntR.")
    with pytest.raises(UnsafePickleError):
        EgoBody(root, "train", smpl=load_smpl())[0]
    for name in ("../a/b/c/d.jpg", "/a/b/c/d/e.jpg", "a/b.jpg"):
        with pytest.raises(EgoBodyError, match="is not named"):
            recording_of(name)


def test_mocap(tmp_path):
    np.savez(tmp_path / "m.npz", body_pose=np.zeros((5, 72)), betas=np.zeros((5, 10)))
    assert read_mocap(tmp_path / "m.npz")["body_pose"].shape == (5, 69)
    np.savez(tmp_path / "n.npz", body_pose=np.zeros((5, 60)), betas=np.zeros((5, 10)))
    with pytest.raises(EgoBodyError, match="expected"):
        read_mocap(tmp_path / "n.npz")


def test_the_world_is_a_function_of_seed_and_split(folder, tmp_path):
    list(write_ego_body(tmp_path, "train", 0, 2))
    ours, theirs = ((path / "frames-train.jsonl").read_text().splitlines()[:2] for path in (tmp_path, folder))
    assert ours == theirs
    rows = read_annotations(folder, "train")
    assert set(rows["place"]) <= {"stand", "sit", "lean", "behind"} and not rows["joints_visible"].all()
    assert json.loads(ours[0])["imgname"] == rows["imgname"][0]
