#!/usr/bin/env python
"""A published checkpoint → a HandVLM folder.

    python scripts/convert.py vlm4hoi checkpoint_55.pth --llm Llama-2-7b-chat-hf --vision eva_vit_g.pth --out runs/vlm4hoi
    python scripts/convert.py handsonvlm handsonvlm-7b --out runs/handsonvlm
    python scripts/convert.py llava-projector mm_projector.bin --out runs/projector.safetensors    # what training starts from

The weights are the user's: this project ships none of them. See `convert.py vlm4hoi --help` and so on.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm.commands import convert_handsonvlm, convert_llava_projector, convert_vlm4hoi
from vlm.commands.console import run

SYSTEMS = {"vlm4hoi": convert_vlm4hoi, "handsonvlm": convert_handsonvlm, "llava-projector": convert_llava_projector}


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    systems = parser.add_subparsers(dest="system", required=True)
    for name, module in SYSTEMS.items():
        module.add_arguments(systems.add_parser(name, help=module.__doc__, description=module.__doc__))
    options = parser.parse_args(arguments)
    return SYSTEMS[options.system].main(options)


if __name__ == "__main__":
    sys.exit(run(main))
