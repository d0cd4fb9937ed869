"""The tool `track_hands`: data, text, tokens and picture of the same tracks, offered only where there is a clip."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

import pose_tools.track
from pose_tools import tool as tools
from pose_tools.detect import HandDetection
from pose_tools.grounding import parse_boxes
from pose_tools.tool import ToolError, call, schemas, tools_for
from pose_tools.track import join, track_tokens
from pose_tools.track_tool import TOOL, describe
from pose_tools.types import Media
from pose_tools.views import letterbox, squash

SIZE = (120, 80)


def detections(frame: np.ndarray) -> list[HandDetection]:
    """A left hand at x = the frame's grey value, from the third frame on a right one; a black frame is empty."""
    x = float(frame[0, 0, 0])
    if x == 0:
        return []
    left = HandDetection((x - 10, 30, x + 10, 50), "left", 0.9)
    return [left] if x < 34 else [left, HandDetection((90, 20, 110, 44), "right", 0.8)]


def clip(*greys: int) -> Media:
    return Media(frames=tuple(np.full((SIZE[1], SIZE[0], 3), grey, np.uint8) for grey in greys), fps=4.0)


MOVING = tuple(range(30, 50, 2))


@pytest.fixture(autouse=True)
def _detector(monkeypatch):
    monkeypatch.setattr(pose_tools.track, "detect_frames", lambda frames: [detections(frame) for frame in frames])
    monkeypatch.setenv("HANDVLM_HANDS", "small")
    tools.CACHE.clear()


def test_data_text_and_tokens_are_of_the_same_tracks():
    media = clip(*MOVING)
    result = call("track_hands", media)
    tracks = join([detections(frame) for frame in media.frames], (np.arange(10) / 4).tolist())
    np.testing.assert_array_equal(result.tokens["track"], track_tokens(tracks, 10))
    assert result.data == json.loads(json.dumps(result.data)) and result.confidence == pytest.approx(0.8)
    left, right = result.data["hands"]["left"], result.data["hands"]["right"]
    np.testing.assert_allclose(left["bbox_xyxy"], tracks[0].bbox_xyxy, atol=0.01)
    assert right["bbox_xyxy"][:2] == [None, None] and right["seen"] == [False] * 2 + [True] * 8
    np.testing.assert_allclose(left["forecast"], [48 + 8, 40], atol=0.2)  # 2 pixels in a quarter of a second
    text = json.loads(result.text)
    assert text["seconds"] == 2.25 and len(text["left"]["path"]) == 10 and len(text["right"]["path"]) == 8
    np.testing.assert_allclose(text["left"]["path"], tracks[0].points / SIZE * 1000, atol=0.6)
    np.testing.assert_allclose(text["left"]["in 1 s"], np.array(left["forecast"]) / SIZE * 1000, atol=0.6)
    np.testing.assert_allclose(parse_boxes(result.text, SIZE)[0].bbox_xyxy, left["bbox_xyxy"][-1], atol=0.1)
    assert len(result.text) < 400


def test_one_hand_is_that_part_of_both():
    both = call("track_hands", clip(*MOVING))
    for row, side in enumerate(("left", "right")):
        one = call("track_hands", clip(*MOVING), {"hand": side})
        assert one.data["hands"] == {side: both.data["hands"][side]}
        assert json.loads(one.text)[side] == json.loads(both.text)[side]
        np.testing.assert_array_equal(one.tokens["track"].reshape(10, 2, 11)[:, row], both.tokens["track"].reshape(10, 2, 11)[:, row])
        assert np.isnan(one.tokens["track"].reshape(10, 2, 11)[:, 1 - row]).all()


def test_no_hand_in_any_frame_is_a_result_and_a_hand_that_left_has_no_box():
    nothing = call("track_hands", clip(*[0] * 10), overlay=True)
    assert json.loads(nothing.text) == {"seconds": 2.25, "left": None, "right": None} and nothing.confidence is None
    assert np.isnan(nothing.tokens["track"]).all() and nothing.overlay.shape[2] == 3
    left = json.loads(call("track_hands", clip(30, 32, 34, 0, 0, 0)).text)["left"]
    assert left["box"] is None and left["in 1 s"] is None and len(left["path"]) == 3


def test_smoothing_off_is_the_detector_as_it_is():
    gap = clip(30, 30, 0, 30, 30)
    assert call("track_hands", gap).data["hands"]["left"]["bbox_xyxy"][2] is not None
    raw = call("track_hands", gap, {"smooth": False}).data["hands"]["left"]
    assert raw["bbox_xyxy"] == [None if grey == 0 else [20, 30, 40, 50] for grey in (30, 30, 0, 30, 30)]


def test_long_clips_are_told_in_ten_moments():
    media = replace(clip(*np.linspace(10, 110, 90).astype(int)), fps=30.0)
    path = json.loads(call("track_hands", media, {"hand": "left"}).text)["left"]["path"]
    assert len(path) == 10 and path[0][0] == pytest.approx(10 / 120 * 1000, abs=5) and path[-1][0] == pytest.approx(110 / 120 * 1000, abs=5)


def test_text_is_in_the_grid_that_the_model_sees():
    whole = call("track_hands", clip(*MOVING))
    assert call("track_hands", clip(*MOVING), views=[squash(SIZE, 50)]).text == whole.text
    boxed = json.loads(call("track_hands", clip(*MOVING), views=[letterbox(SIZE, 60)]).text)["left"]
    x1, y1, x2, y2 = whole.data["hands"]["left"]["bbox_xyxy"][-1]
    assert boxed["box"] == pytest.approx([x1 / 0.12, (y1 + 20) / 0.12, x2 / 0.12, (y2 + 20) / 0.12], abs=1)
    assert boxed["path"][-1] == pytest.approx([(x1 + x2) / 0.24, (y1 + y2 + 40) / 0.24], abs=1)


def test_what_cannot_be_followed_is_said():
    picture = np.zeros((8, 8, 3), np.uint8)
    with pytest.raises(ToolError, match="there is no clip in this conversation"):
        call("track_hands", Media(images=(picture,)))
    with pytest.raises(ToolError, match="the clip has one frame; two or more are needed"):
        call("track_hands", Media(frames=(picture,), fps=4.0))
    for fps in (None, 0.0, float("nan")):
        with pytest.raises(ToolError, match="frames per second are not known"):
            call("track_hands", Media(frames=(picture, picture), fps=fps))
    with pytest.raises(ToolError, match="expected one of: left, right, both"):
        call("track_hands", clip(*MOVING), {"hand": "third"})
    with pytest.raises(ToolError, match="unknown argument 'image'"):
        call("track_hands", clip(*MOVING), {"image": 0})


def test_tools_are_offered_for_what_is_there():
    picture, moving = clip(30).frames, clip(*MOVING)
    assert tools_for(Media()) == () and tools_for(Media(images=picture)) == ("detect_hands",)
    assert tools_for(moving) == () and tools_for(replace(moving, images=picture)) == ("detect_hands",)
    (schema,) = schemas(["track_hands"])
    assert set(schema["function"]["parameters"]["properties"]) == {"hand", "smooth"}


def test_a_tool_that_is_not_offered_by_default_can_be_called_and_offered(monkeypatch):
    assert tools_for(clip(*MOVING)) == () and call("track_hands", clip(*MOVING)).data["frames"] == 10
    monkeypatch.setitem(tools.TOOLS, "track_hands", replace(TOOL, by_default=True))
    picture = (clip(*MOVING).frames[0],)
    assert tools_for(clip(*MOVING)) == ("track_hands",) and tools_for(Media(images=picture)) == ("detect_hands",)
    assert tools_for(replace(clip(*MOVING), images=picture)) == ("detect_hands", "track_hands")


def test_the_picture_is_the_last_frame_with_the_paths_on_it():
    media = clip(*MOVING)
    result = call("track_hands", media, overlay=True)
    assert min(result.overlay.shape[:2]) == 512 and result.overlay.dtype == np.uint8
    scale = result.overlay.shape[1] / SIZE[0]
    for x in (30, 40, 48):  # the path's dots are in the hand's colour, blue
        red, _, blue = result.overlay[int(40 * scale), int(x * scale)].astype(int)
        assert blue > red + 40
    assert call("track_hands", media).overlay is None
    empty = describe([], 10, 4.0, SIZE)
    assert (TOOL.draw(media, empty)[300:] == MOVING[-1]).all()
