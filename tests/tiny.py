"""Tiny HandVLMs with random weights, one of each kind the code supports; built in well under a second."""

from __future__ import annotations

import torch

from vlm.build import BuildSettings, build

TEXTS = [
    "where is my left hand? [120, 345, 678, 1000]",
    "what am I holding in my right hand? red cup",
    'left hand [1, 2, 3, 4], right hand [5, 6, 7, 8] none <tool_call>{"name": "detect_hands", "arguments": {"hand": "left"}}</tool_call>',
] * 4
DETECTION = {"detection": {"dim": 11, "n_tokens": 2, "box_columns": [0, 6], "weights_hash": "test"}}
LLAMA = {
    "model_type": "llama",
    "hidden_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 64,
    "max_position_embeddings": 2048,
    "tie_word_embeddings": False,
}
CLIP = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 56,
    "patch_size": 14,
}
EVA = {
    "model_type": "blip_2_vision_model",
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 48,
    "image_size": 56,
    "patch_size": 14,
}
RESNET = {"model_type": "resnet", "embedding_size": 8, "hidden_sizes": [8, 16, 24], "depths": [1, 1, 1], "layer_type": "basic"}

KINDS = {
    "llava": {"vision_tower": CLIP, "image_size": 56, "view": "center_crop"},
    "minigpt": {
        "vision_tower": EVA,
        "image_size": 56,
        "view": "squash",
        "token_reducer": "merge-4",
        "projector_type": "linear",
        "vision_feature_layer": -1,
        "dialect": "minigpt",
    },
    "small": {
        "vision_tower": RESNET,
        "image_size": 64,
        "vision_feature_layer": -1,
        "vision_feature_select_strategy": "full",
        "projector_norm": True,
        "grid_position": 0.5,
        "pose_encoders": DETECTION,
        "number_sigma": 12.0,
        "image_mean": [0.5] * 3,
        "image_std": [0.5] * 3,
        "interpolation": "bilinear",
    },
}


def tiny(kind: str = "small", seed: int = 0, **changes):
    """(model, processor) of a kind, in eval mode; `changes` are fields of BuildSettings, `llama` changes of the language model."""
    torch.manual_seed(seed)
    llama = LLAMA | changes.pop("llama", {})
    settings = BuildSettings(language_model=llama, vocab_size=1500, **(KINDS[kind] | changes))
    model, processor = build(settings, TEXTS)
    return model.eval(), processor


TRACK = {"track": {"dim": 11, "n_tokens": 6, "box_columns": [0, 6], "score_column": 5, "weights_hash": "test"}}
CLIP_KINDS = {
    "path": {"clip": {"slow_frames": 1, "slow": "last", "pool": 1}, "trajectory": {"head": "path", "steps": 4, "rate": 4.0}},
    "fed back": {
        "clip": {"slow_frames": 2, "pool": 2},
        "trajectory": {"head": "cvae", "steps": 4, "rate": 4.0, "position_code": "fourier", "options": {"hidden": 16, "latent": 8}},
    },
    "published": {
        "clip": {"slow_frames": 4, "pool": 2, "duplicates": 10},
        "trajectory": {
            "head": "cvae",
            "steps": 4,
            "rate": 4.0,
            "position_code": "handsonvlm",
            "hand_layout": "right_left_interleaved",
            "compat": "handsonvlm_fp32",
            "options": {"hidden": 16, "latent": 8},
        },
    },
    "observed": {
        "clip": {"slow_frames": 1, "slow": "last", "pool": 1},
        "trajectory": {"head": "path", "steps": 4, "rate": 4.0, "observed": "track"},
    },
    "parts": {
        "clip": {"slow_frames": 1, "slow": "last", "pool": 1},
        "trajectory": {
            "head": "path", "steps": 4, "rate": 4.0, "observed": "track", "observed_code": "handsonvlm", "position_code": "fourier",
            "options": {"hidden": 16, "anchor": True, "shared_latent": 8, "spread_by": "path", "velocity_weight": 1.0},
        },
    },  # fmt: skip
    "mlp": {"clip": {"slow_frames": 1}, "trajectory": {"head": "mlp", "steps": 3, "rate": 2.0, "options": {"hidden": 16}}},
}
"""Kinds of models that read clips and write paths."""


def tiny_clips(kind: str = "path", seed: int = 0, **changes):
    """(model, processor) of a kind of CLIP_KINDS with the small tower and track tokens of three frames."""
    encoders = {"pose_encoders": DETECTION | TRACK}
    return tiny("small", seed, **(encoders | CLIP_KINDS[kind] | changes))
