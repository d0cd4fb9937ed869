"""The language model in 8 or 4 bits (bitsandbytes), everything else as it is; and how much memory a model needs before it is loaded.

What stays in 16 bits is computed from the modules themselves: bitsandbytes takes full names, and silently quantises what it is not
told to leave. After loading, `verify` looks at every layer once more.
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from pose_tools.user_error import UserError
from vlm.config import HandVLMConfig
from vlm.model import HandVLM

LoadIn = Literal["8bit", "4bit"]
BODY = "model.language_model"
GIB = 2**30
CONTEXT = 0.6 * GIB
"""CUDA's context and fragmentation, assumed."""


class QuantizationError(UserError, RuntimeError):
    """Layers are not in the number format they should be in, or a model cannot fit; the message lists the layers or the parts."""


def skeleton(config: HandVLMConfig) -> HandVLM:
    """The model without memory for its weights."""
    with torch.device("meta"):
        return HandVLM(config)


def kept_modules(model: nn.Module) -> list[str]:
    """Full names of the highest modules that hold no part of the language model's blocks: they keep their number format.

    The head is among them, and with it the rows of new tokens; input embeddings are never quantised.
    """
    names: list[str] = []
    for name, _ in model.named_modules():
        inside = f"{name}."
        if (
            name
            and name != BODY
            and not BODY.startswith(inside)
            and not inside.startswith(f"{BODY}.")
            and not inside.startswith(tuple(f"{n}." for n in names))
        ):
            names.append(name)
    return names


def loading_options(config: HandVLMConfig, load_in: LoadIn, dtype: torch.dtype = torch.bfloat16) -> dict[str, Any]:
    """Arguments of `HandVLM.from_pretrained` for 8- or 4-bit weights (NF4) of the language model. Needs the extra [quant]."""
    if load_in not in ("8bit", "4bit"):
        raise ValueError(f"load_in is {load_in!r}, expected '8bit' or '4bit'")
    logging.getLogger("bitsandbytes").setLevel(logging.ERROR)  # else one line per layer and token about casting
    from transformers import BitsAndBytesConfig

    quantization = BitsAndBytesConfig(
        load_in_8bit=load_in == "8bit", load_in_4bit=load_in == "4bit", bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype,
        llm_int8_skip_modules=kept_modules(skeleton(config)),
    )  # fmt: skip
    return {"quantization_config": quantization, "dtype": dtype}


def verify(model: nn.Module, load_in: LoadIn) -> None:
    """Raises QuantizationError unless every linear layer of the language model's blocks is quantised, and nothing else is."""
    import bitsandbytes

    wanted = bitsandbytes.nn.Linear8bitLt if load_in == "8bit" else bitsandbytes.nn.Linear4bit
    either = (bitsandbytes.nn.Linear8bitLt, bitsandbytes.nn.Linear4bit)
    wrong = []
    for name, module in model.named_modules():
        inside = name.startswith(f"{BODY}.")
        adapter = ".lora_" in name
        if isinstance(module, either if not inside or adapter else ()) or (
            inside and not adapter and isinstance(module, nn.Linear) and not isinstance(module, wanted)
        ):
            wrong.append(f"{name} ({type(module).__name__})")
    if wrong:
        raise QuantizationError(
            f"loaded in {load_in}, but {len(wrong)} layers are not so: {', '.join(wrong[:8])}; another version of bitsandbytes?"
        )


@dataclass(frozen=True)
class Row:
    """One line of a plan: what needs memory, how many parameters it has, and bytes."""

    part: str
    parameters: int
    bytes: float


@dataclass(frozen=True)
class Plan:
    """What a model needs on one device to answer."""

    rows: tuple[Row, ...]

    @property
    def bytes(self) -> float:
        return sum(row.bytes for row in self.rows)

    @property
    def gib(self) -> float:
        return self.bytes / GIB

    def table(self) -> str:
        lines = [f"{'part':38} {'parameters':>12} {'GiB':>8}"]
        lines += [f"{row.part:38} {row.parameters / 1e6:>10,.1f} M {row.bytes / GIB:>8.2f}" for row in self.rows]
        return "\n".join([*lines, f"{'sum':38} {sum(r.parameters for r in self.rows) / 1e6:>10,.1f} M {self.gib:>8.2f}"])

    def check(self, memory_gib: float) -> None:
        """Raises QuantizationError when the plan needs more than the device has."""
        if self.gib > memory_gib:
            largest = max(self.rows, key=lambda row: row.bytes)
            raise QuantizationError(
                f"needs {self.gib:.2f} GiB, there are {memory_gib:.2f}; the largest is {largest.part} ({largest.bytes / GIB:.2f} GiB). "
                "Load in 8bit or 4bit, or allow fewer tokens, a smaller batch or fewer beams"
            )


def plan(
    config: HandVLMConfig,
    *,
    load_in: LoadIn | None = None,
    tokens: int = 1000,
    batch: int = 1,
    beams: int = 1,
    pictures: int = 1,
    width: int = 2,
) -> Plan:
    """Bytes to answer with: weights by part, cache of keys and values, activations of the prompt, context.

    `tokens`: the whole context, pictures' tokens and answer included, per sequence. `pictures`: encoded at a time. `width`: bytes of an
    unquantised number (2: 16 bits). int8 has one float per output row beside its weights, NF4 one float per 64 weights. Activations
    are those of the widest layer with sdpa attention, as estimated from its tensors; measured peaks may differ by some tenths of a GiB.
    """
    model = skeleton(config)
    text = config.text_config
    rows = [Row(name, *_weights(module, width)) for name, module in _parts(model)]
    blocks = [m for m in model.model.language_model.modules() if isinstance(m, nn.Linear)]
    rows.append(Row(f"language model, blocks ({load_in or f'{8 * width} bit'})", *_linear_weights(blocks, load_in, width)))
    heads, kv_heads = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    head_width = getattr(text, "head_dim", None) or text.hidden_size // heads
    rows.append(Row("keys and values", 0, 2 * text.num_hidden_layers * kv_heads * head_width * tokens * batch * beams * width))
    rows.append(Row("activations, prompt", 0, _prompt_activations(text, blocks, load_in, tokens * batch, width, batch)))
    rows.append(Row("activations, vision tower", 0, _tower_activations(config, pictures, width)))
    rows.append(Row("device context (assumed)", 0, CONTEXT))
    return Plan(tuple(rows))


def _parts(model: HandVLM) -> list[tuple[str, list[nn.Parameter]]]:
    """Everything but the blocks' matrices: name → parameters."""
    body = model.model.language_model
    matrices = {id(m.weight) for m in body.modules() if isinstance(m, nn.Linear)}
    table = model.get_input_embeddings().weight
    parts: list[tuple[str, list[nn.Parameter]]] = [
        (name.replace("_", " "), list(child.parameters())) for name, child in model.model.named_children() if child is not body
    ]
    parts.append(("embeddings", [table]))
    parts.append(("language model, norms and biases", [p for p in body.parameters() if id(p) not in matrices and p is not table]))
    parts += [
        (name.replace("_", " "), [p for p in child.parameters() if p is not table])
        for name, child in model.named_children()
        if name != "model"
    ]
    return [(name, parameters) for name, parameters in parts if parameters]


def _weights(parameters: list[nn.Parameter], width: int) -> tuple[int, float]:
    count = sum(p.numel() for p in parameters)
    return count, count * width


def _linear_weights(layers: list[nn.Linear], load_in: LoadIn | None, width: int) -> tuple[int, float]:
    count = sum(layer.weight.numel() for layer in layers)
    if load_in == "8bit":
        return count, count + sum(4 * layer.out_features for layer in layers)
    return count, count * (0.5 + 4 / 64) if load_in == "4bit" else count * width


def _prompt_activations(text: Any, blocks: list[nn.Linear], load_in: LoadIn | None, positions: int, width: int, batch: int) -> float:
    """Residual, norm, queries, keys, values and their copies (8 × hidden), the gated layer's three, and logits of the last position."""
    inner = max((layer.out_features for layer in blocks), default=0)
    plain = positions * (8 * text.hidden_size + 3 * inner) * width + 4 * batch * text.vocab_size
    largest = max((layer.weight.numel() for layer in blocks), default=0)
    extra = {"8bit": positions * inner * (4 + 1), "4bit": largest * width}  # int32 sums and int8 inputs; one matrix unpacked
    return plain + (extra[load_in] if load_in else 0)


def _tower_activations(config: HandVLMConfig, pictures: int, width: int) -> float:
    vision = config.vision_config
    if not hasattr(vision, "intermediate_size"):
        return 3 * pictures * config.image_size**2 * 64 * width  # a convolutional tower: its widest maps
    patches = (config.image_size // vision.patch_size) ** 2 + 1
    return pictures * patches * (8 * vision.hidden_size + 2 * vision.intermediate_size) * width
