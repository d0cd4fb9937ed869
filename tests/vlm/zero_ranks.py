"""One process of a DeepSpeed run on CPU: `zero_ranks.py` and the arguments of scripts/finetune.py, under torchrun."""

from __future__ import annotations

import importlib
import runpy
import sys
from pathlib import Path

SCRIPT = Path(__file__).resolve().parents[2] / "scripts" / "finetune.py"

if __name__ == "__main__":
    # The communication operation over shared memory takes a minute to compile; gloo does the same. (`import deepspeed.comm.torch as t`
    # would bind the real torch.)
    importlib.import_module("deepspeed.comm.torch")
    sys.modules["deepspeed.comm.torch"].build_shm_op = lambda: None
    sys.argv[0] = str(SCRIPT)
    runpy.run_path(str(SCRIPT), run_name="__main__")
