"""What a config cannot mean is refused where it is given, and says what was meant: a misspelt key would silently change nothing."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.runs import make_world
from tests.tiny import CLIP, LLAMA, tiny
from vlm.build import BuildSettings
from vlm.config import ClipTokenSettings, HandVLMConfig, TrajectorySettings
from vlm.extend import ExtendSettings
from vlm.settings import SettingsError, from_mapping
from vlm.training import make_start
from vlm.training_settings import FinetuneSettings

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


@pytest.mark.parametrize("wrong, message", [
    ({"vocab_size": 10}, "vocab_size is 10, .* give at least"),
    ({"trajectory": {"head": "pth", "steps": 4}}, "head is 'pth'"),
    ({"language_model": {"hidden_size": 8}}, "a fresh part needs 'model_type'"),
    ({"view": "lettrbox"}, "build.view: got 'lettrbox'"),
    ({"token_reducer": "merge-5"}, "build.token_reducer: got 'merge-5'"),
    ({"template": "llava"}, "build: template is 'llava', expected one of chat,"),
])  # fmt: skip
def test_a_model_that_cannot_be_built_is_an_error_of_the_settings(wrong: dict, message: str, tmp_path: Path) -> None:
    build = {"language_model": LLAMA, "vision_tower": CLIP, "image_size": 56, "vocab_size": 1500} | wrong
    data = {"datasets": [{"kind": "synthetic_referral", "path": str(make_world(tmp_path / "train", 2))}]}
    with pytest.raises(SettingsError, match=message):
        make_start(from_mapping(FinetuneSettings, {"output": str(tmp_path), "build": build, "data": data, "steps": 1}))


@pytest.mark.parametrize("trajectory, message", [
    ({"head": "pth", "steps": 4}, "head is 'pth', expected one of cvae, mlp, path"),
    ({"head": "path"}, "'steps' is missing"),
    ({"head": "path", "steps": 4, "observed": "trak"}, "observed is 'trak', but the pose encoders are detection"),
])  # fmt: skip
def test_a_path_head_that_cannot_be_made_is_explained(trajectory: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        tiny("small", trajectory=trajectory)


def test_mappings_stay_mappings_and_are_read_with_their_defaults(tmp_path: Path) -> None:
    config = HandVLMConfig(clip={"pool": None, "slow": "last"}, trajectory={"steps": 4, "weight": 8.0}, trajectory_token_id=1)
    assert config.clip_settings == ClipTokenSettings(slow="last") and config.trajectory_settings == TrajectorySettings(steps=4, weight=8.0)
    assert "clip_settings" not in config.to_dict() and config.to_dict()["trajectory"] == {"steps": 4, "weight": 8.0}
    config.save_pretrained(tmp_path)
    again = HandVLMConfig.from_pretrained(tmp_path)
    assert again.clip == config.clip and again.trajectory_settings == config.trajectory_settings
    config.clip = None
    assert config.clip_settings is None
