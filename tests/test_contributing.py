"""The examples of CONTRIBUTING.md and README.md run, and each section stays short."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from pose_tools.tool import TOOLS

ROOT = Path(__file__).resolve().parents[1]
SECTION = re.compile(r"^## (.+)$", re.MULTILINE)
BLOCK = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def sections(name: str) -> dict[str, str]:
    """Title → text of the second-level sections of a page."""
    parts = SECTION.split((ROOT / name).read_text(encoding="utf-8"))
    return dict(zip(parts[1::2], parts[2::2]))


@pytest.fixture(autouse=True)
def _same_tools_afterwards() -> Iterator[None]:
    before = dict(TOOLS)
    yield
    TOOLS.clear()
    TOOLS.update(before)


@pytest.mark.parametrize("title", ["A tool", "A data set", "A vision tower", "A language model"])
def test_the_examples_of_contributing_run(title: str) -> None:
    text = sections("CONTRIBUTING.md")[title]
    assert len(text.strip().splitlines()) <= 40
    blocks = BLOCK.findall(text)
    assert blocks
    exec(compile("\n".join(blocks), f"CONTRIBUTING.md, {title}", "exec"), {"__name__": "example"})


def test_the_python_of_the_readme_runs(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(ROOT)
    for block in BLOCK.findall((ROOT / "README.md").read_text(encoding="utf-8")):
        exec(compile(block, "README.md", "exec"), {"__name__": "example"})
    assert re.search(r"\[\d+, \d+, \d+, \d+\]", capsys.readouterr().out), "the example's answer should be a box"


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_files_and_targets_that_a_page_names_are_there(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    names = set(re.findall(r"(?<![\w/.])((?:scripts|vlm|data|pose_tools|tests|demos|docs)/[\w./-]*\w)", text))
    missing = sorted(name for name in names if not (ROOT / name).exists())
    assert names and not missing, f"{page} names {missing}"
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set(re.findall(r"(?:`|^)make ([a-z-]+)", text, re.MULTILINE))
    assert named <= targets, f"{page} names {named - targets}"
