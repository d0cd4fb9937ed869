"""Views against the recordings: geometry exact, the published pixels through compat, ours next to them."""

import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from pose_tools.simhand.compat import make_view_in_steps
from pose_tools.simhand.views import SIMCLR_STEPS, SIMHAND_STEPS, draw_parameters, hand_crop, make_view, normalise

FOLDER = Path(__file__).parents[2] / "fixtures/simhand"
RECORD = json.loads((FOLDER / "augment.json").read_text())
ARRAYS = dict(np.load(FOLDER / "augment.npz"))
CASES = {case["key"]: case for case in RECORD["augment"]}
DRAWN = ("angle", "jitter", "jitter_x", "jitter_y", "crop_margin", "h", "s", "a", "b", "sigma", "color_dropped")


def make(function, case, **changes):
    joints = np.concatenate([ARRAYS[case["key"] + "_joints_in"], np.zeros((21, 1), np.float32)], axis=1)
    return function(
        ARRAYS["image"], joints, **({"seed": case["py_random_seed"], "steps": [s for s, on in case["flags"].items() if on]} | changes)
    )


@pytest.mark.parametrize("key", CASES)
def test_geometry_and_draws_are_the_recorded_ones(key):
    case = CASES[key]
    _, joints, matrix, found = make(make_view, case)
    np.testing.assert_allclose(matrix, ARRAYS[key + "_T"], rtol=1e-12, atol=1e-9)
    np.testing.assert_allclose(joints, ARRAYS[key + "_joints_out"], rtol=0, atol=2e-5)
    assert {name: found[name] for name in DRAWN} == {name: case[name] for name in DRAWN}
    assert found["blurred"] == case["blurred"]


@pytest.mark.parametrize("key", CASES)
def test_published_pixels(key):
    view, *_ = make(make_view_in_steps, CASES[key])
    difference = np.abs(view.astype(int) - ARRAYS[key + "_image_out"].astype(int))
    assert difference.max() <= 2  # OpenCV's version may differ by rounding


def test_recorded_normalisation():
    found = normalise(ARRAYS["simhand_0_image_out"])[:, ::16, ::16]
    np.testing.assert_allclose(found, ARRAYS["norm_first"], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("key", CASES)
def test_parameters_make_the_view_again(key):
    view, joints, matrix, found = make(make_view, CASES[key])
    again = make(make_view, CASES[key], parameters=json.loads(json.dumps(found)), seed=None)
    assert np.array_equal(again[0], view) and np.array_equal(again[1], joints) and np.array_equal(again[2], matrix) and again[3] == found
    recorded = make(make_view, CASES[key], parameters={name: CASES[key][name] for name in (*DRAWN, "blurred")}, seed=None)
    assert np.array_equal(recorded[0], view)


def smooth_picture(seed=0):
    noise = np.random.default_rng(seed).uniform(0, 255, (14, 14, 3)).astype(np.float32)
    return cv2.resize(noise, (224, 224), interpolation=cv2.INTER_CUBIC).clip(0, 255).astype(np.uint8)


@pytest.mark.parametrize("seed", range(8))
def test_one_warp_shows_what_the_matrix_says(seed):
    """A dot drawn at a key point appears where the key point went, to a third of a pixel."""
    joints = np.random.default_rng(seed).uniform(60, 164, (21, 2)).astype(np.float32)
    parameters = draw_parameters(seed) | {"h": None}
    for dot in joints[:4]:
        x, y = np.meshgrid(np.arange(224) + 0.5, np.arange(224) + 0.5)
        image = np.repeat((255 * np.exp(-((x - dot[0]) ** 2 + (y - dot[1]) ** 2) / 32))[..., None], 3, axis=2).astype(np.uint8)
        view, _, matrix, _ = make_view(image, joints, parameters=parameters)
        expected = (matrix @ [*dot, 1])[:2]
        weight = view[..., 0].astype(float)
        if (expected < 20).any() or (expected > 108).any():
            continue
        u, v = np.meshgrid(np.arange(128) + 0.5, np.arange(128) + 0.5)
        centre = np.array([(weight * u).sum(), (weight * v).sum()]) / weight.sum()
        assert np.abs(centre - expected).max() < 0.35


@pytest.mark.parametrize("seed", range(6))
def test_one_warp_is_close_to_the_published_pixels(seed):
    joints = np.random.default_rng(seed).uniform(50, 174, (21, 2)).astype(np.float32)
    parameters = draw_parameters(seed) | {"h": None}
    ours, steps = (function(smooth_picture(), joints, parameters=parameters)[0].astype(int) for function in (make_view, make_view_in_steps))
    inner = np.abs(ours - steps)[8:-8, 8:-8]
    assert np.median(inner) <= 4  # half a pixel of the published pipeline's own shift


def test_simclr_views_do_not_turn():
    found = draw_parameters(3, SIMCLR_STEPS)
    assert found["angle"] is None and found["crop_margin"] == 1.25 and draw_parameters(3, SIMHAND_STEPS)["angle"] is not None


def test_hand_crops_are_the_recorded_ones():
    for number, box in enumerate(RECORD["crop_boxes"]):
        crop, matrix = hand_crop(ARRAYS["crop_source"], box, scale=RECORD["crop_scale"], size=RECORD["crop_size"])
        assert np.abs(crop.astype(int) - ARRAYS[f"crop_{number}"].astype(int)).max() <= 2
        mirrored, left = hand_crop(ARRAYS["crop_source"], box, side="left", scale=RECORD["crop_scale"], size=RECORD["crop_size"])
        assert np.array_equal(mirrored[:, ::-1], crop)
        point = np.array([box[0], box[1], 1.0])
        assert (left @ point)[0] == pytest.approx(224 - (matrix @ point)[0]) and (left @ point)[1] == (matrix @ point)[1]


def test_bad_input_is_named():
    image, joints = smooth_picture(), np.full((21, 2), 100.0)
    with pytest.raises(ValueError, match="one spot"):
        make_view(image, joints, seed=0)
    joints = np.random.default_rng(0).uniform(50, 170, (21, 2))
    with pytest.raises(ValueError, match="outside"):
        make_view(image, joints + 900, seed=0)
    with pytest.raises(ValueError, match="uint8"):
        make_view(image / 255, joints, seed=0)
    with pytest.raises(ValueError, match="unknown steps"):
        make_view(image, joints, seed=0, steps=["flip"])
    with pytest.raises(ValueError, match="leaves nothing"):
        hand_crop(image, [500, 500, 540, 540])
    joints[3] = np.nan
    with pytest.raises(ValueError, match=r"key points \[3\]"):
        make_view(image, joints, seed=0)
