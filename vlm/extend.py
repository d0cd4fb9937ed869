"""A trained HandVLM given more to see or to say: clips, paths, pose encoders, other words. What it knew stays."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from vlm.answers import TRAJECTORY_TOKEN
from vlm.config import HandVLMConfig, check_keys
from vlm.model import HandVLM
from vlm.processor import HandVLMProcessor, pose_token, processor_options
from vlm.settings import SettingsError
from vlm.small_tokenizer import number_token_ids, train_tokenizer
from vlm.templates import TEMPLATES


@dataclass
class ExtendSettings:
    """`clip`, `trajectory`: as in HandVLMConfig; `pose_encoders`: more of them, `without`: those that are left out; `template`: how
    conversations are written from now on (see `vlm.templates`). `tokenizer`: "keep" adds the new tokens to the one there is, "retrain"
    makes another of the training texts with `vocab_size` tokens, for models with a small tokenizer of their own: known tokens keep their
    rows, new ones start as the mean of what they were written with before."""

    clip: dict[str, Any] | None = None
    trajectory: dict[str, Any] | None = None
    pose_encoders: dict[str, dict[str, Any]] = field(default_factory=dict)
    without: list[str] = field(default_factory=list)
    template: str | None = None
    tokenizer: Literal["keep", "retrain"] = "keep"
    vocab_size: int = 3000

    def __post_init__(self) -> None:
        check_keys(self.pose_encoders, self.clip, self.trajectory)
        if self.template is not None and self.template not in TEMPLATES:
            raise ValueError(f"template is {self.template!r}, expected one of {', '.join(TEMPLATES)}")


def extend(
    model: HandVLM, processor: HandVLMProcessor, settings: ExtendSettings, texts: Iterable[str] = ()
) -> tuple[HandVLM, HandVLMProcessor]:
    """A new model and processor; `texts` are read only to retrain the tokenizer. Fresh parts use torch's global seed.

    Raises SettingsError for a pose encoder that is there already, and for one to leave out that is not.
    """
    encoders = _encoders(model.config.pose_encoders, settings)
    old = processor.tokenizer
    new = copy.deepcopy(old) if settings.tokenizer == "keep" else train_tokenizer(texts, settings.vocab_size)
    new_words = settings.tokenizer == "retrain"
    trajectory = settings.trajectory or model.config.trajectory
    add_slots(new, [processor.image_token, *map(pose_token, encoders)], trajectory is not None)
    config = _config(model.config, new, processor, encoders, settings.clip or model.config.clip, trajectory, new_words)
    extended = HandVLM(config).to(model.dtype)
    _copy(model, extended, old, new)
    return extended, _processor(processor, new, config, settings.template or processor.template)


def _encoders(old: dict[str, dict[str, Any]], settings: ExtendSettings) -> dict[str, dict[str, Any]]:
    missing = sorted(set(settings.without) - set(old))
    if missing:
        raise SettingsError(f"extend.without: the model has no pose encoder {', '.join(missing)} (it has: {', '.join(old) or 'none'})")
    kept = {name: spec for name, spec in old.items() if name not in settings.without}
    known = sorted(set(kept) & set(settings.pose_encoders))
    if known:
        raise SettingsError(f"extend.pose_encoders: the model already has {', '.join(known)}; give the new ones other names")
    return kept | settings.pose_encoders


def add_slots(tokenizer: Any, slots: list[str], paths: bool) -> None:
    """Gives a tokenizer the marker of a path's points, which stays in decoded text, and those of pictures and poses. In this order:
    behind the time tokens of a Vicuna it is then 32100, as HandsOnVLM has it."""
    vocabulary = tokenizer.get_vocab()
    if paths and TRAJECTORY_TOKEN not in vocabulary:
        tokenizer.add_tokens([TRAJECTORY_TOKEN])
    tokenizer.add_special_tokens({"additional_special_tokens": [slot for slot in slots if slot not in vocabulary]})


def _config(
    old: HandVLMConfig, tokenizer: Any, processor: HandVLMProcessor, encoders: dict, clip: Any, trajectory: Any, retrained: bool
) -> HandVLMConfig:
    config = copy.deepcopy(old)
    config.text_config.vocab_size = len(tokenizer) if retrained else max(old.text_config.vocab_size, len(tokenizer))
    number = tokenizer.convert_tokens_to_ids
    config.image_token_id = number(processor.image_token)
    config.pose_encoders, config.pose_token_ids = encoders, {name: number(pose_token(name)) for name in encoders}
    config.number_token_ids = number_token_ids(tokenizer) if old.number_token_ids else None
    config.clip, config.trajectory = clip, trajectory
    config.check_pooling()
    config.trajectory_token_id = number(TRAJECTORY_TOKEN) if trajectory is not None else None
    config.pad_token_id, config.eos_token_id, config.bos_token_id = tokenizer.pad_token_id, tokenizer.eos_token_id, tokenizer.bos_token_id
    return config


def _processor(old: HandVLMProcessor, tokenizer: Any, config: HandVLMConfig, template: str) -> HandVLMProcessor:
    names = ("view", "interpolation", "image_mean", "image_std", "image_token", "dialect", "max_question_characters")
    kept = {name: getattr(old, name) for name in names}
    return HandVLMProcessor(
        tokenizer=tokenizer,
        chat_template=old.chat_template,
        template=template,
        **processor_options(config),
        **kept,
    )


@torch.no_grad()
def _copy(source: HandVLM, target: HandVLM, old: Any, new: Any) -> None:
    """All tensors of the source; of the vocabulary's tables row by row."""
    tables = {id(source.get_input_embeddings().weight), id(source.get_output_embeddings().weight)}
    state = {name: value for name, value in source.state_dict(keep_vars=True).items() if id(value) not in tables}
    if source.config.trajectory != target.config.trajectory:  # another head, which learns from the beginning
        state = {name: value for name, value in state.items() if not name.startswith(("trajectory_head.", "model.trajectory_code."))}
    target.load_state_dict(state, strict=False)
    rows = _rows(old, new)
    for before, after in (
        (source.get_input_embeddings(), target.get_input_embeddings()),
        (source.get_output_embeddings(), target.get_output_embeddings()),
    ):
        for number in range(len(after.weight)):  # a table may be longer than its vocabulary
            known = [row for row in rows[number] if row < len(before.weight)] if number < len(rows) else []
            after.weight[number] = _mean(before.weight, known)


def _mean(weight: Tensor, rows: list[int]) -> Tensor:
    return weight[rows].mean(0) if rows else weight.mean(0)


def _rows(old: Any, new: Any) -> list[list[int]]:
    """For every token of the new vocabulary, the old ones that it was written with; none for what is a mark."""
    vocabulary, marks = old.get_vocab(), set(new.all_special_tokens) | {TRAJECTORY_TOKEN}
    rows = []
    for token in new.convert_ids_to_tokens(list(range(len(new)))):
        if token in vocabulary:
            rows.append([vocabulary[token]])
        elif token in marks:
            rows.append([])
        else:
            rows.append(old(new.convert_tokens_to_string([token]), add_special_tokens=False)["input_ids"])
    return rows
