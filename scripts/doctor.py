#!/usr/bin/env python
"""See pose_tools/doctor.py, or run with --help. Loads neither torch nor transformers through vlm: it must run where they are broken."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pose_tools.doctor import main

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
