from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pose_tools import tool as tools
from pose_tools.detect_tool import TOOL as DETECT
from pose_tools.tool import Range, ResultCache, Tool, ToolCard, ToolError, ToolResult, call, schemas
from pose_tools.types import Media
from pose_tools.views import center_crop, letterbox, squash

CARD = ToolCard("pictures", "nothing", "Apache-2.0", ("none",))
CALLS: list[dict] = []


def every_type(
    media: Media,
    *,
    image: int = 0,
    colour: Literal["red", "blue"],
    rank: Literal[1, 2] = 1,
    share: Annotated[float, Range(0, 1)] = 0.5,
    count: Annotated[int, Range(1, 5)] = 3,
    flag: bool = False,
    name: Annotated[str, Range(1, 8)] = "cup",
    box: Annotated[list[float], Range(4, 4)] | None = None,
    either: int | str = 0,
    weights: Path = Path("unused"),
    array: np.ndarray | None = None,
) -> ToolResult:
    """Takes one argument of every kind.

    Args:
        media: pictures.
        image: Number of the picture.
        colour: A colour.
        rank: A rank.
        share: A share.
        count: A count.
        flag: A flag.
        name: A name.
        box: A box.
        either: A number or a word.
        weights: ours, not the model's.
        array: ours, not the model's.
    """
    arguments = {"image": image, "colour": colour, "rank": rank, "share": share, "count": count, "flag": flag, "name": name}
    arguments |= {"box": box, "either": either}
    CALLS.append(arguments)
    return ToolResult(
        data=arguments, text=json.dumps(arguments), tokens={"mean": media.images[image].reshape(1, -1)[:, :2].astype(np.float32)}
    )


DEFAULTS = {"image": 0, "rank": 1, "share": 0.5, "count": 3, "flag": False, "name": "cup", "box": None, "either": 0}


@pytest.fixture(autouse=True)
def _table(monkeypatch):
    monkeypatch.setitem(tools.TOOLS, "every_type", Tool(every_type, CARD))
    tools.CACHE.clear()
    CALLS.clear()


def media(count: int = 1, value: int = 0) -> Media:
    return Media(images=tuple(np.full((4, 6, 3), value + i, np.uint8) for i in range(count)))


def test_schema_is_the_one_of_the_function_without_ours():
    from transformers.utils import get_json_schema

    def every_type(
        *,
        image: int = 0,
        colour: Literal["red", "blue"],
        rank: Literal[1, 2] = 1,
        share: float = 0.5,
        count: int = 3,
        flag: bool = False,
        name: str = "cup",
        box: list[float] | None = None,
        either: int | str = 0,
    ):
        """Takes one argument of every kind.

        Args:
            image: Number of the picture.
            colour: A colour.
            rank: A rank.
            share: A share.
            count: A count.
            flag: A flag.
            name: A name.
            box: A box.
            either: A number or a word.
        """

    every_type.__annotations__ = {
        "image": int,
        "colour": Literal["red", "blue"],
        "rank": Literal[1, 2],
        "share": float,
        "count": int,
        "flag": bool,
        "name": str,
        "box": list[float] | None,
        "either": int | str,
    }
    expected = get_json_schema(every_type)
    expected["function"]["parameters"]["properties"]["share"] |= {"minimum": 0, "maximum": 1}
    expected["function"]["parameters"]["properties"]["count"] |= {"minimum": 1, "maximum": 5}
    assert schemas(["every_type"]) == [expected]


def test_every_tool_has_a_schema_a_card_and_a_docstring_per_argument():
    for schema, (name, tool) in zip(schemas(tools.TOOLS), tools.TOOLS.items(), strict=True):
        function = json.loads(json.dumps(schema))["function"]
        assert function["name"] == name and function["description"]
        assert "media" not in function["parameters"]["properties"]
        assert all(p["description"] for p in function["parameters"]["properties"].values())
        assert tool.card.needs and tool.card.cost and tool.card.licence and tool.card.failure_modes


def test_schemas_come_in_the_order_asked_for():
    names = ["every_type", "detect_hands"]
    assert [s["function"]["name"] for s in schemas(names)] == names
    assert [s["function"]["name"] for s in schemas(names[::-1])] == names[::-1]


def test_defaults_are_filled_in():
    assert call("every_type", media(), {"colour": "red"}).data == {"colour": "red"} | DEFAULTS


GOOD = {
    "image": [0, 1],
    "colour": ["red", "blue"],
    "rank": [1, 2],
    "share": [0, 1, 0.25],
    "count": [1, 5],
    "flag": [True],
    "name": ["a", "eightsix"],
    "box": [None, [0, 1.5, 2, 3]],
    "either": [7, "seven"],
}
BAD = {
    "image": [2, -1, 1.0, True, "0", None, 10**400],
    "colour": ["green", "", 0, None, ["red"]],
    "rank": [True, 1.0, 3, "1"],
    "share": [1.01, -0.01, float("nan"), float("inf"), "0.5", False, 10**400, None],
    "count": [0, 6, 2.0],
    "flag": [0, 1, "true"],
    "name": ["", "nine char", 5],
    "box": [[], [1, 2, 3], [1, 2, 3, 4, 5], [1, 2, 3, "4"], [1, 2, 3, float("nan")], "[1, 2, 3, 4]", {"x": 1}],
    "either": [1.5, None, [], {}],
}


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in GOOD.items() for value in values])
def test_good_arguments_arrive(name, value):
    assert call("every_type", media(2), {"colour": "red"} | {name: value}).data[name] == value


@pytest.mark.parametrize(("name", "value"), [(name, value) for name, values in BAD.items() for value in values])
def test_bad_arguments_are_named(name, value):
    with pytest.raises(ToolError, match=f"every_type: (argument '{name}|image )"):
        call("every_type", media(2), {"colour": "red"} | {name: value})
    assert not CALLS


def test_unknown_and_missing_arguments_and_tools_teach_what_there_is():
    with pytest.raises(ToolError, match="unknown argument 'hue'; its arguments are: image, colour, rank"):
        call("every_type", media(), {"colour": "red", "hue": 1})
    with pytest.raises(ToolError, match="argument 'colour' is missing"):
        call("every_type", media(), {})
    with pytest.raises(ToolError, match="unknown argument 'array'"):
        call("every_type", media(), {"colour": "red", "array": None})
    with pytest.raises(ToolError, match=f"there is no tool 'detect_feet'; the tools are: {', '.join(sorted(tools.TOOLS))}"):
        call("detect_feet", media())
    with pytest.raises(ToolError, match="there is no tool"):
        schemas(["detect_feet"])
    with pytest.raises(ToolError, match="there is no picture"):
        call("every_type", Media(), {"colour": "red"})
    with pytest.raises(ToolError, match="there is only image 0"):
        call("every_type", media(1), {"colour": "red", "image": 1})
    with pytest.raises(ToolError, match="there are images 0 to 1"):
        call("every_type", media(2), {"colour": "red", "image": 2})


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=5) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@given(st.one_of(JSON, st.dictionaries(st.sampled_from(["colour", *DEFAULTS]), JSON | st.sampled_from(["red", 1, 0.5]))))
def test_any_json_is_a_result_or_one_short_ascii_error(arguments):
    try:
        data = call("every_type", media(), arguments, cache=None).data
    except ToolError as error:
        assert str(error).isascii() and 0 < len(str(error)) < 250
    else:
        assert data == {"colour": "red"} | DEFAULTS | arguments


def test_huge_values_stay_out_of_the_message():
    deep: list = []
    for _ in range(100_000):
        deep = [deep]
    for value in ("x" * 100_000, 10**10_000, deep, list(range(10**5))):
        with pytest.raises(ToolError) as caught:
            call("every_type", media(), {"colour": value})
        assert len(str(caught.value)) < 250
    while deep:  # taken apart by hand: freeing it in one go would recurse
        deep = deep.pop()


def test_equal_content_is_worked_out_once_and_equals_the_uncached_result():
    first = call("every_type", media(), {"colour": "red"})
    again = call("every_type", media(), {"colour": "red", "image": 0, "count": 3})
    assert len(CALLS) == 1 and tools.CACHE.hits == 1
    uncached = call("every_type", media(), {"colour": "red"}, cache=None)
    assert len(CALLS) == 2
    for result in (again, uncached):
        assert (result.data, result.text, result.confidence) == (first.data, first.text, first.confidence)
        np.testing.assert_array_equal(result.tokens["mean"], first.tokens["mean"])


def test_other_pixels_arguments_frames_or_versions_are_worked_out_again(monkeypatch):
    call("every_type", media(), {"colour": "red"})
    reshaped = Media(images=tuple(image.reshape(6, 4, 3) for image in media().images))
    others = [media(value=1), media(2), reshaped, replace(media(), frames=media().images), replace(media(), fps=2.0)]
    for other in others:
        call("every_type", other, {"colour": "red"})
    call("every_type", media(), {"colour": "blue"})
    assert len(CALLS) == 2 + len(others) and tools.CACHE.hits == 0
    for version in ("old", "new"):
        monkeypatch.setitem(tools.TOOLS, "every_type", Tool(every_type, CARD, version=lambda version=version: version))
        call("every_type", media(), {"colour": "red"})
    assert tools.CACHE.hits == 0


def test_what_a_caller_does_to_a_result_stays_with_the_caller():
    first = call("every_type", media(), {"colour": "red"})
    first.data["colour"] = "spoilt"
    first.tokens["mean"][:] = -1
    again = call("every_type", media(), {"colour": "red"})
    assert again.data["colour"] == "red" and (again.tokens["mean"] == 0).all() and tools.CACHE.hits == 1


def test_the_cache_forgets_the_oldest():
    cache = ResultCache(size=2)
    for value in (0, 1, 0, 2, 0, 1):  # 1 is the oldest when 2 comes
        call("every_type", media(value=value), {"colour": "red"}, cache=cache)
    assert cache.hits == 2 and len(CALLS) == 4


def test_errors_and_overlays_are_not_kept(monkeypatch):
    drawn = Tool(every_type, CARD, draw=lambda media, result: media.images[0] + 1)
    monkeypatch.setitem(tools.TOOLS, "every_type", drawn)
    assert call("every_type", media(), {"colour": "red"}).overlay is None
    np.testing.assert_array_equal(call("every_type", media(), {"colour": "red"}, overlay=True).overlay, media(value=1).images[0])
    assert call("every_type", media(), {"colour": "red"}).overlay is None and len(CALLS) == 1
    for _ in range(2):
        with pytest.raises(ToolError):
            call("every_type", media(), {"colour": "green"})


# The registered tool, with the small detector's own code and random weights that see a hand everywhere.


@dataclass(frozen=True)
class Weights:
    folder: Path


@pytest.fixture()
def weights(tmp_path, monkeypatch):
    import torch

    from pose_tools import small_detector as small

    torch.manual_seed(0)
    sizes = {"image_size": 96, "embedding_size": 8, "hidden_sizes": (8, 16, 32), "depths": (1, 1, 1)}
    config = small.SmallDetectorConfig(("cup",), ("red",), calibration=((1.0, 20.0),) * 4, **sizes)
    small.SmallDetector(config).eval().save(tmp_path)
    monkeypatch.setattr(small, "DEFAULT_FOLDER", tmp_path)
    monkeypatch.setenv("HANDVLM_HANDS", "small")
    return Weights(tmp_path)


def noise(width: int, height: int) -> Media:
    return Media(images=(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8),))


def test_detect_hands_says_data_text_and_tokens_of_the_same_hands(weights):
    result = call("detect_hands", noise(120, 80), {})
    boxes = {side: hand["bbox_xyxy"] for side, hand in result.data["hands"].items()}
    assert list(boxes) == ["left", "right"]
    assert result.data == json.loads(json.dumps(result.data))
    expected = {side: [round(v * 1000 / s) for v, s in zip(box, (120, 80, 120, 80), strict=True)] for side, box in boxes.items()}
    assert json.loads(result.text) == expected and len(result.text) < 80
    np.testing.assert_allclose(result.tokens["detection"][:, :4], list(boxes.values()), atol=0.01)
    assert result.confidence == min(hand["score"] for hand in result.data["hands"].values())


def test_detect_hands_of_one_side_is_that_part_of_both(weights):
    both = call("detect_hands", noise(120, 80))
    for row, side in enumerate(("left", "right")):
        one = call("detect_hands", noise(120, 80), {"hand": side})
        assert one.data["hands"] == {side: both.data["hands"][side]}
        assert json.loads(one.text) == {side: json.loads(both.text)[side]}
        np.testing.assert_array_equal(one.tokens["detection"][row], both.tokens["detection"][row])
        assert np.isnan(one.tokens["detection"][1 - row]).all()


def test_detect_hands_draws_what_it_found(weights):
    pictures = noise(600, 540)  # as large as it is shown
    result = call("detect_hands", pictures, overlay=True)
    assert result.overlay.shape == (540, 600, 3) and result.overlay.dtype == np.uint8
    changed = (result.overlay != pictures.images[0]).any(-1)
    for side, hand in result.data["hands"].items():
        x1, y1, x2, y2 = (round(v) for v in hand["bbox_xyxy"])
        frame = np.concatenate([changed[y1:y2, x1 + 1], changed[y1:y2, x2 - 2], changed[y1 + 1, x1:x2], changed[y2 - 2, x1:x2]])
        assert frame.mean() > 0.9, side
    assert call("detect_hands", pictures).overlay is None
    nothing = replace(result, data={**result.data, "hands": {"left": None, "right": None}})
    assert (DETECT.draw(pictures, nothing) == pictures.images[0])[270:].all()
    small = noise(60, 40)
    assert min(DETECT.draw(small, call("detect_hands", small)).shape[:2]) >= 512  # enlarged, to be legible


def test_text_is_in_the_grid_that_the_model_sees(weights):
    pictures = noise(120, 80)
    whole = call("detect_hands", pictures)
    assert call("detect_hands", pictures, views=[squash((120, 80), 50)]).text == whole.text
    box = whole.data["hands"]["left"]["bbox_xyxy"]
    grid = json.loads(call("detect_hands", pictures, views=[letterbox((120, 80), 60)]).text)["left"]
    assert grid == pytest.approx([box[0] / 0.12, (box[1] + 20) / 0.12, box[2] / 0.12, (box[3] + 20) / 0.12], abs=1)
    outside = replace(whole, data={**whole.data, "hands": {"left": {"bbox_xyxy": [0.0, 0.0, 15.0, 80.0]}, "right": None}})
    assert DETECT.write(outside, [center_crop((120, 80), 60)]) == '{"left": null, "right": null}'


def test_a_missing_backend_is_a_tool_error_with_a_remedy(tmp_path, monkeypatch):
    from pose_tools import small_detector as small

    monkeypatch.setattr(small, "DEFAULT_FOLDER", tmp_path / "empty")
    monkeypatch.setenv("HANDVLM_CACHE", str(tmp_path))
    for backend, remedy in (("small", "train_detector"), ("mediapipe", "--fetch-hand-models|pip install"), ("auto", "train_detector")):
        monkeypatch.setenv("HANDVLM_HANDS", backend)
        with pytest.raises(ToolError, match=remedy):
            call("detect_hands", noise(20, 20))


def test_new_weights_are_not_answered_from_the_cache(weights):
    call("detect_hands", noise(60, 60))
    call("detect_hands", noise(60, 60))
    assert tools.CACHE.hits == 1
    file = weights.folder / "model.safetensors"
    file.write_bytes(file.read_bytes())
    os.utime(file, (1, 1))
    call("detect_hands", noise(60, 60))
    assert tools.CACHE.hits == 1
