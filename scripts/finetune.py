#!/usr/bin/env python
"""Supervised fine-tuning of a HandVLM from a YAML config; its keys are the fields of vlm.training_settings.FinetuneSettings.

    python scripts/finetune.py CONFIG.yaml --check                        what the run would do, before any step
    python scripts/finetune.py CONFIG.yaml --set optimizer.lr=1e-4        a setting for this run
    python scripts/finetune.py CONFIG.yaml --resume                       go on with a run that was stopped
    torchrun --nproc-per-node 2 scripts/finetune.py CONFIG.yaml           several processes; gloo on CPU, nccl on GPUs
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm.commands.console import CommandError, run
from vlm.commands.processes import rank_and_world


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("config", help="the YAML file")
    parser.add_argument("--set", action="append", default=[], metavar="a.b=value", help="change a setting; may be given many times")
    parser.add_argument("--check", action="store_true", help="report data, token budget, what is learnt and what trains; take no step")
    parser.add_argument("--resume", action="store_true", help="go on with the run in the output folder")
    parser.add_argument("--overwrite", action="store_true", help="throw away the run in the output folder")
    parser.add_argument("--merge", action="store_true", help="after a LoRA run also write the whole model to OUTPUT/merged")
    options = parser.parse_args(arguments)
    if options.resume and options.overwrite:
        parser.error("--resume goes on with a run, --overwrite throws it away: give one of them")
    main_process = rank_and_world()[0] == 0
    for name in ("vlm", "data"):
        logging.getLogger(name).setLevel(logging.INFO if main_process else logging.WARNING)

    return _run(options, main_process)


def _run(options: argparse.Namespace, main_process: bool) -> int:
    from vlm.settings import load
    from vlm.training import finetune, merge
    from vlm.training_settings import FinetuneSettings

    settings = load(FinetuneSettings, options.config, options.set)
    if options.check:
        from vlm.training_check import check

        for paragraph in check(settings, processes=rank_and_world()[1]) if main_process else ():
            print(paragraph, end="\n\n", flush=True)
        return 0
    if settings.deepspeed is not None and "RANK" not in os.environ:
        raise CommandError(
            "this config trains with DeepSpeed, which runs under torchrun, for one process too: "
            "torchrun --nproc-per-node 1 scripts/finetune.py …; or leave DeepSpeed out with --set deepspeed=null"
        )
    folder = finetune(settings, resume=options.resume, overwrite=options.overwrite)
    if options.merge and main_process:
        merge(folder)
    return 0


if __name__ == "__main__":
    sys.exit(run(main, again="run the same command with --resume"))
