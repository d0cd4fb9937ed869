"""Json files of other people's making, read whole: with or without a byte order mark, and without a name that stands twice."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any


def read_json(path: str | Path) -> Any:
    """What a file holds. OSError, or ValueError for text that is not UTF-8 json or names something twice in one object."""
    return json.loads(Path(path).read_text(encoding="utf-8-sig"), object_pairs_hook=_distinct)


def _distinct(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):  # the standard reader keeps the last one without a word
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice!r} stands there twice; keep one of them")
    return found
