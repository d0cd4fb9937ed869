"""The page in a real browser, on request: HANDVLM_BROWSER=1, Debian's chromium and node, and playwright-core where NODE_PATH finds it
(`npm install playwright-core` in a folder F, NODE_PATH=F/node_modules). HANDVLM_SCREENSHOTS keeps the screenshots."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.slow, pytest.mark.browser]


@pytest.mark.skipif(os.environ.get("HANDVLM_BROWSER") != "1", reason="opt-in: set HANDVLM_BROWSER=1")
@pytest.mark.two_process
def test_a_visitor_asks_and_is_answered(root: Path, tmp_path: Path, free_port: int) -> None:
    pytest.importorskip("gradio", reason="needs the extra [demo]")
    chromium, node = shutil.which("chromium"), shutil.which("node")
    if not chromium or not node:
        pytest.fail("HANDVLM_BROWSER=1, but chromium or node is not installed")
    out = Path(os.environ.get("HANDVLM_SCREENSHOTS", tmp_path))
    out.mkdir(parents=True, exist_ok=True)
    (tmp_path / "text.jpg").write_text("hello")
    page = subprocess.Popen([sys.executable, "demos/app.py", "--port", str(free_port)], cwd=root, stdout=subprocess.PIPE, text=True)
    try:
        assert page.stdout is not None
        line = page.stdout.readline()
        assert f"http://127.0.0.1:{free_port}" in line, line
        script = Path(__file__).with_name("browser.cjs")
        command = [node, script, f"http://127.0.0.1:{free_port}", chromium, out, tmp_path / "text.jpg"]
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=280)
        assert done.returncode == 0, done.stderr
        found = json.loads(done.stdout)
        assert found["outside"] == [], "the page asked other hosts"
        assert found["errors"] == [] and found["called"] and "x " in found["answer"]
        assert found["boxes"] == ["", ""], "the question box keeps a question that was asked"
        wide, window = found["wide"]
        assert wide <= window + 8, "the page is wider than a telephone"
    finally:
        page.terminate()
        page.wait(20)
