"""The tools `embed_hand` and `find_similar_hands`: vector, token, words and sheet say the same hands."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pose_tools import detect, embed_hand_tool, similar_hands_tool
from pose_tools.simhand import hand_embedding, hand_index
from pose_tools.simhand.hand_embedding import hand_square
from pose_tools.tool import TOOLS, ToolError, call, schemas, tools_for
from pose_tools.types import Media
from tests.pose_tools.simhand.tiny_index import crops, tiny_encoder, tiny_index

PICTURE = crops(1, seed=9, size=120)[0]
BOXES = {"left": (10.0, 12.0, 50.0, 52.0), "right": (60.0, 40.0, 100.0, 88.0)}


@pytest.fixture(autouse=True)
def small(monkeypatch, tmp_path):
    """A tiny encoder, and an index that holds the picture's right hand as row 4."""
    monkeypatch.setenv(hand_embedding.VARIABLE, str(tmp_path / "encoder"))
    monkeypatch.setenv(hand_index.VARIABLE, str(tmp_path / "index.safetensors"))
    encoder = tiny_encoder(tmp_path / "encoder")
    pictures = crops(6, size=40)
    pictures[4] = hand_square(PICTURE, BOXES["right"], "right")
    tiny_index(encoder, pictures=pictures).save(tmp_path / "index.safetensors")
    return encoder


@pytest.fixture
def seen(monkeypatch):
    """Detections that the tools get, whatever the picture; changed by the test."""
    hands = [detect.HandDetection(BOXES[side], side, score) for side, score in (("left", 0.9), ("right", 0.8))]
    monkeypatch.setattr(detect, "detect_hands", lambda picture: hands)
    return hands


def test_vector_and_token_are_the_encoders(small, seen):
    result = call("embed_hand", Media(images=(PICTURE,)), cache=None)
    tokens = result.tokens["hand"]
    expected = small.embed([hand_square(PICTURE, BOXES[side], side) for side in ("left", "right")])
    assert tokens.dtype == np.float32 and np.array_equal(tokens, expected)
    for side, vector in zip(("left", "right"), expected, strict=True):
        np.testing.assert_allclose(result.data["hands"][side]["vector"], vector, atol=1e-6)
    assert json.loads(result.text) == {side: {"vector": "16 numbers", "score": s} for side, s in (("left", 0.9), ("right", 0.8))}
    assert result.confidence == 0.8 and result.data["encoder"] == small.fingerprint
    one = call("embed_hand", Media(images=(PICTURE,)), {"hand": "right"}, cache=None)
    np.testing.assert_allclose(one.tokens["hand"][1], tokens[1], atol=1e-6)  # one hand as both
    assert np.isnan(one.tokens["hand"][0]).all() and list(one.data["hands"]) == ["right"]


def mirrored(hands):
    for one in hands:
        x1, y1, x2, y2 = one.bbox_xyxy
        yield detect.HandDetection((120 - x2, y1, 120 - x1, y2), "left" if one.side == "right" else "right", one.score)


def test_a_mirrored_picture_swaps_the_hands_and_nothing_else(seen):
    media, flipped = Media(images=(PICTURE,)), Media(images=(np.ascontiguousarray(PICTURE[:, ::-1]),))
    vectors, similar = (call(name, media, cache=None) for name in ("embed_hand", "find_similar_hands"))
    seen[:] = mirrored(seen)
    swapped, swapped_similar = (call(name, flipped, cache=None) for name in ("embed_hand", "find_similar_hands"))
    np.testing.assert_allclose(swapped.tokens["hand"], vectors.tokens["hand"][::-1], atol=1e-6)
    turned = {"left": "right", "right": "left"}
    for side, other in turned.items():
        for one, two in zip(similar.data["hands"][side]["similar"], swapped_similar.data["hands"][other]["similar"], strict=True):
            assert one["row"] == two["row"] and one["similarity"] == pytest.approx(two["similarity"], abs=2e-4)
            if one["pose"] is not None:
                assert two["pose"] == one["pose"] | {"palm": turned.get(one["pose"]["palm"], one["pose"]["palm"])}


def test_similar_hands_are_the_indexs_nearest(seen):
    result = call("find_similar_hands", Media(images=(PICTURE,)), {"count": 3, "hand": "right"}, overlay=True, cache=None)
    similar = result.data["hands"]["right"]["similar"]
    assert similar[0]["row"] == 4 and similar[0]["hand_id"] == "v2-4" and similar[0]["similarity"] > 0.999
    assert [one["similarity"] for one in similar] == sorted((one["similarity"] for one in similar), reverse=True)
    assert all((one["pose"] is None) == (one["row"] % 3 == 0) for one in similar)
    words = json.loads(result.text)["right"]
    assert words == {"similar": 3, "similarity": 1.0} | similar_hands_tool.vote(similar)
    assert result.data["index"] == {"hands": 6, "source": "noise", "licence": "none"}
    assert result.overlay.dtype == np.uint8 and result.overlay.shape[1] > 4 * similar_hands_tool.CELL
    cell = similar_hands_tool.CELL
    query, nearest = result.overlay[6 : 6 + cell, 6 : 6 + cell], result.overlay[6 : 6 + cell, 12 + cell : 12 + 2 * cell]
    assert np.abs(query.astype(int) - nearest).mean() < 20  # the same hand, as a thumbnail
    most = call("find_similar_hands", Media(images=(PICTURE,)), {"count": 20, "hand": "right"}).data["hands"]["right"]["similar"]
    assert len(most) == 3 == len({one["video_id"] for one in most})
    json.dumps(result.data)


def test_votes():
    def hands(*fingers):
        return [{"pose": finger and {"thumb": finger}} for finger in fingers]

    assert similar_hands_tool.vote(hands("bent", "straight", "bent", "bent", "bent")) == {"thumb": "bent"}
    assert similar_hands_tool.vote(hands("bent", "straight", "bent")) == {}
    assert similar_hands_tool.vote(hands(None, "bent")) == {"thumb": "bent"} and similar_hands_tool.vote(hands(None)) == {}


def test_no_hand_is_an_answer(seen):
    seen.clear()
    media = Media(images=(PICTURE,))
    for name in ("embed_hand", "find_similar_hands"):
        result = call(name, media, overlay=True, cache=None)
        assert json.loads(result.text) == {"left": None, "right": None} and result.confidence is None
    assert result.overlay is not None and np.isnan(call("embed_hand", media, cache=None).tokens["hand"]).all()


def test_what_cannot_be_done_is_said(seen, tmp_path, monkeypatch):
    media = Media(images=(PICTURE,))
    for arguments in ({"count": 0}, {"count": 21}, {"hand": "third"}, {"image": 1}, {"index": "x"}):
        with pytest.raises(ToolError, match="find_similar_hands: "):
            call("find_similar_hands", media, arguments)
    seen[:] = [detect.HandDetection((500.0, 0.0, 520.0, 20.0), "left", 0.9)]
    for name in ("embed_hand", "find_similar_hands"):
        with pytest.raises(ToolError, match="outside the 120x120 picture"):
            call(name, media, cache=None)
    tiny_encoder(tmp_path / "encoder", seed=1)  # another encoder than the index's
    with pytest.raises(ToolError, match="build_hand_index.py"):
        call("find_similar_hands", media)
    monkeypatch.setenv(hand_index.VARIABLE, str(tmp_path / "nowhere"))
    with pytest.raises(ToolError, match="nowhere is missing"):
        call("find_similar_hands", media)
    (tmp_path / "encoder" / hand_embedding.WEIGHTS).write_bytes(b"half")
    with pytest.raises(ToolError, match="encoder"):
        call("embed_hand", media)


def test_new_weights_are_not_answered_from_the_cache(seen, tmp_path):
    media = Media(images=(PICTURE,))
    before = call("embed_hand", media).data["encoder"]
    tiny_encoder(tmp_path / "encoder", seed=1)
    assert call("embed_hand", media).data["encoder"] != before


def test_they_are_offered_by_name_only():
    media = Media(images=(PICTURE,))
    assert {"embed_hand", "find_similar_hands"} <= TOOLS.keys() and not {"embed_hand", "find_similar_hands"} & set(tools_for(media))
    count = schemas(["find_similar_hands"])[0]["function"]["parameters"]["properties"]["count"]
    assert (count["minimum"], count["maximum"]) == (1, 20)
    assert embed_hand_tool.TOOL.version() in similar_hands_tool.TOOL.version()
