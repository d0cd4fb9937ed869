"""HandVLMConfig: everything that fixes what a HandVLM is, saved as config.json beside the weights."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any, Literal, Self, get_args, get_origin, get_type_hints

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec

POSE_ENCODER_KEYS = ("dim", "n_tokens", "box_columns", "score_column", "weights_hash")
COUNTS = {"clip.slow_frames": 0, "clip.pool": 1, "clip.duplicates": 1, "clip.total": 1, "clip.frames": 1, "trajectory.steps": 1}
"""The least that may be given; null is nothing given."""


class _Entries:
    """A mapping of a config, read: its keys, their defaults and choices are the fields of a dataclass."""

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Self:
        """What a mapping says; keys that are absent or null have their defaults. Other keys are for `check_keys` to refuse."""
        return cls(**{one.name: given[one.name] for one in fields(cls) if given.get(one.name) is not None})  # type: ignore[arg-type]


@dataclass(frozen=True)
class ClipTokenSettings(_Entries):
    """How the frames of a clip become tokens (see `vlm.vision.slow_fast`).

    slow_frames, slow: how many frames keep their patches, and which: "spread" evenly over the clip, or the "last".
    pool: patches of such a frame are averaged pool × pool.
    duplicates, total: the clip counts as if it came so many times in a row, or is repeated until it has `total` frames.
    frames: of a longer clip only so many frames are looked at, spread evenly; None: all.
    pictures: a picture is read as a clip of one frame.
    """

    slow_frames: int = 4
    slow: Literal["spread", "last"] = "spread"
    pool: int = 2
    duplicates: int = 1
    total: int | None = None
    frames: int | None = None
    pictures: bool = False

    @property
    def pooling(self) -> dict[str, Any]:
        """The keyword arguments of `vlm.vision.slow_fast`."""
        return {name: getattr(self, name) for name in ("slow_frames", "slow", "pool", "duplicates", "total")}


@dataclass(frozen=True)
class TrajectorySettings(_Entries):
    """The head that forecasts paths of both hands.

    steps: points of a path.
    head, options: a name of `vlm.trajectory.HEADS`, and its keyword arguments.
    rate: points a second, for those who read the config. Nothing is worked out with it: the paths that are learnt have a spacing already.
    hand_layout: how a state's channels are shared between the hands (see `vlm.trajectory.hand_states`).
    position_code: what is added to the embedding of a path token whose point is known.
    feedback_noise: standard deviation, in units of the grid, of what is added in training to the points given back in this way; when the
        model answers it is given its own, which are not exact either.
    weight: of the head's loss beside that of the tokens.
    observed, observed_code: the pose encoder whose boxes say where the hands were; the head then predicts where a hand goes relative to
        where it was last seen. How it is told that place: see `vlm.trajectory_observed.CODES`.
    space: whether points are fractions of the sides of the "grid" that the tower sees or of the whole "frame".
    compat: "handsonvlm" for the published loss and sampling (see `vlm.trajectory`).
    """

    steps: int
    head: str = "path"
    options: Mapping[str, Any] = field(default_factory=dict)
    rate: float | None = None
    hand_layout: Literal["left_right", "right_left_interleaved"] = "left_right"
    position_code: Literal[None, "fourier", "handsonvlm"] = None
    feedback_noise: float = 0.0
    weight: float = 1.0
    observed: str | None = None
    observed_code: Literal["fourier", "handsonvlm", "none"] = "fourier"
    space: Literal["grid", "frame"] = "grid"
    compat: Literal[None, False, True, "handsonvlm", "handsonvlm_fp32"] = None


@strict
class HandVLMConfig(PreTrainedConfig):
    """Composition of a vision tower, a projector, pose encoders' projectors and a causal language model.

    Args:
        vision_config, text_config: any tower / causal language model that transformers knows (a dict with `model_type`, or a config).
        image_token_id: marks the slots of picture tokens. An id behind the vocabulary's last row has no row and is never written.
        image_size: side of the square picture that the tower sees, pixels.
        image_seq_length: tokens that one picture takes in the prompt.
        vision_norm_eps: eps of the tower's last LayerNorm (`post_layernorm`) where it is not that of its blocks, as in MiniGPT-v2.
        vision_feature_layer: index into the tower's hidden states (-1: its last).
        vision_feature_select_strategy: "default" drops the class token, "full" keeps every token (towers without one).
        token_reducer: "all", or "merge-4": four patches that follow each other in raster order become one token (MiniGPT-v2).
        projector_type: "linear", or "mlp" with two layers (LLaVA-1.5); `projector_norm` puts a LayerNorm before it.
        grid_position: scale of a fixed 2-D sine code of its place that is added to each projected token; 0 adds none.
        pose_encoders: a mapping (see below) for each specialist whose features the model reads, by name.
        clip: how the frames of a clip become tokens, a mapping with the entries of `ClipTokenSettings`; None for one that reads none.
        trajectory: the head that forecasts paths of both hands, a mapping with those of `TrajectorySettings`; None for a model without one.
            It comes together with `trajectory_token_id`, the id of `<hand_traj>`. `clip_settings` and `trajectory_settings` read the two.
        number_token_ids: [id of "0", how many] of number tokens with consecutive ids.
        number_sigma: standard deviation, in units of the 0-1000 dialect, of the Gaussian that stands for a number in the training loss;
            0 trains on the exact token.

    An entry of `pose_encoders`:
        dim, n_tokens: columns of a token's features, and tokens that one input takes.
        box_columns: the first column of each xyxy box among the features.
        score_column: the column of a confidence that gates the token.
        weights_hash: identity of the specialist's weights.

    Raises ValueError for parts that do not belong together and for a key of these mappings that does not exist.
    """

    model_type = "handvlm"
    sub_configs_defaults = {
        "vision_config": SubConfigSpec(config_class=AutoConfig, model_type="clip_vision_model"),
        "text_config": SubConfigSpec(config_class=AutoConfig, model_type="llama"),
    }

    vision_config: dict[str, Any] | PreTrainedConfig | None = None
    text_config: dict[str, Any] | PreTrainedConfig | None = None
    image_token_id: int = 32000
    image_size: int = 336
    image_seq_length: int = 576
    vision_norm_eps: float | int | None = None
    vision_feature_layer: int = -2
    vision_feature_select_strategy: Literal["default", "full"] = "default"
    token_reducer: Literal["all", "merge-4"] = "all"
    projector_type: Literal["linear", "mlp"] = "mlp"
    projector_hidden_act: str = "gelu"
    projector_norm: bool = False
    grid_position: float | int = 0.0
    pose_encoders: dict[str, dict[str, Any]] | None = None
    pose_token_ids: dict[str, int] | None = None
    clip: dict[str, Any] | None = None
    trajectory: dict[str, Any] | None = None
    trajectory_token_id: int | None = None
    number_token_ids: list[int] | None = None
    number_sigma: float | int = 0.0
    tie_word_embeddings: bool = False

    def __post_init__(self, **kwargs: Any) -> None:
        super().__post_init__(**kwargs)
        self.pose_encoders = self.pose_encoders or {}
        self.pose_token_ids = self.pose_token_ids or {}
        if set(self.pose_encoders) != set(self.pose_token_ids):
            raise ValueError(
                f"pose_encoders names {sorted(self.pose_encoders)} but pose_token_ids names {sorted(self.pose_token_ids)}; "
                "both must list the same encoders"
            )
        check_keys(self.pose_encoders, self.clip, self.trajectory)
        self.check_pooling()
        if (self.trajectory is None) != (self.trajectory_token_id is None):
            raise ValueError("trajectory and trajectory_token_id come together: a head without its token, or a token without its head")

    @property
    def clip_settings(self) -> ClipTokenSettings | None:
        """What `clip` says now."""
        return None if self.clip is None else ClipTokenSettings.of(self.clip)

    @property
    def trajectory_settings(self) -> TrajectorySettings | None:
        """What `trajectory` says now."""
        return None if self.trajectory is None else TrajectorySettings.of(self.trajectory)

    def check_pooling(self) -> None:
        """Raises ValueError unless the patches of a frame are a square that `clip`'s pool divides."""
        clip = self.clip_settings
        if clip is None:
            return
        patches, pool = self.image_seq_length * (4 if self.token_reducer == "merge-4" else 1), clip.pool
        side = math.isqrt(patches)
        if side * side != patches or side % pool:
            raise ValueError(f"clip.pool is {pool}, expected a divisor of the side of a frame's square of patches, which are {patches}")


def check_keys(
    pose_encoders: Mapping[str, Mapping[str, Any]] | None, clip: Mapping[str, Any] | None, trajectory: Mapping[str, Any] | None
) -> None:
    """Raises ValueError for a key that HandVLMConfig does not describe, which would silently change nothing, for a lacking one, and for a
    value that is none of those described."""
    for name, encoder in (pose_encoders or {}).items():
        _check_known(f"pose_encoders.{name}", encoder, POSE_ENCODER_KEYS)
    _check("clip", clip or {}, ClipTokenSettings)
    _check("trajectory", trajectory or {}, TrajectorySettings)
    if trajectory is not None and trajectory.get("steps") is None:
        raise ValueError("trajectory: the key 'steps' is missing; give the number of points of a path")


def _check(place: str, given: Mapping[str, Any], kind: type[_Entries]) -> None:
    kinds = get_type_hints(kind)
    _check_known(place, given, tuple(kinds))
    for key, value in given.items():
        name, choices = f"{place}.{key}", get_args(kinds[key]) if get_origin(kinds[key]) is Literal else None
        if choices and not any(value is choice or (isinstance(value, str) and value == choice) for choice in choices):
            raise ValueError(f"{name} is {value!r}, expected one of {', '.join(map(str, choices))}")
        if name in COUNTS and value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < COUNTS[name]):
            raise ValueError(f"{name} is {value!r}, expected a whole number of at least {COUNTS[name]}")


def _check_known(place: str, given: Mapping[str, Any], known: tuple[str, ...]) -> None:
    for key in given:
        if key not in known:
            near = difflib.get_close_matches(str(key), known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known)}"
            raise ValueError(f"{place}: unknown key {key!r}; {hint}")
