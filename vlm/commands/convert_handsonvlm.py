"""`convert handsonvlm`: HandsOnVLM's published checkpoint, or LITA's, → a HandVLM folder."""

from __future__ import annotations

import argparse
import json
import logging
import re
from pathlib import Path
from typing import Any

from vlm.commands.console import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="the folder with config.json, tokenizer.model and the shards (.bin or .safetensors)")
    parser.add_argument("--vision", help="CLIP ViT-L/14: folder or name, for checkpoints that only name their tower (default: that name)")
    parser.add_argument("--tokenizer", help="folder or sentencepiece file (default: the checkpoint's folder)")
    parser.add_argument("--out", type=Path, required=True, help="a folder that does not exist yet")
    parser.add_argument(
        "--template", choices=("vicuna_v1", "llava_v0", "llava_v1"), default="vicuna_v1",
        help="ask as in training (default), as the published evaluation did, or as LITA's",
    )  # fmt: skip
    parser.add_argument(
        "--view", choices=("center_crop", "letterbox"), default="center_crop", help="what of a frame the tower sees (default as published)"
    )
    parser.add_argument("--dtype", choices=("float16", "bfloat16", "float32"), help="of the weights written (default: the checkpoint's)")


def main(options: argparse.Namespace) -> int:
    """Writes the folder whole or not at all."""
    import torch
    from transformers.utils import logging as transformers_logging

    from vlm.checkpoints import handsonvlm
    from vlm.checkpoints.reading import read_model_folder

    logging.getLogger("vlm.checkpoints").setLevel(logging.INFO)  # what is left out is said
    transformers_logging.set_verbosity_error()  # what does not fit is said here
    transformers_logging.disable_progress_bar()
    if options.out.exists():
        raise CommandError(f"{options.out} exists already; name a new folder")
    config_file = options.checkpoint / "config.json"
    try:
        config = json.loads(config_file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise CommandError(f"{config_file}: no config of a checkpoint ({error}); give the published folder, whole") from None
    if not isinstance(config, dict):
        raise CommandError(f"{config_file}: holds a {type(config).__name__}, expected an object")
    state, vision_config = read_model_folder(options.checkpoint), None
    if options.vision is not None or not any(name.startswith(handsonvlm.TOWER) for name in state):
        state, vision_config = _with_tower(state, options.vision, config.get("mm_vision_tower"))
    tokenizer = handsonvlm.load_tokenizer(options.tokenizer or options.checkpoint)
    model = handsonvlm.convert(state, config, vision_config, tokenizer)
    if options.dtype:
        model = model.to(getattr(torch, options.dtype))
    processor = handsonvlm.make_processor(tokenizer, model.config, options.template, options.view)
    unfinished = options.out.with_name(f"{options.out.name}.unfinished")
    model.save_pretrained(unfinished)
    processor.save_pretrained(unfinished)
    unfinished.rename(options.out)
    size = sum(p.numel() for p in model.parameters()) / 1e6
    print(f"wrote {options.out}: HandVLM, {size:,.1f} M parameters, template {options.template}, frames {options.view}")
    return 0


def _with_tower(state: dict, source: str | None, named: str | None) -> tuple[dict, object]:
    """The tensors, with those of the tower of `source` where they have none, and that tower's config. `named`: the tower that the
    checkpoint names, taken where `source` is None."""
    from vlm.checkpoints.handsonvlm import TOWER, load_tower, tower_tensors

    chosen = source or named
    if not chosen:
        raise CommandError("the checkpoint has no vision tower and names none; give --vision, the CLIP model it was trained with")
    tower = load_tower(chosen)
    _check_patches(tower.config, chosen, named)
    # A tower that is inside is not mended: what it lacks is missing from its shards.
    inside = any(name.startswith(TOWER) for name in state)
    return state if inside else tower_tensors(tower) | state, tower.config


def _check_patches(config: Any, source: str, named: str | None) -> None:
    """CLIP's names end in the side of a patch and, if it is not 224, of the picture: a tower of others has the same width, and would do."""
    ending = re.search(r"patch(\d+)(?:-(\d+))?$", named or "")
    if ending is None:
        return
    expected, got = (int(ending[1]), int(ending[2] or 224)), (config.patch_size, config.image_size)
    if got != expected:
        asked, here = (f"patches of {patch} in pictures of {side} pixels" for patch, side in (expected, got))
        raise CommandError(f"{source}: a tower of {here}, the checkpoint was trained with {named}, {asked}; give that one with --vision")
