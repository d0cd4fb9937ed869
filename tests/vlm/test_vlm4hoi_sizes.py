"""VLM4HOI at its published size: shapes on the meta device, and a block of the true width run at 448 pixels."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch.nn.functional import interpolate
from transformers import LlamaConfig, LlamaForCausalLM

from vlm import HandVLM, HandVLMConfig
from vlm.checkpoints import vlm4hoi
from vlm.quantization import skeleton

SEVEN_B = Path(__file__).resolve().parents[2] / "scripts/configs/vlm4hoi_7b_model.json"
WIDTH, INNER, RANK = 1408, 6144, 64


def test_the_published_size_is_made_of_the_published_parts() -> None:
    model = skeleton(HandVLMConfig.from_pretrained(SEVEN_B))
    shapes = {name: tuple(p.shape) for name, p in model.named_parameters()}
    tower = "model.vision_tower."
    assert shapes[f"{tower}embeddings.position_embedding"] == (1, 1025, WIDTH)
    assert shapes[f"{tower}encoder.layers.38.mlp.fc1.weight"] == (INNER, WIDTH) and f"{tower}encoder.layers.39.mlp.fc1.weight" not in shapes
    assert shapes["model.multi_modal_projector.linear_1.weight"] == (4096, 4 * WIDTH)
    assert model.model.vision_tower.post_layernorm.eps == 1e-5 and model.model.vision_tower.encoder.layers[0].layer_norm1.eps == 1e-6
    with torch.no_grad():
        tokens = model.model.image_tokens(torch.zeros(2, 3, 448, 448, device="meta"))
    assert tokens.shape == (2, 256, 4096)
    adapted = [name for name, _ in model.named_modules() if name.endswith(("q_proj", "v_proj"))]
    assert len(adapted) * RANK * 2 * 4096 + 4096 * (4 * WIDTH + 1) == 33_554_432 + 23_072_768


def lavis_tower(blocks: int) -> dict[str, torch.Tensor]:
    """`eva_vit_g.pth` with fewer blocks: a table of 16 × 16 places, and EVA's own norm and classifier, which nobody uses."""
    generator = torch.Generator().manual_seed(0)
    draw = lambda *shape: torch.randn(*shape, generator=generator, dtype=torch.float32).mul_(0.02)  # noqa: E731
    tensors = {"cls_token": draw(1, 1, WIDTH), "pos_embed": draw(1, 257, WIDTH), "norm.weight": draw(WIDTH), "norm.bias": draw(WIDTH)}
    tensors |= {"patch_embed.proj.weight": draw(WIDTH, 3, 14, 14), "patch_embed.proj.bias": draw(WIDTH), "head.weight": draw(10, WIDTH)}
    for n in range(blocks):
        shapes = {"norm1.weight": (WIDTH,), "norm1.bias": (WIDTH,), "norm2.weight": (WIDTH,), "norm2.bias": (WIDTH,)}
        shapes |= {"attn.q_bias": (WIDTH,), "attn.v_bias": (WIDTH,), "attn.qkv.weight": (3 * WIDTH, WIDTH)}
        shapes |= {"attn.proj.weight": (WIDTH, WIDTH), "attn.proj.bias": (WIDTH,), "mlp.fc1.weight": (INNER, WIDTH)}
        shapes |= {"mlp.fc1.bias": (INNER,), "mlp.fc2.weight": (WIDTH, INNER), "mlp.fc2.bias": (WIDTH,)}
        tensors |= {f"blocks.{n}.{name}": draw(*shape) for name, shape in shapes.items()}
    return tensors


@pytest.mark.slow
@torch.no_grad()
def test_a_block_of_the_true_width_converts_runs_and_is_saved_in_shards(tmp_path: Path) -> None:
    torch.manual_seed(0)
    hidden, source = 128, lavis_tower(1)
    llama = LlamaForCausalLM(
        LlamaConfig(vocab_size=400, hidden_size=hidden, num_hidden_layers=2, num_attention_heads=2, intermediate_size=256)
    )
    trained = {"llama_proj.weight": torch.randn(hidden, 4 * WIDTH) * 0.01, "llama_proj.bias": torch.zeros(hidden)}
    for layer in range(2):
        for side in "qv":
            name = f"llama_model.base_model.model.model.layers.{layer}.self_attn.{side}_proj."
            trained |= {f"{name}lora_A.weight": torch.randn(RANK, hidden), f"{name}lora_B.weight": torch.randn(hidden, RANK)}
    model = vlm4hoi.convert({"model": trained}, llama, source, {"image_size": 448})
    config = model.config.vision_config
    sizes = (config.hidden_size, config.num_attention_heads, config.intermediate_size, config.num_hidden_layers)
    assert sizes == (WIDTH, 16, INNER, 1)
    assert (config.image_size, model.config.image_seq_length) == (448, 256)
    grid = source["pos_embed"][:, 1:].reshape(1, 16, 16, WIDTH).permute(0, 3, 1, 2)
    grid = interpolate(grid, size=(32, 32), mode="bicubic", align_corners=False).permute(0, 2, 3, 1).reshape(1, 1024, WIDTH)
    table = model.model.vision_tower.embeddings.position_embedding
    assert torch.equal(table, torch.cat([source["pos_embed"][:, :1], grid], 1))
    picture = torch.randn(1, 3, 448, 448)
    tokens = model.model.image_tokens(picture)
    assert tokens.shape == (1, 256, hidden) and bool(torch.isfinite(tokens).all())

    model.save_pretrained(tmp_path, max_shard_size="40MB")
    assert len(list(tmp_path.glob("model-*.safetensors"))) > 2 and (tmp_path / "model.safetensors.index.json").is_file()
    again = HandVLM.from_pretrained(tmp_path)
    assert torch.equal(again.model.image_tokens(picture), tokens)
    assert all(torch.equal(a, b) for a, b in zip(again.state_dict().values(), model.state_dict().values(), strict=True))
    next(tmp_path.glob("model-*-of-*.safetensors")).unlink()
    with pytest.raises(OSError, match="model-"):
        HandVLM.from_pretrained(tmp_path)
