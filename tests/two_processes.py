"""Two processes of torchrun on this machine, for tests that compare them with one."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LONGEST = 280
"""Seconds until processes that wait for each other are ended."""


def run_two(script: str, *words: str | Path) -> None:
    """Runs `script` (its path in the repository) with `words` as two processes; what they printed is the error if one of them fails.

    `--standalone`: torchrun chooses the port and holds it, so that nobody else can take it in between.
    """
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", script, *map(str, words)]
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    with subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as process:
        try:
            printed, _ = process.communicate(timeout=LONGEST)
        finally:
            process.terminate()  # told to stop, torchrun ends its processes, too
    assert process.returncode == 0, printed[-5000:]
