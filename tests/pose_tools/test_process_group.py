"""A process leaves its group before it ends."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from torch import distributed

from pose_tools.process_group import end_process_group
from vlm.commands.console import run


def begin(folder) -> None:
    distributed.init_process_group("gloo", init_method=f"file://{folder / 'store'}", rank=0, world_size=1)
    distributed.all_reduce(torch.ones(2))


def test_a_command_leaves_the_group_and_keeps_its_status(tmp_path):
    def main(arguments):
        begin(tmp_path)
        return len(arguments)

    assert run(main, ["a", "b"]) == 2
    assert not distributed.is_initialized()


def test_threads_of_gloo_are_given_the_interpreter_before_the_end(tmp_path, monkeypatch):
    waited = []
    monkeypatch.setattr("pose_tools.process_group.time.sleep", waited.append)
    end_process_group()
    assert not waited, "nothing to end, nothing to wait for"
    begin(tmp_path)
    end_process_group()
    assert waited == [pytest.approx(0.2)] and not distributed.is_initialized()


def test_ending_needs_no_torch():
    code = "import sys; from pose_tools.process_group import end_process_group as end; end(); sys.exit('torch' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True)
