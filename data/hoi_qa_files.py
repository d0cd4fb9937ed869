"""HOI-QA training and validation files from VISOR's and Ego4D's annotations: videos to splits, counts, and which frames are missing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from data.hoi_qa import HOIQAError, read_json
from data.hoi_qa_generate import Frame, conversations, read_ego4d, read_frame_mapping, read_visor, split_of
from pose_tools.files import write_text

NAMES = {"visor": "epic-kitchens-{}.json", "ego4d": "ego4d-{}.json"}
TYPES = tuple(f"Q{number}" for number in range(1, 9))


@dataclass
class Written:
    """What went into one file: `types` counts questions by type; `missing` are the frames that are not there, whose questions are left
    out."""

    types: Counter[str] = field(default_factory=Counter)
    videos: set[str] = field(default_factory=set)
    pictures: int = 0
    missing: list[str] = field(default_factory=list)


def videos_of(files: Iterable[Path]) -> set[str]:
    """The videos that HOI-QA files ask about (clips, of Ego4D), told by the folders of their frames."""
    found: set[str] = set()
    for file in files:
        content = read_json(file)
        for row in content.values() if isinstance(content, dict) else content:
            name = row.get("image_path", row.get("image")) if isinstance(row, dict) else None
            if not isinstance(name, str):
                raise HOIQAError(f"{file}: a record without image_path: {row!r:.200}")
            found.add(Path(name).parent.name)
    return found


def write_files(
    out: Path,
    *,
    visor: Sequence[Path] = (),
    ego4d: Sequence[Path] = (),
    frames: Path | None = None,
    mapping: Path | None = None,
    types: Sequence[str] = TYPES,
    val_share: float = 0.05,
    seed: int = 0,
    leave_out: Iterable[str] = (),
) -> dict[str, Written]:
    """Writes `epic-kitchens-train.json`, `epic-kitchens-val.json` (from VISOR's files) and `ego4d-train.json`, `ego4d-val.json` into `out`.

    Args:
        frames: the folder that the frames' paths start from; questions about frames that are not there are left out and reported.
            None writes all.
        mapping: VISOR's frame_mapping.json: EPIC's frames are then its released ones, called by their own numbers; None calls them by
            VISOR's.
        types: the question types to keep, of Q1 … Q8.
        val_share: the share of videos that go to validation, whole.
        leave_out: videos that go nowhere, such as those of a test set; a clip of Ego4D's stands for its whole video.

    Returns what each file holds, by its name. Raises HOIQAError for an annotation file of another form; then nothing is written.
    """
    held_out, contents, found = set(leave_out), {}, {}
    numbers = None if mapping is None else read_frame_mapping(mapping)
    sources: dict[str, Iterator[Frame]] = {
        "visor": chain.from_iterable(read_visor(path, numbers) for path in visor),
        "ego4d": chain.from_iterable(read_ego4d(path) for path in ego4d),
    }
    for source, paths in (("visor", visor), ("ego4d", ego4d)):
        for split in ("train", "val") if paths else ():
            contents[NAMES[source].format(split)], found[NAMES[source].format(split)] = [], Written()
        for frame in sources[source]:
            if held_out & {frame.video, *frame.clips}:
                continue
            name = NAMES[source].format(split_of(frame.video, val_share, seed))
            if frames is not None and not (frames / frame.image_path).is_file():
                found[name].missing.append(frame.image_path)
                continue
            records = conversations(frame, types)
            contents[name] += records
            found[name].types.update(record["type"] for record in records)
            found[name].videos.add(frame.video)
            found[name].pictures += 1
    out.mkdir(parents=True, exist_ok=True)
    for name, content in contents.items():
        write_text(out / name, json.dumps(content, indent=1, ensure_ascii=False))
    return found
