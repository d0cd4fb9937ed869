"""The tool `recover_body` on invented rooms and small random networks: what it says, assumes and refuses."""

import json

import numpy as np
import pytest

from pose_tools import body_tool
from pose_tools.tool import call, schemas
from pose_tools.tool_protocol import ToolError
from pose_tools.types import Media
from tests.pose_tools.egohmr.small import small_folder

RNG = np.random.default_rng(0)
IMAGE = RNG.integers(0, 255, (120, 160, 3), dtype=np.uint8)
CAMERA = np.array([[120.0, 0, 80], [0, 120, 60], [0, 0, 1]])
FLOOR = np.stack(np.meshgrid(np.arange(-2, 2, 0.1), [1.4], np.arange(1, 6, 0.1)), -1).reshape(-1, 3)
KEYPOINTS = np.concatenate([RNG.uniform([50, 20], [110, 110], (25, 2)), np.full((25, 1), 0.8)], 1)
KEYPOINTS[9:15, 2] = 0  # hips to ankles are hidden


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return small_folder(tmp_path_factory.mktemp("egohmr"))


@pytest.fixture(autouse=True)
def small(monkeypatch, folder):
    monkeypatch.setenv("HANDVLM_EGOHMR", str(folder))
    monkeypatch.delenv("HANDVLM_SMPL", raising=False)


def whole(**change) -> Media:
    given = {"images": (IMAGE,), "intrinsics": (CAMERA,), "keypoints_2d": (KEYPOINTS,), "scene": FLOOR}
    return Media(**(given | change))


def test_bodies_text_tokens_overlay_and_glb(tmp_path):
    result = call("recover_body", whole(), {"samples": 3}, overlay=True)
    body, said = result.data["body"], json.loads(result.text)
    assert len(body["samples"]) == 3 and result.data["assumed"] == []
    assert said["hidden"] == ["left hip", "right hip", "left knee", "right knee", "left ankle", "right ankle"] and "assumed" not in said
    assert body["joints_visible"] == [j not in (1, 2, 4, 5, 7, 8, 10, 11) for j in range(24)]
    assert len(body["spread_mm"]) == 24 and body["transl_std_m"][2] > 0 and min(body["contact_m"]) >= 0
    assert result.tokens["body"].shape == (1, body_tool.TOKEN_WIDTH) and np.isfinite(result.tokens["body"]).all()
    poses = body_tool.poses(result)
    vertices, _ = body_tool._meshes(result)
    assert vertices.shape == (3, 6890, 3) and np.allclose(poses[1].joints_3d, body_tool.poses(result)[1].joints_3d)
    assert np.allclose(np.linalg.norm(poses[0].joints_3d[0]), body["distance_m"], atol=0.2)
    assert result.overlay.dtype == np.uint8 and result.overlay.shape[1] > result.overlay.shape[0] * 2
    body_tool.export_glb(result, tmp_path / "a.glb", FLOOR)
    import trimesh

    names = set(trimesh.load(tmp_path / "a.glb").geometry)
    assert names == {"body 0", "body 1", "body 2", "scene"}
    assert json.loads(json.dumps(result.data)) == result.data


def test_the_same_call_gives_the_same_bodies():
    first, again = (call("recover_body", whole(), {"samples": 2}, cache=None) for _ in range(2))
    assert first.data == again.data and first.text == again.text


def test_what_is_missing_is_assumed_and_said():
    bare = call("recover_body", Media(images=(IMAGE,)), {"samples": 1})
    said = json.loads(bare.text)["assumed"]
    for word in ("field of view", "no scan", "fills the picture", "counts as visible"):
        assert any(word in line for line in said), word
    assert bare.data["given"] == {"intrinsics": False, "keypoints": False, "scene": False} and all(bare.data["body"]["joints_visible"])
    boxed = call("recover_body", whole(keypoints_2d=()), {"samples": 1, "person_box": [250, 100, 750, 1000]})
    assert boxed.data["body"]["bbox_xyxy"] == [40, 12, 120, 120] and len(boxed.data["assumed"]) == 1


def test_nobody_seen_is_an_answer_and_a_box_helps():
    unseen = KEYPOINTS * [1, 1, 0]
    nobody = call("recover_body", whole(keypoints_2d=(unseen,)), overlay=True)
    assert nobody.data["body"] is None and np.isnan(nobody.tokens["body"]).all() and body_tool.poses(nobody) == []
    assert nobody.overlay is not None
    with pytest.raises(ValueError, match="nobody was found"):
        body_tool.export_glb(nobody, "never.glb")
    found = call("recover_body", whole(keypoints_2d=(unseen,)), {"person_box": [250, 100, 750, 1000], "samples": 1})
    assert sum(found.data["body"]["joints_visible"]) == 4  # the mid-hip's, which always counts


@pytest.mark.parametrize(
    ("media", "arguments", "message"),
    [
        ({"keypoints_2d": (np.zeros((17, 3)),)}, {}, "BODY_25"),
        ({"scene": np.full((10, 3), np.nan)}, {}, "finite"),
        ({"scene": np.zeros((10, 2))}, {}, r"\(N, 3\)"),
        ({"scene": -FLOOR}, {}, "in front"),
        ({"intrinsics": (np.zeros((3, 3)),)}, {}, "positive focal"),
        ({}, {"samples": 0}, "samples"),
        ({}, {"person_box": [500, 0, 400, 100]}, "x1 < x2"),
        ({}, {"person_box": [0, 0, 400]}, "person_box"),
        ({}, {"image": 1}, "image 1 is not there"),
    ],
)
def test_bad_input_is_one_clear_error(media, arguments, message):
    with pytest.raises(ToolError, match=message):
        call("recover_body", whole(**media), arguments)


def test_ten_points_are_a_scene_and_say_nothing_of_up():
    result = call("recover_body", whole(scene=FLOOR[::200][:10]), {"samples": 1})
    assert any("level surface" in line for line in result.data["assumed"]) and result.data["up"] == [0, -1, 0]


def test_missing_weights_are_named(monkeypatch, tmp_path):
    monkeypatch.setenv("HANDVLM_EGOHMR", str(tmp_path))
    with pytest.raises(ToolError, match="stage1.safetensors is missing"):
        call("recover_body", whole(), cache=None)


def test_the_schema_asks_for_what_a_model_can_fill_in():
    parameters = schemas(["recover_body"])[0]["function"]["parameters"]["properties"]
    assert set(parameters) == {"image", "person_box", "samples"} and parameters["samples"]["maximum"] == 20
