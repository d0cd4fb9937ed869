#!/usr/bin/env python
"""How much memory a model needs to answer, by part, before it is loaded.

    python scripts/plan_memory.py scripts/configs/vlm4hoi_7b_model.json --load-in 8bit --memory 12
    python scripts/plan_memory.py runs/mine --tokens 4000 --batch 8

Takes a model folder, its config.json (HandsOnVLM's published ones too), or the training config that goes on from such a model; nothing is
loaded.
With --memory (GiB of the device) what cannot fit is refused with exit status 1.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm.commands.console import CommandError, run


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", type=Path, help="a model folder, an adapter folder, a config.json, or a training config")
    parser.add_argument("--load-in", choices=("8bit", "4bit"), help="the language model's blocks (default: 16 bits)")
    parser.add_argument("--tokens", type=int, default=1000, help="the whole context, pictures and answer included (default 1000)")
    parser.add_argument("--batch", type=int, default=1, help="sequences at a time (default 1)")
    parser.add_argument("--beams", type=int, default=1)
    parser.add_argument("--pictures", type=int, help="pictures encoded at a time (default: one a sequence)")
    parser.add_argument("--memory", type=float, help="GiB of the device; what does not fit is refused")
    options = parser.parse_args(arguments)
    if min(options.tokens, options.batch, options.beams, options.pictures or 1) < 1:
        parser.error("--tokens, --batch, --beams and --pictures are at least 1")

    from vlm.adapters import base_of, is_adapter
    from vlm.quantization import QuantizationError, plan

    source = _start_of(options.model) if options.model.suffix in (".yaml", ".yml") else options.model
    if not source.exists():  # what is not there would be looked for at Hugging Face, in vain
        raise CommandError(f"{source}: no such file or folder; expected a model folder or its config.json")
    source = base_of(source) if is_adapter(source) else source
    try:
        config = _config(source)
    except (OSError, ValueError) as error:
        why = " ".join(str(error).split())[:200]
        raise CommandError(f"{options.model}: no model's config ({why}); give a model's folder or its config.json") from error
    made = plan(
        config,
        load_in=options.load_in,
        tokens=options.tokens,
        batch=options.batch,
        beams=options.beams,
        pictures=options.pictures or options.batch,
    )
    print(made.table())
    if options.memory is not None:
        try:
            made.check(options.memory)
        except QuantizationError as error:
            raise CommandError(f"{options.model}: {error}") from error
        print(f"fits into {options.memory:g} GiB")
    return 0


def _start_of(recipe: Path) -> Path:
    """The model that a training config goes on from, or has built already."""
    from vlm import settings
    from vlm.run_folder import START
    from vlm.training_settings import FinetuneSettings

    training = settings.load(FinetuneSettings, recipe)
    if training.build is None and training.extend is None:
        return Path(str(training.model))
    start = Path(training.output) / START
    if not start.is_dir():
        raise CommandError(f"{recipe}: it makes a model of its own, which is not in {start} yet; start its run first")
    return start


def _config(source: Path) -> Any:
    """A HandVLM's, or what a published HandsOnVLM's or LITA's becomes; another program's would be taken for a HandVLM of default size.
    OSError, ValueError for anything else."""
    from vlm import HandVLMConfig
    from vlm.checkpoints.handsonvlm import model_config

    file = source / "config.json" if source.is_dir() else source
    kind = json.loads(file.read_text(encoding="utf-8")).get("model_type")
    if kind in ("handsonvlm", "lita"):
        return model_config(file)
    if kind != HandVLMConfig.model_type:
        raise ValueError(f"model_type is {kind!r}, expected {HandVLMConfig.model_type!r}, or 'handsonvlm' or 'lita' as published")
    return HandVLMConfig.from_pretrained(source)


if __name__ == "__main__":
    sys.exit(run(main))
