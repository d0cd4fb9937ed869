"""What a path head reads and has to say, for many clips: the model's states behind its own answers, worked out once and kept.

Heads can then be trained and compared without the language model. The states are those of greedy answers, not of true ones, so a head
is judged on what it will meet. Nothing may be fed back to the model (`position_code`), else its states would depend on the head.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from pose_tools.files import atomic_path
from pose_tools.views import View
from vlm.answers import Paths
from vlm.evaluation.asking import Asker
from vlm.evaluation.trajectory import CONDITIONS, ClipQuestion, conversation
from vlm.evaluation.trajectory_asking import path_reply
from vlm.evaluation.trajectory_scoring import PathReply
from vlm.trajectory_observed import observed_hands

BATCH = 32
Tokens = Callable[[ClipQuestion], np.ndarray]
"""A question → the tracked hands (2 · frames, 11) of its clip."""


@dataclass(frozen=True)
class PathStates:
    """For N questions about clips, in float32; hands left, right.

    `states` (N, T, D) that predict the path's tokens, zeros where the answer was no path; `answered` (N,) says where it was; `observed`
    (N, 2, frames, 2) where the hands were, units of the grid; `target` (N, 2, T, 2) likewise, zeros where `valid` (N, 2, T) is false;
    `to_pixels` (N, 2, 3) from the grid to the last frame.
    """

    states: Tensor
    answered: Tensor
    observed: Tensor
    target: Tensor
    valid: Tensor
    to_pixels: Tensor

    def of(self, rows: Sequence[int]) -> PathStates:
        """Those of some questions, in that order."""
        return PathStates(**{field.name: getattr(self, field.name)[list(rows)] for field in fields(self)})

    def reply(self, number: int, points: Tensor, futures: Tensor | None = None, spread: Tensor | None = None) -> PathReply:
        """What a head said to question `number`, in pixels: `points` (2, T, 2), `futures` (K, 2, T, 2), `spread` (2, T, 2) of the grid."""
        if not bool(self.answered[number]):
            return PathReply(None, reason="no path in the answer")
        move = self.to_pixels[number].double()
        said = [None if value is None else (value.double() @ move[:, :2].T + move[:, 2]).numpy() for value in (points, futures)]
        scale = float(torch.linalg.det(move[:, :2]).abs().sqrt())
        one = None if spread is None else scale * spread.double().square().mean(-1).sqrt().numpy()
        return PathReply(said[0], said[1], one)


def path_states(
    model: Any, processor: Any, questions: Sequence[ClipQuestion], tokens: Tokens, folder: Path
) -> PathStates:
    """The states of a model's answers, a file per batch in `folder`; what is there is not worked out again.

    Raises ValueError for a model that has no path head, is not told where the hands were, or feeds points back.
    """
    from safetensors.torch import load_file, save_file

    settings = model.config.trajectory_settings
    if settings is None or not settings.observed or settings.position_code or settings.space != "grid":
        raise ValueError(
            "states are kept of models whose path head reads observed hands and feeds nothing back; this one's trajectory is "
            f"{model.config.trajectory}"
        )
    parts = []
    for start in tqdm(range(0, len(questions), BATCH), desc=f"states of {len(questions)} answers", mininterval=5):
        path = folder / f"states-{start:06}.safetensors"
        if not path.is_file():
            with atomic_path(path) as temporary:
                save_file(_answered(model, processor, questions[start : start + BATCH], tokens), temporary)
        parts.append(load_file(path))
    return PathStates(**{field.name: torch.cat([part[field.name] for part in parts]) for field in fields(PathStates)})


@torch.no_grad()
def _answered(model: Any, processor: Any, questions: Sequence[ClipQuestion], tokens: Tokens) -> dict[str, Tensor]:
    turns = [conversation(q, CONDITIONS[0], tokens=tokens, partner=q) for q in questions]
    batch = processor(turns)
    output = model.generate(**batch, **Asker(model, processor).generation)
    texts, steps = processor.decode_answers(output, batch), model.config.trajectory_settings.steps
    views = [views[-1] for views in batch["views"]]
    paths = [Paths.of(output, row, steps=steps) for row in range(len(texts))]
    replies = [path_reply(text, view, processor.dialect, path) for text, view, path in zip(texts, views, paths, strict=True)]
    answered = torch.tensor([reply.valid for reply in replies])
    states = _states(model, batch, output.sequences, answered, steps)
    grids = [_in_grid(question, view) for question, view in zip(questions, views)]
    observed = observed_hands(batch["input_ids"], batch["pose_tokens"], model.config)
    found = {
        "states": states, "answered": answered, "observed": observed,
        "target": torch.stack([torch.from_numpy(grid) for grid in grids]),
        "valid": torch.stack([torch.from_numpy(q.valid) for q in questions]),
        "to_pixels": torch.stack([torch.from_numpy((view.inverse @ np.diag([*view.out, 1.0]))[:2]) for view in views]),
    }  # fmt: skip
    return {name: value.contiguous() if value.dtype == torch.bool else value.float().contiguous() for name, value in found.items()}


def _states(model: Any, batch: Any, sequences: Tensor, answered: Tensor, steps: int) -> Tensor:
    """(B, T, D) of one pass over prompts and answers."""
    prompt = batch["input_ids"].shape[1]
    mask = torch.cat([batch["attention_mask"], torch.ones_like(sequences[:, prompt:])], 1)
    inputs = {name: batch[name] for name in ("pixel_values", "pose_tokens", "media_frames", "frame_rows")}
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    hidden = model.model(input_ids=sequences, attention_mask=mask, position_ids=positions, **inputs).last_hidden_state
    found = hidden.new_zeros(len(sequences), steps, hidden.shape[-1])
    for row in answered.nonzero().flatten().tolist():
        places = (sequences[row, prompt:] == model.config.trajectory_token_id).nonzero().flatten()
        found[row] = hidden[row, prompt + places - 1]
    return found


def _in_grid(question: ClipQuestion, view: View) -> np.ndarray:
    return np.where(question.valid[..., None], view.to_grid(np.nan_to_num(question.future)) / view.out, 0.0)
