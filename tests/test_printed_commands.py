"""Commands that the documents print: their scripts, configs and options exist, and so do the files that documents link to."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

OPTION = re.compile(r"(?<!\S)--[a-z][a-z0-9-]*")
BY_OTHERS = {"--help"}


def documents(root: Path) -> list[Path]:
    pages = [*root.glob("*.md"), *root.glob("docs/*.md"), *root.glob("demos/assets/*/README.md")]
    return sorted([*pages, *root.glob("scripts/configs/*.yaml"), *root.glob("scripts/*.py"), *root.glob("scripts/benchmarks/*.py")])


def commands(text: str) -> Iterator[tuple[str, str]]:
    """(script, what stands behind it on the line); a line that ends in a backslash goes on."""
    joined = re.sub(r"\\\n\s*#?\s*", " ", text)
    for match in re.finditer(r"(scripts/[a-z_]+\.py)([^`\n|;→]*)", joined):
        yield match[1], re.split(r"\s#|\s{3,}|  +\(", match[2])[0]


def known_options(root: Path, script: str) -> set[str]:
    """Options that the script, or the commands and benchmarks it may hand over to, add to a parser."""
    sources = [root / script, *root.glob("vlm/commands/*.py"), *root.glob("pose_tools/doctor.py"), *root.glob("scripts/benchmarks/*.py")]
    return {option for path in sources for option in re.findall(r'"(--[a-z][a-z0-9-]*)"', path.read_text(encoding="utf-8"))}


@pytest.fixture(scope="module")
def printed() -> list[tuple[Path, str, str]]:
    root = Path(__file__).resolve().parents[1]
    found = [(path, *command) for path in documents(root) for command in commands(path.read_text(encoding="utf-8"))]
    assert len(found) > 150  # else the documents are written in a way that this file does not read
    return found


def test_scripts_configs_and_options_exist(printed: list[tuple[Path, str, str]], root: Path) -> None:
    known: dict[str, set[str]] = {}
    wrong = []
    for page, script, rest in printed:
        where = f"{page.relative_to(root)}: {script}{rest}"
        if not (root / script).is_file():
            wrong.append(f"no such script: {where}")
            continue
        options = known.setdefault(script, known_options(root, script) | BY_OTHERS)
        wrong += [f"no option {option}: {where}" for option in OPTION.findall(rest) if option not in options]
        wrong += [f"no config {name}: {where}" for name in re.findall(r"scripts/configs/[\w.]+\w", rest) if not (root / name).is_file()]
    assert wrong == []


def test_every_setting_has_a_set_of_its_own(printed: list[tuple[Path, str, str]]) -> None:
    assert [f"{page.name}: {rest}" for page, _, rest in printed if re.search(r"--set \S+ [a-z_.0-9]+=", rest)] == []


def test_links_between_documents_lead_to_files(root: Path) -> None:
    for page in (path for path in documents(root) if path.suffix == ".md"):
        links = re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8"))
        assert [link for link in links if not link.startswith("http") and not (page.parent / link).exists()] == [], page
