"""HandVLMConfig: everything that fixes what a HandVLM is, saved as config.json beside the weights."""

from __future__ import annotations

from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers import AutoConfig, PreTrainedConfig
from transformers.configuration_utils import SubConfigSpec


@strict
class HandVLMConfig(PreTrainedConfig):
    """Composition of a vision tower, a projector, pose encoders' projectors and a causal language model.

    `image_token_id` marks the slots; where it lies behind the vocabulary's last row, it has none and is never written.
    `vision_config` / `text_config`: any tower / causal LM that transformers knows (a dict with `model_type`, or a config).
    `vision_norm_eps`: eps of the tower's last LayerNorm (`post_layernorm`) where it is not that of its blocks, as in MiniGPT-v2.
    `image_size`: side of the square picture the tower sees, pixels. `image_seq_length`: tokens one picture takes in the prompt.
    `vision_feature_layer`: index into the tower's hidden states (-1: its last). `vision_feature_select_strategy`: "default"
    drops the class token, "full" keeps every token (towers without one).
    `token_reducer`: "all", or "merge-4" (four patches that follow each other in raster order become one token, MiniGPT-v2).
    `projector_type`: "linear" or "mlp" (two layers, LLaVA-1.5); `projector_norm` puts a LayerNorm before it.
    `grid_position`: scale of a fixed 2-D sine code added to the projected tokens; 0 adds none.
    `pose_encoders`: name -> {"dim": columns of a token's features, "n_tokens": slots, "box_columns": first columns of xyxy boxes,
    "weights_hash": identity of the specialist, "score_column": column of a confidence that gates the token}. `clip`: how a clip's
    frames become tokens, {"slow_frames", "slow": "spread" | "last", "pool", "duplicates" or "total"} (see `vlm.vision.slow_fast`),
    "frames": of a longer clip so many are looked at, spread evenly, "pictures": a picture is read as a clip of one frame; None reads no
    clips. `trajectory`: {"head": a name of `vlm.trajectory.HEADS`, "steps": points of a path, "rate": in Hz, "hand_layout",
    "position_code": None | "fourier" | "handsonvlm", how points are given back to the language model, "feedback_noise": deviation of what
    is added to them in training, since those that it will get are its own, "weight": of its loss, "observed": the pose encoder whose
    boxes say where the hands were (its head then adds to the place in which a hand was last seen), "observed_code": "fourier" |
    "handsonvlm" | "none", how the head reads that place, "compat": None | "handsonvlm", "space": "grid" | "frame", whose sides points
    are fractions of, "options": of the head};
    `trajectory_token_id` is that of `<hand_traj>`. `number_sigma`: width, in units of the 0-1000 dialect, of the Gaussian that stands
    for a number in the training loss; 0 trains on the exact token. `number_token_ids`: [id of "0", how many] of consecutive ids.
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
        if (self.trajectory is None) != (self.trajectory_token_id is None):
            raise ValueError("trajectory and trajectory_token_id come together: a head without its token, or a token without its head")
