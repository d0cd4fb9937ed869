#!/usr/bin/env python
"""The page on which people ask about pictures and clips; see vlm/commands/demo.py, or run with --help."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from vlm.commands.console import run
from vlm.commands.demo import main

if __name__ == "__main__":
    sys.exit(run(main))
