"""A tiny VLM4HOI in the published file form: weights that are functions of their reference names, as in the recordings."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path

import numpy as np
from transformers import LlamaConfig

FIXTURES = Path(__file__).resolve().parents[1] / "fixtures"
_spec = importlib.util.spec_from_file_location("fill", FIXTURES / "fill.py")
fill = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(fill)

EVA = json.loads((FIXTURES / "vlm4hoi/eva_vit_tiny.json").read_text())
TOKENIZER = FIXTURES / "vlm4hoi/toy_tokenizer.model"
LLAMA = LlamaConfig(
    vocab_size=400, hidden_size=48, num_hidden_layers=2, num_attention_heads=4, intermediate_size=96, max_position_embeddings=512,
    bos_token_id=1, eos_token_id=2, pad_token_id=3, tie_word_embeddings=False,
)  # fmt: skip
RANK, ALPHA = 8, 2.0


def recorded_eva() -> dict[str, np.ndarray]:
    return dict(np.load(FIXTURES / "vlm4hoi/eva_vit_tiny.npz"))


def tower() -> dict:
    """`visual_encoder.*` and `ln_vision.*` as recorded."""
    return fill.state_dict(EVA["manifest"], EVA["fill_scale"])


def language_model() -> dict:
    """The frozen language model, named as a LlamaForCausalLM."""
    width, inner = LLAMA.hidden_size, LLAMA.intermediate_size
    shapes = {
        "model.embed_tokens.weight": (LLAMA.vocab_size, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (LLAMA.vocab_size, width),
    }
    for layer in range(LLAMA.num_hidden_layers):
        name = f"model.layers.{layer}."
        shapes |= {f"{name}self_attn.{side}_proj.weight": (width, width) for side in "qkvo"}
        shapes |= {f"{name}mlp.{part}_proj.weight": (inner, width) for part in ("gate", "up")}
        shapes |= {f"{name}mlp.down_proj.weight": (width, inner)}
        shapes |= {f"{name}{part}_layernorm.weight": (width,) for part in ("input", "post_attention")}
    return {name: fill.value(name, shape, scale=0.1) for name, shape in shapes.items()}


def trained() -> dict:
    """What a published file holds: LoRA on queries and values, the projector, and buffers that nobody needs."""
    width, channels = LLAMA.hidden_size, EVA["config"]["embed_dim"]
    shapes = {"llama_proj.weight": (width, 4 * channels), "llama_proj.bias": (width,)}
    for layer in range(LLAMA.num_hidden_layers):
        name = f"llama_model.base_model.model.model.layers.{layer}.self_attn."
        for side in "qv":
            shapes |= {f"{name}{side}_proj.lora_A.weight": (RANK, width), f"{name}{side}_proj.lora_B.weight": (width, RANK)}
        shapes[f"{name}rotary_emb.inv_freq"] = (6,)
    return {name: fill.value(name, shape, scale=0.1) for name, shape in shapes.items()}
