"""From data sets to training rows: mixture → one picture's samples → pose tokens in or out → one packed row.

Row `i` is a function of (settings, seed, i) alone, so a resumed run, more processes or loader workers see the same rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
from torch.utils.data import Dataset

from data.groups import CLIP_KINDS, Groups, open_groups, picture_of
from data.mixture import Mixture
from data.sample import Sample, SampleError
from pose_tools.image_io import ImageError
from pose_tools.video import VideoError
from vlm.answers import write
from vlm.packing import IGNORED, Row
from vlm.path_noise import SEED
from vlm.settings import SettingsError
from vlm.templates import template_words

logger = logging.getLogger(__name__)


@dataclass
class DatasetSettings:
    """One data set of the mixture; see `data.groups.open_groups` for `kind`, `path`, `split`, `kinds`, `limit`, `options`."""

    kind: Literal["synthetic_referral", "tool_dialogues", "trusted_detections", "hoi_qa", "clip_trajectory", "lita"]
    path: str
    name: str | None = None
    """In logs and errors; the kind if not given. The order of draws depends on it."""
    weight: float | None = None
    """Share of the draws, in any unit; without weights, shares follow the numbers of pictures."""
    split: str = "train"
    kinds: list[str] | None = None
    limit: int | None = None
    questions: int | None = None
    """At most so many samples of a picture at a time, drawn anew on every pass."""
    pose_tokens: bool = False
    """Give the detections of each picture as pose tokens, except with probability `pose_dropout`."""
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("limit", "questions"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} is {value}, expected at least 1, or null for all")


@dataclass
class DataSettings:
    """The mixture. `pose_encoder` names the model's encoder that reads the detections of pictures, `track_encoder` that of clips;
    `detector` is the folder of the small detector that makes them (None: the shipped one); `pose_dropout` the probability that a picture
    or clip comes without them; `max_tokens` cuts a packed row by leaving out samples (a single longer sample is an error)."""

    datasets: list[DatasetSettings]
    pose_encoder: str = "detection"
    track_encoder: str = "track"
    detector: str | None = None
    pose_dropout: float = 0.35
    max_tokens: int | None = None

    def __post_init__(self) -> None:
        names = [dataset.name or dataset.kind for dataset in self.datasets]
        if not names:
            raise ValueError("datasets is empty, expected at least one {kind: ..., path: ...}")
        if len(set(names)) < len(names):
            raise ValueError(f"two data sets have one name ({', '.join(names)}); give each its own 'name'")
        weighted = [dataset.weight is not None for dataset in self.datasets]
        if any(weighted) and not all(weighted):
            raise ValueError("some data sets have a weight and some have none; give all of them one, or none")
        if not 0 <= self.pose_dropout <= 1:
            raise ValueError(f"pose_dropout is {self.pose_dropout}, expected 0 to 1")


UNREADABLE = 0.01
"""Largest share of a data set's pictures and videos that may turn out to be unreadable; another is taken in the place of each."""


class UnreadableError(SampleError):
    """A picture or video that cannot be read."""


class TrainingRows(Dataset):
    """Packed rows for `processor.collate_packed`; `rows[i]` for 0 ≤ i < length. Without a processor there is `draw` only.

    Raises SettingsError, DatasetError or MixtureError when it is made, SampleError with the sample's name when a row is read. In the place
    of a picture or video that cannot be read the next one is taken, with a warning, unless more than UNREADABLE of them are such.
    """

    def __init__(self, settings: DataSettings, processor: Any, *, seed: int, length: int) -> None:
        self.settings, self.processor, self.seed, self.length = settings, processor, seed, length
        self.datasets = {dataset.name or dataset.kind: dataset for dataset in settings.datasets}
        self.groups = {name: self._open(dataset) for name, dataset in self.datasets.items()}
        sizes = {name: len(groups) for name, groups in self.groups.items()}
        weights = {name: d.weight for name, d in self.datasets.items() if d.weight is not None}
        self.mixture = Mixture(sizes, weights or None, seed=seed)
        self.detections = self._read_detections()
        self.unreadable: dict[str, set[str]] = {name: set() for name in self.groups}

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, position: int) -> Row:
        for samples, name, generator in self._candidates(position):
            try:
                return self.pack(samples, name, generator) | {SEED: (self.seed, position)}
            except UnreadableError as error:
                self._note_unreadable(name, samples[0].id, error)
        raise UnreadableError(f"row {position}: none of the pictures and videos that are asked about can be read; see the warnings")

    def draw(self, position: int) -> tuple[list[Sample], str, np.random.Generator]:
        """The samples of row `position`, their data set, and the generator for the row's further choices."""
        return next(self._candidates(position))

    def _candidates(self, position: int) -> Iterator[tuple[list[Sample], str, np.random.Generator]]:
        """The samples of the drawn picture, then of those behind it: one may have none of the kinds asked for, or be unreadable."""
        draw = self.mixture[position]
        groups, dataset = self.groups[draw.name], self.datasets[draw.name]
        found = False
        for step in range(len(groups)):
            index = (draw.index + step) % len(groups)
            try:
                samples = groups.read(index, draw.epoch)
            except ImageError as error:
                self._note_unreadable(draw.name, str(error), UnreadableError(str(error)))
                continue
            if samples:
                found = True
                generator = np.random.default_rng([self.seed, _number(draw.name), index, draw.epoch])
                yield _choose(samples, dataset.questions, generator), draw.name, generator
        if not found:
            raise SettingsError(f"data set {draw.name!r} ({dataset.path}) has no sample of kinds {dataset.kinds} in {len(groups)} pictures")

    def _note_unreadable(self, name: str, sample: str, error: UnreadableError) -> None:
        known, total = self.unreadable[name], len(self.groups[name])
        if sample not in known:
            known.add(sample)
            if len(known) > UNREADABLE * total:
                raise UnreadableError(f"{error} ({len(known)} of the {total} pictures and videos of {name!r} could not be read so far)")
            logger.warning("%s; another is taken in its place", error)

    def pack(self, samples: Sequence[Sample], name: str, generator: np.random.Generator) -> Row:
        """Samples about one picture → a packed row."""
        conversations = [sample.messages for sample in samples]
        if self.datasets[name].pose_tokens and generator.random() >= self.settings.pose_dropout:
            tokens = self._tokens_of(samples[0], name)
            conversations = [with_pose(messages, self._encoder(self.datasets[name]), tokens) for messages in conversations]
        tools = _schemas(samples[0])
        while True:
            row = self._pack(samples, conversations, tools)
            if self.settings.max_tokens is None or len(row["input_ids"]) <= self.settings.max_tokens:
                return row
            if len(conversations) == 1:
                raise SampleError(
                    f"sample {samples[0].id!r} of {name!r} has {len(row['input_ids'])} tokens, max_tokens is {self.settings.max_tokens}; "
                    "raise max_tokens or leave the sample out"
                )
            conversations, samples = conversations[:-1], samples[:-1]

    def _pack(self, samples: Sequence[Sample], conversations: list[list[dict[str, Any]]], tools: Any) -> Row:
        try:
            return self.processor.pack(conversations, tools=tools)
        except (OSError, ValueError) as error:
            guilty = self._guilty(samples, conversations, tools)
            unreadable = isinstance(error, (OSError, ImageError, VideoError))
            raise (UnreadableError if unreadable else SampleError)(f"{guilty}: {error}") from error

    def _guilty(self, samples: Sequence[Sample], conversations: list[list[dict[str, Any]]], tools: Any) -> str:
        """Which of a row's samples cannot be packed even alone; all of them when each can."""
        for sample, messages in zip(samples, conversations, strict=True):
            try:
                self.processor.pack([messages], tools=tools)
            except (OSError, ValueError):
                return f"sample {sample.id!r} ({sample.source.dataset})"
        return "samples " + ", ".join(repr(sample.id) for sample in samples)

    def _open(self, dataset: DatasetSettings) -> Groups:
        options = dict(dataset.options)
        if dataset.kind in ("tool_dialogues", "trusted_detections"):  # made of detections, whether or not they are shown
            options.setdefault("detector", self.settings.detector)
        return open_groups(
            dataset.kind, dataset.path, seed=self.seed, split=dataset.split, kinds=dataset.kinds, limit=dataset.limit, options=options
        )

    def _encoder(self, dataset: DatasetSettings) -> str:
        return self.settings.track_encoder if dataset.kind in CLIP_KINDS else self.settings.pose_encoder

    def _read_detections(self) -> dict[str, Mapping[str, np.ndarray]]:
        """Detections of the pictures, and tracks of the clips, whose rows need them, made now where they are not kept yet."""
        from data.detections import cached_detections
        from data.tracks import cached_tracks

        wanted = {name: d for name, d in self.datasets.items() if d.pose_tokens or d.kind == "tool_dialogues"}
        for dataset in wanted.values():
            encoder = self._encoder(dataset)
            known = [encoder] if self.processor is None else sorted(self.processor.pose_encoders)
            if dataset.pose_tokens and encoder not in known:
                raise SettingsError(
                    f"pose_tokens are asked for, but the model has no encoder {encoder!r} "
                    f"(it has: {', '.join(known) or 'none'}); build or extend the model with it, or set pose_tokens: false"
                )
        found: dict[str, Mapping[str, np.ndarray]] = {}
        for name, dataset in wanted.items():
            groups, detector = self.groups[name], self.settings.detector
            if groups.clips is not None:
                found[name] = cached_tracks(dataset.path, groups.clips(), detector=detector)
            else:
                found[name] = cached_detections(dataset.path, groups.pictures(), detector=detector)
        return found

    def _tokens_of(self, sample: Sample, name: str) -> np.ndarray:
        if self.groups[name].clips is not None:
            key = sample.targets["start"]
        else:
            picture = picture_of(sample)
            key = os.path.relpath(picture, os.path.abspath(self.datasets[name].path)) if isinstance(picture, (str, Path)) else None
        if key is None or key not in self.detections[name]:
            raise SampleError(
                f"sample {sample.id!r}: there are no detections of its picture or clip in the cache of {self.datasets[name].path}"
            )
        return self.detections[name][key]


def with_pose(messages: Sequence[dict[str, Any]], encoder: str, tokens: np.ndarray | None) -> list[dict[str, Any]]:
    """`messages` with a pose part right behind the first picture or clip."""
    result, done = [], False
    for message in messages:
        content = []
        for part in message["content"]:
            content.append(part)
            if part["type"] in ("image", "video") and not done:
                content.append({"type": "pose", "encoder": encoder, "tokens": tokens})
                done = True
        result.append({**message, "content": content})
    return result


def texts(rows: TrainingRows, count: int, template: str = "chat") -> Iterable[str]:
    """Every text of the first `count` rows' conversations, tool offers, calls and the words of the template included, for training a
    tokenizer."""
    around = template_words(template)
    for position in range(count):
        samples, _, _ = rows.draw(position)
        for sample in samples:
            yield around
            yield from (json.dumps(schema, ensure_ascii=False) for schema in _schemas(sample) or ())
            for part in (part for message in sample.messages for part in message["content"]):
                if part["type"] == "text":
                    yield part["text"]
                elif part["type"] == "tool_call":
                    yield write([part], None, "norm1000")


def show_row(row: Row, processor: Any) -> str:
    """A packed row as text, one line per conversation: what is learnt stands in 【】, slots as <image>×64."""
    slots = {processor.image_token_id: processor.image_token, **{i: f"<{name}>" for name, i in processor.pose_token_ids.items()}}
    lines = []
    for branch in dict.fromkeys(row["branches"]):
        places = [i for i, b in enumerate(row["branches"]) if b == branch]
        title = "shared  " if branch == 0 and len(set(row["branches"])) > 1 else "        " if branch == 0 else f"{branch:>6}  "
        lines.append(title + _show_tokens([row["input_ids"][i] for i in places], [row["labels"][i] for i in places], slots, processor))
    return "\n".join(lines)


def _show_tokens(ids: list[int], labels: list[int], slots: Mapping[int, str], processor: Any) -> str:
    text, start = "", 0
    kinds = [(slots.get(token), label != IGNORED) for token, label in zip(ids, labels, strict=True)]
    for end in range(1, len(ids) + 1):
        if end < len(ids) and kinds[end] == kinds[start]:
            continue
        slot, learnt = kinds[start]
        piece = f"{slot}×{end - start}" if slot else processor.tokenizer.decode(ids[start:end])
        text += f"【{piece}】" if learnt else piece
        start = end
    return text.replace("\n", "⏎")


def _choose(samples: list[Sample], count: int | None, generator: np.random.Generator) -> list[Sample]:
    """At most `count` samples that are offered the same tools, in their own order."""
    offers = [sample.tools for sample in samples]
    offer = offers[int(generator.integers(len(offers)))]
    alike = [sample for sample in samples if sample.tools == offer]
    if count is not None and len(alike) > count:
        alike = [alike[i] for i in sorted(generator.choice(len(alike), count, replace=False))]
    return alike


def _schemas(sample: Sample) -> list[dict[str, Any]] | None:
    if not sample.tools:
        return None
    from pose_tools.tool import schemas

    return schemas(sample.tools)


def _number(name: str) -> int:
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")
