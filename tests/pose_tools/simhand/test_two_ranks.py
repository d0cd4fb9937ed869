"""Negatives gathered across processes: the loss and every gradient are those of one process with the whole batch."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.pose_tools.simhand.two_ranks import FORMS, step


@pytest.mark.two_process
def test_two_processes_equal_one(tmp_path):
    root = Path(__file__).parents[3]
    environment = os.environ | {"PYTHONPATH": str(root), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    program = [sys.executable, "-m", "tests.pose_tools.simhand.two_ranks"]
    ranks = [
        subprocess.Popen([*program, str(rank), "2", str(tmp_path)], cwd=root, env=environment, stderr=subprocess.PIPE) for rank in (0, 1)
    ]
    try:
        for process in ranks:
            message = process.communicate(timeout=280)[1].decode()
            assert process.returncode == 0, message[-3000:]
    finally:
        for process in ranks:
            process.kill()
    found = [torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in (0, 1)]
    for form in FORMS:
        for name, value in step(form, 0, 1).items():
            for rank in (0, 1):
                torch.testing.assert_close(
                    found[rank][form][name], value, rtol=1e-5, atol=1e-6, msg=lambda m, w=(form, name, rank): f"{w}: {m}"
                )
