"""`convert llava-projector`: LLaVA's pre-trained linear projector → a file that training starts from (`build.projector_weights`)."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path

from vlm.commands.console import CommandError


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("checkpoint", type=Path, help="mm_projector.bin, as in liuhaotian/llava-pretrain-vicuna-7b-v1.3")
    parser.add_argument("--width", type=int, help="the language model's, to be checked (7B: 4096, 13B: 5120)")
    parser.add_argument("--out", type=Path, required=True, help="a .safetensors file that does not exist yet")


def main(options: argparse.Namespace) -> int:
    """Writes the file whole or not at all."""
    from safetensors.torch import save_file

    from pose_tools.files import atomic_path
    from vlm.checkpoints.handsonvlm import llava_projector
    from vlm.checkpoints.reading import CheckpointError, read_checkpoint

    logging.getLogger("vlm.checkpoints").setLevel(logging.INFO)  # what is left out is said
    if options.out.exists() or options.out.suffix != ".safetensors":
        raise CommandError(f"{options.out} exists already or is not named .safetensors; name a new file")
    content = read_checkpoint(options.checkpoint)
    try:
        tensors = llava_projector(content, options.width)
    except CheckpointError as error:
        raise CommandError(f"{options.checkpoint}: {error}") from error
    with atomic_path(options.out) as path:
        save_file({name: value.contiguous() for name, value in tensors.items()}, path, metadata={"format": "pt"})
    width, channels = tensors["model.multi_modal_projector.linear_1.weight"].shape
    print(f"wrote {options.out}: a linear projector {channels} → {width}; name it as build.projector_weights")
    return 0
