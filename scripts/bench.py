#!/usr/bin/env python
"""Times a part of the project against the other way of doing it, interleaved in one process: `scripts/bench.py NAME [--help]`.

Each benchmark is a module of scripts/benchmarks with `main(arguments)`; without a name they are listed.
"""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

FOLDER = Path(__file__).resolve().parent / "benchmarks"


def names() -> dict[str, str]:
    """Benchmark → the first line of its docstring, read without importing it."""
    found = {
        path.stem.replace("_", "-"): ast.get_docstring(ast.parse(path.read_text())) or ""
        for path in sorted(FOLDER.glob("[a-z]*.py"))
        if path.stem != "timing"
    }
    return {name: text.splitlines()[0] if text else "" for name, text in found.items()}


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status."""
    arguments = sys.argv[1:] if arguments is None else arguments
    known = names()
    if not arguments or arguments[0] not in known:
        wrong = bool(arguments) and arguments[0] not in ("-h", "--help")
        text = (f"no benchmark is called {arguments[0]!r}; " if wrong else "") + "usage: bench.py NAME [options], NAME one of\n"
        print(text + "\n".join(f"  {name:14} {line}" for name, line in known.items()), file=sys.stderr if wrong else sys.stdout)
        return 2 if wrong else 0
    importlib.import_module(f"scripts.benchmarks.{arguments[0].replace('-', '_')}").main(arguments[1:])
    return 0


if __name__ == "__main__":
    sys.exit(main())
