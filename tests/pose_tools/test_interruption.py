"""Ctrl-C: one line that says how to go on, from the script and from none of its workers."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pose_tools import interruption


def test_an_interrupted_main_says_how_to_go_on(capsys: pytest.CaptureFixture[str]) -> None:
    def main() -> int:
        raise KeyboardInterrupt

    assert interruption.status_of(main) == 130 and interruption.status_of(lambda: 3) == 3
    assert capsys.readouterr().err == "\ninterrupted; run the same command again to go on\n"


@pytest.mark.slow
def test_a_terminals_interruption_of_a_script_and_its_workers_is_one_line(root: Path, tmp_path: Path) -> None:
    script = [sys.executable, str(root / "scripts/make_synthetic.py"), "stills"]
    options = ["--out", str(tmp_path), "--count", "5000", "--workers", "2"]
    writer = subprocess.Popen(script + options, stderr=subprocess.PIPE, text=True, start_new_session=True)
    journal = tmp_path / "train" / "scenes.jsonl"
    deadline = time.monotonic() + 120
    while not (journal.is_file() and journal.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(writer.pid, signal.SIGINT)
    _, said = writer.communicate(timeout=60)
    assert writer.returncode == 130 and "Traceback" not in said
    assert said.splitlines()[-1] == "interrupted; run the same command again to go on"
    assert journal.read_text().endswith("\n")
