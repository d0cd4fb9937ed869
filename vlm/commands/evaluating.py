"""What the evaluations share: the identity of what was asked of which model, which conditions were chosen, and how a command ends."""

from __future__ import annotations

import argparse
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from vlm.commands.console import CommandError
from vlm.evaluation import tables


def chosen(names: Sequence[str] | None, conditions: Sequence[Any]) -> list[Any]:
    """The conditions called `names`, in their own order; None takes all. CommandError for a name that none of them has."""
    known = {condition.name: condition for condition in conditions}
    for name in names or ():
        if name not in known:
            raise CommandError(f"--conditions {name!r}: expected some of {', '.join(map(repr, known))}")
    return [condition for name, condition in known.items() if names is None or name in names]


def files_digest(paths: Sequence[Path]) -> str:
    """sha256 over the files' names and contents, 16 characters."""
    total = hashlib.sha256()
    for path in paths:
        total.update(path.name.encode())
        with open(path, "rb") as file:
            total.update(hashlib.file_digest(file, "sha256").digest())
    return total.hexdigest()[:16]


def model_digest(model: Path) -> str:
    """The identity of a model folder: a digest of its weights and settings."""
    return files_digest(sorted(p for p in Path(model).glob("*") if p.suffix in (".json", ".safetensors", ".jinja")))


def questions_digest(asked: Sequence[Any]) -> str:
    """A digest of the questions' ids and words, 16 characters."""
    total = hashlib.sha256()
    for question in asked:
        words = [part["text"] for message in question.sample.messages for part in message["content"] if part["type"] == "text"]
        total.update("\n".join([question.id, *words, ""]).encode())
    return total.hexdigest()[:16]


def finish(options: argparse.Namespace, section: str, text: str) -> int:
    """Prints the table `text`, puts it into the model card that --card names, and returns the exit status."""
    print(text)
    print(f"table: {options.out / 'table.md'}")
    if options.card:
        tables.into_card(options.card, section, text)
        print(f"card: {options.card}")
    return 0
