"""A model with a path head as a function from conversations to paths, and what a text and its points say as a reply."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from pose_tools.views import View
from vlm.answers import TRAJECTORY_TOKEN, Paths, ToolCallAnswer, TrajectoryAnswer, Unparsed, parse, whole_frame
from vlm.evaluation.asking import Asker
from vlm.evaluation.trajectory_scoring import PathReply


class PathAsker:
    """Greedy answers, the most likely path first; `futures` paths of each, whose noise depends on the seed and the question's id alone.

    A model that samples as published (`compat`) draws the first path, too.
    """

    def __init__(self, model: Any, processor: Any, *, steps: int, futures: int = 1, seed: int = 0, max_new_tokens: int = 64) -> None:
        """`steps`: T of the paths that are asked for; another number is no answer. Raises ValueError for a model without a path head."""
        self.asker, self.model, self.processor = Asker(model, processor, max_new_tokens=max_new_tokens), model, processor
        if model.config.trajectory is None:
            raise ValueError("this model has no path head, so it forecasts nothing; train one with `trajectory` in its build settings")
        self.steps, self.futures, self.seed = steps, futures, seed

    def __call__(self, conversations: Sequence[list[dict[str, Any]]], names: Sequence[str]) -> list[PathReply]:
        """One reply per conversation, points in pixels of its last frame; `names` are the questions' ids."""
        texts, views, output = self.asker.generate(conversations, num_trajectories=self.futures, noise=self.noise(names))
        return [
            path_reply(text, view[0], self.processor.dialect, Paths.of(output, row, steps=self.steps))
            for row, (text, view) in enumerate(zip(texts, views, strict=True))
        ]

    def noise(self, names: Sequence[str]) -> torch.Tensor | None:
        """(B, S, 2, steps, latent) for the model's head, the first future without any; None where no noise is needed."""
        latent = getattr(self.model.trajectory_head, "latent", None)
        settings = self.model.config.trajectory_settings
        all_drawn = bool(settings.compat)
        if latent is None or (self.futures == 1 and not all_drawn):
            return None
        steps = settings.steps if self.model.trajectory_head.latent_per_step else 1
        drawn = []
        for name in names:
            number = int.from_bytes(hashlib.sha256(f"{self.seed}/{name}".encode()).digest()[:8], "little")
            drawn.append(np.random.default_rng(number).standard_normal((self.futures, 2, steps, latent), dtype=np.float32))
            if not all_drawn:
                drawn[-1][0] = 0.0
        return torch.from_numpy(np.stack(drawn)).to(self.model.device)


def path_reply(text: str, view: View, dialect: str, paths: Paths | None) -> PathReply:
    """What a model's text and points say, in the original pixels of `view`, the clip's last frame.

    An answer has exactly one path, of `paths.steps` steps, and calls no tool; words and boxes beside it, which say what the goal is, may be
    as they like.
    """
    answers = parse(text, view, dialect, paths)
    said = [answer for answer in answers if isinstance(answer, TrajectoryAnswer)]
    others = [answer for answer in answers if isinstance(answer, ToolCallAnswer) or _broken_path(answer)]
    if others or len(said) != 1:
        reason = getattr(others[0], "reason", type(others[0]).__name__) if others else f"{len(said)} paths, expected one"
        return PathReply(None, output=text, reason=reason, written=_written(view, paths))
    answer = said[0]
    futures = None if answer.samples is None else np.concatenate([answer.points[None], answer.samples])
    return PathReply(answer.points, futures, answer.spread, text)


def _written(view: View, paths: Paths | None) -> np.ndarray | None:
    """(2, n, 2) original pixels of every path token that was written, however many; None where there is none."""
    if paths is None:
        return None
    points = paths.points[:, np.isfinite(paths.points).all((0, 2))]
    frame = whole_frame(view) if paths.space == "frame" else view
    return frame.to_original(points * frame.out) if points.shape[1] else None


def _broken_path(answer: Any) -> bool:
    """Path tokens that make no path of the asked number of steps."""
    return isinstance(answer, Unparsed) and TRAJECTORY_TOKEN in answer.text
