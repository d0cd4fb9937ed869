"""Data sets as groups: all samples about one picture together, so that a picture's questions share one copy of its tokens.

`open_groups(kind, path, ...)` gives a `Groups`; group `index` in pass `epoch` is a function of (seed, index, epoch) alone.
"""

from __future__ import annotations

import difflib
import inspect
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from data.sample import Sample
from pose_tools.user_error import UserError

SPLITS = ("train", "val", "test")
CLIP_KINDS = ("clip_trajectory",)
"""Kinds whose samples are about clips."""


_SET = ("path", "record", "folder", "seed", "split", "kinds", "limit")
"""Arguments of readers that are no options: they are given otherwise."""


class DatasetError(UserError):
    """A data set that cannot be read; the message names the folder or file and what to do."""


@dataclass(frozen=True)
class Groups:
    """`size` groups; `read(index, epoch)` gives the samples of one, in order; `pictures` lists every picture's path, frames included;
    `clips`, for data sets of clips, what `targets["start"]` of a sample names: (name, its frames' paths)."""

    size: int
    read: Callable[[int, int], list[Sample]]
    pictures: Callable[[], list[Path]]
    clips: Callable[[], list[tuple[str, list[Path]]]] | None = None

    def __len__(self) -> int:
        return self.size


class JsonLines:
    """A file of one JSON record a line, read on demand: keeps the lines' places, not the records."""

    def __init__(self, path: Path) -> None:
        self.path = path
        if not path.is_file():
            raise DatasetError(f"{path}: no such file; make the folder with scripts/make_synthetic.py, or correct the path")
        self.starts = [0]
        with open(path, "rb") as file:
            for line in file:
                if line.endswith(b"\n"):  # a last line without an end is still being written
                    self.starts.append(self.starts[-1] + len(line))

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, Any]:
        with open(self.path, "rb") as file:
            file.seek(self.starts[index])
            line = file.read(self.starts[index + 1] - self.starts[index])
        try:
            return json.loads(line)
        except ValueError as error:
            raise DatasetError(f"{self.path}: line {index + 1} is not JSON ({error}); remove it, or make the folder again") from error


def open_groups(
    kind: str,
    path: str | Path,
    *,
    seed: int = 0,
    split: str = "train",
    kinds: Sequence[str] | None = None,
    limit: int | None = None,
    options: dict[str, Any] | None = None,
) -> Groups:
    """Opens a data set by kind.

    Args:
        kind: "synthetic_referral" (questions about a folder of synthetic scenes), "tool_dialogues" (executed tool calls about
            such a folder), "trusted_detections" (questions that only its detections answer), "hoi_qa" (a HOI-QA json file),
            "clip_trajectory" (where hands go, of a folder of clips as EPIC-KITCHENS has it; a group is all that is asked of one clip) or
            "lita" (a json file of one of LITA's tasks, see `data.lita_sets`).
        path: the folder or file.
        seed: of wordings and choices.
        split: whose wordings to use.
        kinds: question kinds to ask; None asks all.
        limit: only the first so many pictures.
        options: further arguments of the reader.

    Raises DatasetError.
    """
    if kind not in READERS:
        raise DatasetError(f"data set kind {kind!r}, expected one of {', '.join(READERS)}")
    if split not in SPLITS:
        raise DatasetError(f"split {split!r}, expected one of {', '.join(SPLITS)}")
    path = Path(path).absolute()
    if not path.exists():
        raise DatasetError(f"{path}: no such file or folder ({kind})")
    if kind in ("synthetic_referral", "trusted_detections"):  # the others hand them on
        _check_options(path, options or {}, READERS[kind])
    return READERS[kind](path, seed=seed, split=split, kinds=list(kinds) if kinds is not None else None, limit=limit, **(options or {}))


def _check_options(path: Path, options: dict[str, Any], reader: Callable[..., Any], *own: str) -> None:
    """Raises DatasetError for an option that `reader` does not take, and that is none of the data set's `own`."""
    taken = [name for name, taken in inspect.signature(reader).parameters.items() if taken.kind is not taken.VAR_KEYWORD]
    known = [*own, *(name for name in taken if name not in _SET)]
    for name in options:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1)
            hint = f"did you mean {near[0]!r}?" if near else f"known are {', '.join(known) or 'none'}"
            raise DatasetError(f"{path}: options: unknown key {name!r}; {hint}")


def _synthetic_referral(
    path: Path, *, seed: int, split: str, kinds: list[str] | None, limit: int | None, repeat: dict[str, int] | None = None
) -> Groups:
    """`repeat`: how often a kind is asked of a picture, with other words and things each time; once if not named."""
    from data.synthetic.questions import questions

    def read(record: dict[str, Any], epoch: int) -> list[Sample]:
        samples = questions(record, path, split=split, seed=_mix(seed, epoch), kinds=kinds)
        for kind, count in (repeat or {}).items():
            for turn in range(1, count):
                samples += questions(record, path, split=split, seed=_mix(seed, epoch) + 7919 * turn, kinds=[kind])
        return samples

    return _scenes(path, limit, read)


def _trusted_detections(
    path: Path, *, seed: int, split: str, kinds: list[str] | None, limit: int | None, detector: str | None = None
) -> Groups:
    """`detector`: the folder of the small detector whose detections are trusted; None is the shipped one."""
    from data.detections import cached_detections
    from data.trusted_detections import trusted_detections

    records = JsonLines(path / "scenes.jsonl")
    size = len(records) if limit is None else min(limit, len(records))
    tokens = cached_detections(path, [path / records[i]["image"] for i in range(size)], detector=detector)

    def read(index: int, epoch: int) -> list[Sample]:
        other = records[(index + 1 + epoch) % size]
        samples = trusted_detections(records[index], other, path, tokens, split=split, seed=_mix(seed, epoch))
        return [sample for sample in samples if kinds is None or sample.targets["kind"] in kinds]

    return Groups(size, read, lambda: [path / records[i]["image"] for i in range(size)])


def _tool_dialogues(path: Path, *, seed: int, split: str, kinds: list[str] | None, limit: int | None, **options: Any) -> Groups:
    from data.tool_dialogues import dialogues

    _check_options(path, options, dialogues)
    return _scenes(path, limit, lambda record, epoch: dialogues(record, path, split=split, seed=_mix(seed, epoch), kinds=kinds, **options))


def _hoi_qa(path: Path, *, seed: int, split: str, kinds: list[str] | None, limit: int | None, **options: Any) -> Groups:
    from data.hoi_qa import FrameError, HOIQAError, HOIQASet

    _check_options(path, options, HOIQASet)
    try:
        records = HOIQASet(path, kinds=kinds, **options)
    except HOIQAError as error:
        raise DatasetError(str(error)) from error

    def read(index: int, epoch: int) -> list[Sample]:
        try:
            return records.about(index)
        except FrameError:  # training goes on past it
            raise
        except HOIQAError as error:
            raise DatasetError(str(error)) from error

    pictures = records.pictures[:limit]
    return Groups(len(pictures), read, lambda: [Path(picture) for picture in pictures])


def _clip_trajectory(
    path: Path,
    *,
    seed: int,
    split: str,
    kinds: list[str] | None,
    limit: int | None,
    offer: Sequence[str] = (),
    offer_share: float = 0.0,
    **options: Any,
) -> Groups:
    """`kinds`: of actions (reach, miss, pause, turn), for synthetic clips. `offer`: tools that are on offer, and not needed, in the share
    `offer_share` of the groups. `options` as for `data.epic_clips.EpicClips`."""
    from data.epic_clips import EpicClips
    from data.epic_kitchens import EpicError
    from pose_tools.body_models.read import UnsafePickleError

    _check_options(path, options, EpicClips, "offer", "offer_share")
    try:
        clips = EpicClips(path, limit=limit, **options)
    except (EpicError, UnsafePickleError) as error:
        raise DatasetError(str(error)) from error

    def read(index: int, epoch: int) -> list[Sample]:
        samples = clips.samples(index, split=split, seed=_mix(seed, epoch))
        if np.random.default_rng([_mix(seed, epoch), index]).random() < offer_share:
            samples = [replace(sample, tools=tuple(offer)) for sample in samples]
        return [sample for sample in samples if kinds is None or sample.targets["action"] in kinds]

    frames = [(clip.name, list(clip.frames)) for clip in clips.clips]
    return Groups(len(clips), read, lambda: [path for _, paths in frames for path in paths], lambda: frames)


def _lita(path: Path, *, seed: int, split: str, kinds: list[str] | None, limit: int | None, **options: Any) -> Groups:
    """`options` as for `data.lita_sets.LitaSet`. No pictures are listed: nothing looks for hands in these sets."""
    from data.lita_sets import LitaError, LitaSet

    _check_options(path, options, LitaSet)
    try:
        records = LitaSet(path, limit=limit, **options)
    except LitaError as error:
        raise DatasetError(str(error)) from error
    return Groups(len(records), lambda index, epoch: records.samples(index, _mix(seed, epoch)), list)


READERS: dict[str, Callable[..., Groups]] = {
    "synthetic_referral": _synthetic_referral,
    "tool_dialogues": _tool_dialogues,
    "trusted_detections": _trusted_detections,
    "hoi_qa": _hoi_qa,
    "clip_trajectory": _clip_trajectory,
    "lita": _lita,
}


def picture_of(sample: Sample) -> Any:
    """The first picture of a sample as its message has it (a path, a PIL picture or an array), or None."""
    parts = (part for message in sample.messages for part in message["content"])
    return next((part["image"] for part in parts if part["type"] == "image"), None)


def _scenes(path: Path, limit: int | None, read: Callable[[dict[str, Any], int], list[Sample]]) -> Groups:
    records = JsonLines(path / "scenes.jsonl")
    size = len(records) if limit is None else min(limit, len(records))
    return Groups(size, lambda index, epoch: read(records[index], epoch), lambda: [path / records[i]["image"] for i in range(size)])


def _mix(seed: int, epoch: int) -> int:
    """A seed of its own for every pass, so that wordings and negatives change from pass to pass."""
    return seed + 1_000_003 * epoch
