"""Views: exact inverses, warps that land where the map says, antialiasing, equality with the ordinary resizes."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pose_tools.views import View, center_crop, crop, letterbox, squash

SIDES = st.integers(1, 3000)


def ramp(width: int, height: int) -> np.ndarray:
    """A float picture whose value at each pixel centre is its own coordinates (x, y)."""
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    return np.stack([x, y], axis=-1).astype(np.float32)


@settings(max_examples=60, deadline=None)
@given(width=SIDES, height=SIDES, out=st.integers(1, 500), rotation=st.floats(-360, 360), scale=st.floats(0.2, 4), flip=st.booleans())
def test_round_trip_is_exact(width, height, out, rotation, scale, flip):
    size = (width, height)
    box = (0.1 * width, 0.2 * height, 0.7 * width, 0.9 * height)
    views = [letterbox(size, out), center_crop(size, out), squash(size, (out, 2 * out)), View.identity(size)]
    views.append(crop(box, (out, out), scale=scale, rotation=rotation, flip=flip, size=size))
    points = np.random.default_rng(0).uniform(-1, 2, (20, 2)) * size
    for view in views:
        assert np.abs(view.to_original(view.to_grid(points)) - points).max() < 1e-6
        assert View.from_dict(json.loads(json.dumps(view.to_dict()))) == view


@pytest.mark.parametrize(
    "view",
    [
        crop((20.3, 10.7, 61.9, 52.1), 64, rotation=33.0),
        crop((20.3, 10.7, 61.9, 52.1), 64, rotation=-120.0, flip=True),
        crop((20.3, 10.7, 61.9, 52.1), (64, 48), flip=True),
        crop((-10, -5, 40, 60), (33, 21), keep_aspect=False),
        crop((5, 5, 90, 70), 16, rotation=20.0),
        letterbox((100, 80), 37),
        center_crop((100, 80), (48, 30)),
        squash((100, 80), (210, 33)),
    ],
)
def test_the_warp_agrees_with_the_map(view):
    warped = view.warp(ramp(100, 80), fill=np.nan)
    centres = np.stack(np.meshgrid(*[np.arange(n) + 0.5 for n in view.out]), axis=-1)
    expected = view.to_original(centres)
    inside = ((expected > 0) & (expected < [100, 80])).all(-1)
    assert np.array_equal(np.isfinite(warped).all(-1), inside)
    # At the picture's border the filter sees the repeated border pixel, so the linear ramp is only exact further in.
    margin = 3 * max(1.0, 1 / np.sqrt(abs(np.linalg.det(view.matrix))), 100 / view.out[0], 80 / view.out[1])
    deep = ((expected > margin) & (expected < [100 - margin, 80 - margin])).all(-1)
    assert deep.sum() > 20
    assert np.abs(warped[deep] - expected[deep]).max() < 0.1  # original pixels


def test_letterbox_is_resize_and_paste():
    image = np.random.default_rng(1).integers(0, 256, (75, 200, 3), dtype=np.uint8)
    view = letterbox((200, 75), 96)
    warped = view.warp(image, fill=7)
    resized = np.asarray(Image.fromarray(image).resize((96, 36), Image.Resampling.BILINEAR))
    assert np.array_equal(warped[30:66], resized)
    assert (warped[:30] == 7).all() and (warped[66:] == 7).all()


def test_squash_is_a_plain_bicubic_resize():
    image = np.random.default_rng(1).integers(0, 256, (75, 200, 3), dtype=np.uint8)
    expected = np.asarray(Image.fromarray(image).resize((56, 56), Image.Resampling.BICUBIC))
    assert np.array_equal(squash((200, 75), 56).warp(image, interpolation="bicubic"), expected)


@pytest.mark.parametrize("size", [(456, 256), (255, 340), (224, 224), (101, 999)])
def test_center_crop_is_clips(size):
    from transformers import CLIPImageProcessorPil

    image = np.random.default_rng(2).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    image = np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BOX))
    clip = CLIPImageProcessorPil(size={"shortest_edge": 56}, crop_size={"height": 56, "width": 56}, do_normalize=False, do_rescale=False)
    expected = np.asarray(clip(image, return_tensors="np")["pixel_values"][0]).transpose(1, 2, 0)
    warped = center_crop(size, 56).warp(image, interpolation="bicubic")
    assert np.array_equal(warped, expected)


def test_a_flipped_crop_is_the_mirrored_crop():
    image = np.random.default_rng(3).integers(0, 256, (60, 80, 3), dtype=np.uint8)
    plain, flipped = crop((10, 12, 50, 40), (40, 28)), crop((10, 12, 50, 40), (40, 28), flip=True)
    assert np.array_equal(flipped.warp(image), plain.warp(image)[:, ::-1])
    assert np.allclose(flipped.box_to_grid((10, 12, 30, 40)), [20, 0, 40, 28])
    assert np.allclose(flipped.box_to_original([20, 0, 40, 28]), (10, 12, 30, 40))


def test_rotation_turns_x_towards_y():
    view = crop((0, 0, 10, 10), 10, rotation=90)
    assert np.allclose(view.to_grid([10, 5]), [5, 10])
    image = np.zeros((10, 10), np.uint8)
    image[5, 9] = 255
    assert view.warp(image)[9, 4] == 255


@pytest.mark.parametrize("rotation", [0, 45])
def test_shrinking_is_antialiased(rotation):
    stripes = np.zeros((512, 512), np.uint8)
    stripes[:, ::2] = 255
    centre = crop((64, 64, 448, 448), 32, rotation=rotation).warp(stripes)[8:-8, 8:-8]
    assert np.abs(centre.astype(int) - 127).max() < 12


def test_masks_keep_their_ids():
    ids = np.random.default_rng(4).choice(np.array([0, 1, 4, 10, 11], np.uint8), (50, 70))
    for view in (letterbox((70, 50), 33), crop((3, 3, 60, 40), 33, rotation=30)):
        assert set(np.unique(view.warp(ids, interpolation="nearest"))) <= {0, 1, 4, 10, 11}
    assert squash((70, 50), 10).warp(ids > 3).dtype == bool


def test_identity_changes_nothing_and_copies():
    image = np.random.default_rng(5).integers(0, 256, (9, 7, 3), dtype=np.uint8)
    warped = View.identity((7, 9)).warp(image)
    assert np.array_equal(warped, image) and not np.shares_memory(warped, image)


def test_two_views_in_one():
    first, second = letterbox((200, 100), 100), crop((20, 30, 60, 70), 50)
    points = np.random.default_rng(6).uniform(0, 100, (5, 2))
    assert np.allclose(first.then(second).to_grid(points), second.to_grid(first.to_grid(points)))
    with pytest.raises(ValueError, match="starts from"):
        first.then(letterbox((99, 100), 5))


def test_extreme_shapes_stay_cheap():
    assert letterbox((10000, 1), 64).warp(np.full((1, 10000, 3), 200, np.uint8)).max() == 200
    far = crop((-1e9, -1e9, 1e9, 1e9), 3).warp(np.full((5, 5), 200, np.uint8))
    assert far[1, 1] == 200 and far.sum() == 200
    assert crop((500, 500, 600, 600), 8, rotation=10).warp(np.ones((5, 5), np.uint8)).sum() == 0


def test_errors_say_what_was_got():
    with pytest.raises(ValueError, match="made for a 100x80 picture, got 80x100"):
        letterbox((100, 80), 10).warp(np.zeros((100, 80), np.uint8))
    with pytest.raises(ValueError, match=r"x1 < x2.*\(5, 5, 5, 9\)"):
        crop((5, 5, 5, 9), 10)
    with pytest.raises(ValueError, match="whole numbers"):
        letterbox((0, 80), 10)
    with pytest.raises(ValueError, match="no inverse"):
        View(np.diag([1.0, 0.0, 1.0]), None, (3, 3))
    with pytest.raises(ValueError, match="expected points"):
        View.identity((3, 3)).to_grid([1, 2, 3])
