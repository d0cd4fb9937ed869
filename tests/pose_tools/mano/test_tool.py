"""The tool `estimate_hand_pose`: its numbers, words, tokens and pictures say the same hand."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
import trimesh

from data.synthetic import hands
from pose_tools import detect, hand_pose_tool
from pose_tools.geometry import project, rotation_6d_to_matrix
from pose_tools.mano import loading
from pose_tools.mano.crops import assumed_intrinsics
from pose_tools.tool import TOOLS, ToolError, ToolResult, call, schemas, tools_for
from pose_tools.types import Media
from tests.pose_tools.mano.posed import mirrored, regressor, sample


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A tiny regressor in place of the shipped one, and no hand model of the user's."""
    monkeypatch.delenv("HANDVLM_MANO", raising=False)
    regressor().save(tmp_path / "regressor")
    monkeypatch.setattr(loading, "DEFAULT_FOLDER", tmp_path / "regressor")


def detection(hand, keypoints=None) -> detect.HandDetection:
    return detect.HandDetection(tuple(hand.bbox_xyxy), hand.side, 0.9, keypoints)


def described(hand, keypoints=None, intrinsics=None) -> ToolResult:
    return hand_pose_tool.describe(hand.image, {"left": None, "right": None} | {hand.side: detection(hand, keypoints)}, intrinsics)


def test_numbers_words_and_tokens_say_one_hand():
    hand = sample(0)
    result = described(hand, intrinsics=hand.intrinsics)
    record = result.data["hands"]["right"]
    assert result.data["hands"]["left"] is None and record["method"] in ("network", "landmarks")
    _, joints = hands.pose_hand("right", *(np.array(record[name]) for name in ("global_orient", "hand_pose", "betas", "transl")))
    np.testing.assert_allclose(joints, record["joints_3d"], atol=2e-4)
    words = json.loads(result.text)
    assert words["left"] is None
    assert list(words["right"]) == ["distance_cm", "palm", "thumb", "index", "middle", "ring", "pinky", "confidence"]
    assert words["right"]["distance_cm"] == round(100 * np.linalg.norm(joints[0]))
    tokens = result.tokens["mano"]
    assert tokens.shape == (2, hand_pose_tool.TOKEN_WIDTH) and tokens.dtype == np.float32 and np.isnan(tokens[0]).all()
    row = tokens[1]
    np.testing.assert_allclose(row[2:5], joints[0], atol=2e-4)
    np.testing.assert_allclose(row[111:].reshape(21, 2), project(joints, hand.intrinsics), atol=0.5)
    turns = rotation_6d_to_matrix(torch.from_numpy(row[5:101].reshape(16, 6)))
    torch.testing.assert_close(turns @ turns.transpose(-1, -2), torch.eye(3).expand(16, 3, 3), atol=1e-4, rtol=0)
    assert row[0] == 1 and row[1] == pytest.approx(result.confidence, abs=1e-3)
    json.dumps(result.data)


def test_known_and_assumed_cameras_are_told_apart():
    hand = sample(0)
    known, guessed = described(hand, intrinsics=hand.intrinsics), described(hand)
    assert (known.data["depth"], known.data["intrinsics_from"]) == ("metric", "given")
    assert (guessed.data["depth"], guessed.data["intrinsics_from"]) == ("assumed", "assumed 60 degrees")
    assert guessed.data["intrinsics"] == assumed_intrinsics((hand.image.shape[1], hand.image.shape[0])).tolist()
    assert known.data["unit"] == "metre" and "z forward" in known.data["frame"] and known.data["hand_model"] == "stand-in"


@pytest.mark.parametrize("side", ["left", "right"])
def test_landmarks_of_a_detector_win_where_they_fit_better(side):
    """Exact landmarks of a photograph's detector: the fitted hand lies on them, an untrained network's does not."""
    hand = sample(4, side)
    record = described(hand, hand.joints_2d, hand.intrinsics).data["hands"][side]
    assert record["method"] == "landmarks"
    assert np.abs(project(np.array(record["joints_3d"]), hand.intrinsics) - hand.joints_2d).mean() < 3


def test_landmarks_that_no_hand_can_have_leave_the_network():
    hand = sample(4)
    assert described(hand, np.full((21, 2), 50.0), hand.intrinsics).data["hands"]["right"]["method"] == "network"


def test_mirrored_picture_gives_mirrored_words():
    hand = sample(6)
    one, other = (json.loads(described(h, h.joints_2d, h.intrinsics).text) for h in (hand, mirrored(hand)))
    right, left = one["right"], other["left"]
    fingers = ("thumb", "index", "middle", "ring", "pinky")
    assert [right[name] for name in fingers] == [left[name] for name in fingers]
    swap = {"left": "right", "right": "left"}
    assert swap.get(right["palm"], right["palm"]) == left["palm"] and abs(right["distance_cm"] - left["distance_cm"]) <= 1


def test_fingers_and_palms_of_known_hands():
    straight, bent = np.zeros((4, 3)), np.array([[1.2, 1.5, 1.0]] * 4)
    for flexion, word in ((straight, "straight"), (bent, "bent")):
        pose = hands.bend_fingers(flexion, np.zeros(4), np.zeros(4))
        # the back of the hand to the camera, fingers up
        orient = hands.rotation_to(np.array([0.0, -1, 0]), 0.0, "right")
        _, joints = hands.pose_hand("right", np.array(_rotvec(orient)), pose, np.zeros(10), np.array([0, 0, 0.5]))
        assert {hand_pose_tool.finger_bends(joints)[name] for name in ("index", "middle", "ring", "pinky")} == {word}
        assert hand_pose_tool.palm_direction(joints, "right") == "away from the camera"
        assert hand_pose_tool.palm_direction(joints * [-1, 1, 1], "left") == "away from the camera"
        assert hand_pose_tool.palm_direction(joints * [1, 1, -1], "left") == "towards the camera"


def _rotvec(matrix: np.ndarray) -> np.ndarray:
    from scipy.spatial.transform import Rotation

    return Rotation.from_matrix(matrix).as_rotvec()


def test_no_hand_is_a_normal_result(tmp_path):
    picture = sample(0).image
    result = hand_pose_tool.describe(picture, {"left": None, "right": None})
    assert json.loads(result.text) == {"left": None, "right": None} and result.confidence is None and np.isnan(result.tokens["mano"]).all()
    assert hand_pose_tool.draw(Media(images=(picture,)), result).dtype == np.uint8
    with pytest.raises(ValueError, match="no hand was found"):
        hand_pose_tool.export_glb(result, tmp_path / "hands.glb")


def test_drawn_and_exported(tmp_path):
    hand = sample(2, "left")
    result = described(hand, hand.joints_2d, hand.intrinsics)
    drawn = hand_pose_tool.draw(Media(images=(hand.image,)), result)
    assert drawn.dtype == np.uint8 and drawn.shape[2] == 3
    hand_pose_tool.export_glb(result, tmp_path / "hands.glb")
    scene = trimesh.load(tmp_path / "hands.glb")
    mesh = scene.to_mesh()
    assert len(mesh.faces) == 1538
    turned = hand_pose_tool._posed(result.data["hands"]["left"], "left")[0] * [1, -1, -1]
    np.testing.assert_allclose(mesh.bounds, [turned.min(0), turned.max(0)], atol=1e-5)


def test_a_wrong_hand_model_of_the_users_is_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDVLM_MANO", str(tmp_path / "none"))
    hand = sample(4)
    with pytest.raises(ToolError, match=r"HANDVLM_MANO.*none"):
        described(hand, hand.joints_2d, hand.intrinsics)


def test_it_is_called_by_name_and_not_offered_to_models_that_do_not_know_it(monkeypatch):
    hand = sample(1)
    monkeypatch.setattr(detect, "detect_hands", lambda picture: [detection(hand)])
    media = Media(images=(hand.image,), intrinsics=(hand.intrinsics,))
    result = call("estimate_hand_pose", media, {"hand": "right"}, overlay=True, cache=None)
    assert list(result.data["hands"]) == ["right"] and result.overlay is not None
    assert "estimate_hand_pose" in TOOLS and "estimate_hand_pose" not in tools_for(media)
    schema = schemas(["estimate_hand_pose"])[0]["function"]
    assert set(schema["parameters"]["properties"]) == {"image", "hand"}
    with pytest.raises(ToolError):
        call("estimate_hand_pose", media, {"hand": "third"})
