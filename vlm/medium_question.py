"""One question about one picture or clip: what goes before it, and how the model is asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from data.sample import user
from pose_tools.tool import tools_for
from vlm.agent import Agent, Turn
from vlm.medium import Medium

MOST_FUTURES = 20
"""Futures of a path that are drawn at most."""


def ask(
    model: Any,
    processor: Any,
    medium: np.ndarray | Medium,
    question: str,
    *,
    tools: bool = True,
    offer: Sequence[str] | None = None,
    futures: int = 1,
) -> Turn:
    """One question about one picture, RGB uint8 (H, W, 3), or a Medium.

    With `tools` the model sees the hands that the detector or tracker sees as pose tokens (if it has an encoder for them) and may call
    the tools in `offer`, by default those that can look at it. Without a detector it answers from the pixels, and a warning says so.
    `futures` of a path are drawn; the first is the answer.
    """
    medium = medium if isinstance(medium, Medium) else Medium((medium,))
    agent = Agent(model, processor, (tools_for(medium.media) if offer is None else offer) if tools else (), **generation(model, futures))
    return agent.ask([user(*opening(medium, processor, tools=tools), question)], medium.media)


def generation(model: Any, futures: int) -> dict[str, Any]:
    """Arguments of `model.generate` for so many futures of a path."""
    return {"num_trajectories": futures} if futures > 1 and getattr(model.config, "trajectory", None) else {}


def opening(medium: Medium, processor: Any, *, tools: bool = True) -> list[dict[str, Any]]:
    """What stands before the first question: the medium, and with `tools` the hands in it, for a model that reads them (of a
    clip, in as many of its last frames as the model has slots for)."""
    parts = [medium.part]
    if tools and medium.encoder in processor.pose_encoders and medium.hands is not None:
        slots = processor.pose_encoders[medium.encoder]["n_tokens"]
        parts.append({"type": "pose", "encoder": medium.encoder, "tokens": medium.hands[-slots:]})
    return parts
