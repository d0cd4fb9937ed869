"""`convert vlm4hoi`: VLM4HOI's or MiniGPT-v2's published checkpoint → a HandVLM folder."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from pose_tools.files import write_text
from vlm.commands.console import CommandError, positive


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the published .pth (checkpoint_55.pth), or a MiniGPT-v2 checkpoint")
    parser.add_argument("--llm", required=True, help="Llama-2-7b-chat-hf: its folder or name")
    parser.add_argument(
        "--vision", help="EVA-ViT-g: eva_vit_g.pth, or a BLIP-2 folder or name whose tower was frozen; not needed if the checkpoint has it"
    )
    parser.add_argument("--tokenizer", help="folder, name or sentencepiece file (default: that of --llm)")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument("--image-size", type=int, default=448, help="pixels (default 448, as published)")
    parser.add_argument(
        "--heads", type=positive, help="attention heads of a tower given as a file (default: of 88 channels each, as published)"
    )
    parser.add_argument("--lora-alpha", type=float, default=16.0, help="default 16, as published")
    parser.add_argument("--keep-lora", action="store_true", help="OUT is an adapter over OUT/base; for 8 and 4 bits, and to train on")
    parser.add_argument(
        "--template", choices=("vlm4hoi", "vlm4hoi_inference"), default="vlm4hoi", help="ask as in training, or as the published evaluation"
    )
    parser.add_argument(
        "--dtype", choices=("float16", "bfloat16", "float32"), help="of the weights written (default: the language model's)"
    )


def main(options: argparse.Namespace) -> int:
    """Writes the folder whole or not at all."""
    from vlm.checkpoints import vlm4hoi
    from vlm.checkpoints.reading import read_checkpoint

    if options.out.exists():
        raise CommandError(f"{options.out} exists already; name a new folder")
    tokenizer = vlm4hoi.load_tokenizer(options.tokenizer or options.llm)
    pad = tokenizer.convert_tokens_to_ids(vlm4hoi.PAD_TOKEN)
    config = {
        "image_size": options.image_size, "lora_alpha": options.lora_alpha, "dtype": options.dtype,
        "num_attention_heads": options.heads,
        "image_token_id": tokenizer.unk_token_id,
        "pad_token_id": tokenizer.eos_token_id if pad == tokenizer.unk_token_id else pad,
    }  # fmt: skip
    checkpoint = read_checkpoint(options.checkpoint)
    model = vlm4hoi.convert(checkpoint, options.llm, options.vision, config, merge_lora=not options.keep_lora)
    processor = vlm4hoi.make_processor(tokenizer, model.config, options.template)
    unfinished = options.out.with_name(f"{options.out.name}.unfinished")
    if options.keep_lora:
        _save_adapter(model, processor, unfinished)
    else:
        model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    unfinished.rename(options.out)
    print(
        f"wrote {options.out}: HandVLM, {sum(p.numel() for p in model.parameters()) / 1e6:,.1f} M parameters, template {options.template}"
    )
    return 0


def _save_adapter(model: Any, processor: Any, folder: Path) -> None:
    """The adapter in `folder`, the model without it in `folder/base`, named relative to it."""
    import json

    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    from vlm.adapters import ADAPTER_FILE, WEIGHTS_FILE

    folder.mkdir(parents=True)
    adapter = {f"base_model.model.{name}": value.contiguous() for name, value in get_peft_model_state_dict(model).items()}
    save_file(adapter, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    peft_config = next(iter(model.peft_config.values())).to_dict() | {"base_model_name_or_path": "base", "inference_mode": True}
    peft_config = {name: sorted(value) if isinstance(value, set) else value for name, value in peft_config.items()}
    write_text(folder / ADAPTER_FILE, json.dumps(peft_config, indent=2, default=str))
    state = {name.replace(".base_layer.", "."): value for name, value in model.state_dict().items() if ".lora_" not in name}
    model.config.save_pretrained(folder / "base")
    save_file({name: value.contiguous() for name, value in state.items()}, folder / "base" / "model.safetensors", metadata={"format": "pt"})
    processor.save_pretrained(folder / "base")
