"""The console entry: `handvlm answer|evaluate|doctor|demo …`, the same as the scripts of the same names."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

COMMANDS = {
    "answer": ("vlm.commands.answer", "a question about a picture or a clip"),
    "evaluate": ("vlm.commands.evaluate", "numbers for a model, beside baselines"),
    "doctor": ("pose_tools.doctor", "what is installed, what is missing, what each missing thing would enable"),
    "demo": ("vlm.commands.demo", "a page on this machine to ask about pictures and clips"),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs one command; returns its exit status."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    if not arguments or arguments[0] not in COMMANDS:
        print("usage: handvlm COMMAND …   (handvlm COMMAND --help says more)\n")
        print("\n".join(f"  {name:10}{what}" for name, (_, what) in COMMANDS.items()))
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    from vlm.commands.console import run

    return run(importlib.import_module(COMMANDS[arguments[0]][0]).main, arguments[1:])
