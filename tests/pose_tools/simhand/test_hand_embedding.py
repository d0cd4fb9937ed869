"""Hands as vectors: one as many, mirrored as not, and what is no hand or no encoder is refused by name."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pose_tools.simhand.checkpoint import CheckpointError
from pose_tools.simhand.encoder import published_state_dict
from pose_tools.simhand.hand_embedding import CONFIG, VARIABLE, WEIGHTS, HandEmbeddingError, hand_square, load_hand_encoder
from pose_tools.tool_protocol import BackendMissing
from tests.pose_tools.simhand.tiny_index import crops, tiny_encoder


def test_many_hands_are_one_by_one_and_of_length_one(tmp_path):
    encoder = tiny_encoder(tmp_path)
    pictures = crops(5)
    together = encoder.embed(pictures)
    assert together.shape == (5, encoder.width) and together.dtype == np.float32
    np.testing.assert_allclose(np.linalg.norm(together, axis=1), 1, rtol=1e-6)
    np.testing.assert_allclose(together, np.concatenate([encoder.embed([picture]) for picture in pictures]), atol=1e-6)
    assert encoder.embed([]).shape == (0, encoder.width)


def test_a_left_hand_is_the_right_one_of_the_mirrored_picture():
    picture = crops(1, size=100)[0]
    for box in ((20, 30, 60, 72), (0, 0, 30, 30), (-9, 50, 41, 120), (33.4, 20.2, 71.5, 63.9)):
        mirrored_box = (100 - box[2], box[1], 100 - box[0], box[3])
        assert np.array_equal(hand_square(picture, box, "left"), hand_square(picture[:, ::-1], mirrored_box, "right")), box


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((10, 10, 10, 20), "x1 < x2"),
        ((10, 10, 5, 20), "x1 < x2"),
        ((0, 0, np.nan, 5), "finite"),
        ((0, 0, 5), "four finite numbers"),
        ((60, 0, 70, 20), "outside the 50x40 picture"),
        ((0, -20, 10, 0), "outside the 50x40 picture"),
    ],
)
def test_boxes_that_hold_no_hand(box, message):
    with pytest.raises(HandEmbeddingError, match=message):
        hand_square(np.zeros((40, 50, 3), np.uint8), box, "right")


def test_pictures_that_are_no_crops(tmp_path):
    encoder = tiny_encoder(tmp_path)
    with pytest.raises(HandEmbeddingError, match="40x50 pixels; expected a square"):
        encoder.embed([np.zeros((50, 40, 3), np.uint8)])
    for picture in (np.zeros((0, 0, 3), np.uint8), np.zeros((8, 8, 3), np.float32)):
        with pytest.raises(ValueError, match="expected RGB uint8"):
            encoder.embed([picture])


def test_encoders_by_folder_variable_and_published_checkpoint(tmp_path, monkeypatch):
    small = tiny_encoder(tmp_path / "a")
    monkeypatch.setenv(VARIABLE, str(tmp_path / "a"))
    assert load_hand_encoder() is small and small.image_size == 32
    assert tiny_encoder(tmp_path / "b", seed=1).fingerprint != small.fingerprint
    tensors = {f"encoder.{name}": value for name, value in published_state_dict(small.network).items()}
    torch.save({"state_dict": tensors}, tmp_path / "published.ckpt")
    published = load_hand_encoder(tmp_path / "published.ckpt")
    assert (published.width, published.image_size) == (16, 128)
    assert all(torch.equal(value, published.network.state_dict()[name]) for name, value in small.network.state_dict().items())


def test_encoders_that_cannot_be_used(tmp_path):
    tiny_encoder(tmp_path)
    with pytest.raises(BackendMissing, match="pretrain_simhand.py, or set HANDVLM_HAND_ENCODER"):
        load_hand_encoder(tmp_path / "nowhere")
    (tmp_path / CONFIG).write_text('{"size": 3}')
    with pytest.raises(HandEmbeddingError, match=r"config.json: not a hand encoder's config \(KeyError\('image_size'\)\)"):
        load_hand_encoder(tmp_path)
    (tmp_path / CONFIG).write_text('{"image_size": 3}')
    with pytest.raises(HandEmbeddingError, match="image_size is 3, expected 32"):
        load_hand_encoder(tmp_path)
    (tmp_path / WEIGHTS).write_bytes(b"half a file")
    (tmp_path / CONFIG).unlink()
    with pytest.raises((CheckpointError, HandEmbeddingError), match=WEIGHTS):
        load_hand_encoder(tmp_path)
