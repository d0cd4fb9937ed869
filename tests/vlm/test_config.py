"""What a config cannot mean is refused where it is given, and says what was meant: a misspelt key would silently change nothing."""

from __future__ import annotations

import pytest

from tests.tiny import CLIP, LLAMA, tiny
from vlm.build import BuildSettings
from vlm.config import HandVLMConfig
from vlm.extend import ExtendSettings
from vlm.settings import SettingsError, from_mapping

MISSPELT = [
    ({"trajectory": {"head": "path", "steps": 4, "hand_layuot": "left_right"}}, "trajectory: unknown key 'hand_layuot'.*'hand_layout'"),
    ({"clip": {"slow_frame": 4}}, "clip: unknown key 'slow_frame'.*'slow_frames'"),
    ({"pose_encoders": {"hand": {"dim": 2, "n_tokens": 1, "zzz": 0}}}, r"pose_encoders\.hand: unknown key 'zzz'; known are dim, n_tokens"),
]


@pytest.mark.parametrize("wrong, message", MISSPELT)
def test_a_misspelt_key_is_refused(wrong: dict, message: str) -> None:
    beside = {"pose_token_ids": {"hand": 1}} if "pose_encoders" in wrong else {"trajectory_token_id": 1} if "trajectory" in wrong else {}
    with pytest.raises(ValueError, match=message):
        HandVLMConfig(**wrong, **beside)
    for kind, needed in ((BuildSettings, {"language_model": LLAMA, "vision_tower": CLIP}), (ExtendSettings, {})):
        with pytest.raises(SettingsError, match=message):
            from_mapping(kind, needed | wrong)


@pytest.mark.parametrize("trajectory, message", [
    ({"head": "pth", "steps": 4}, "head is 'pth', expected one of cvae, mlp, path"),
    ({"head": "path"}, "'steps' is missing"),
    ({"head": "path", "steps": 4, "observed": "trak"}, "observed is 'trak', but the pose encoders are detection"),
])  # fmt: skip
def test_a_path_head_that_cannot_be_made_is_explained(trajectory: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("small", trajectory=trajectory)
