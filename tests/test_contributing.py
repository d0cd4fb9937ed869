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


def test_files_that_the_pages_name_are_there() -> None:
    for page in ("README.md", "CONTRIBUTING.md"):
        text = (ROOT / page).read_text(encoding="utf-8")
        names = re.findall(r"`((?:scripts|vlm|data|pose_tools|tests|demos)/[\w./-]+?)/?`", text)
        missing = [name for name in names if not (ROOT / name).exists()]
        assert not missing, f"{page} names {missing}"
