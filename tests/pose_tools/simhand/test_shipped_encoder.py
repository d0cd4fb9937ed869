"""The shipped hand encoder and index: small, of one another, and seen working in a demo picture."""

from __future__ import annotations

import numpy as np
import pytest

from pose_tools.image_io import read_image
from pose_tools.simhand import hand_embedding, hand_index
from pose_tools.simhand.hand_embedding import DEFAULT_FOLDER, WEIGHTS, load_hand_encoder
from pose_tools.simhand.hand_index import NAME, load_hand_index
from pose_tools.tool import call
from pose_tools.types import Media

PICTURE = DEFAULT_FOLDER.parent / "pictures/both_hands.jpg"


@pytest.fixture(autouse=True)
def nothing_of_the_users(monkeypatch):
    for name in (hand_embedding.VARIABLE, hand_index.VARIABLE):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HANDVLM_HANDS", "small")


def test_they_are_small_and_belong_together():
    assert (DEFAULT_FOLDER / WEIGHTS).stat().st_size <= 6e6 and (DEFAULT_FOLDER / NAME).stat().st_size <= 3e6
    encoder, index = load_hand_encoder(), load_hand_index()
    index.check_encoder(encoder)
    assert len(index) == 1700 and np.isfinite(index.joints_3d).all() and index.licence == "Apache-2.0"


def test_a_thumbnail_finds_its_own_hand():
    """72 pixels and JPEG's loss later the same hand is the nearest, nearly always."""
    encoder, index = load_hand_encoder(), load_hand_index()
    rows = np.arange(0, 1700, 68)
    found = index.search(encoder.embed([index.thumbnail(row) for row in rows]), 1)[0][:, 0]
    assert (found == rows).mean() >= 0.9


def test_both_hands_of_a_picture_find_similar_ones():
    result = call("find_similar_hands", Media(images=(read_image(PICTURE),)), {"count": 4}, overlay=True)
    for side in ("left", "right"):
        similar = result.data["hands"][side]["similar"]
        assert len({one["video_id"] for one in similar}) == 4 and similar[0]["similarity"] > 0.3
    assert result.overlay is not None and result.overlay.shape[1] > 5 * 160
