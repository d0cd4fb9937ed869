"""What a tool is: a function a language model may call, with a card for people, and what it gives back.

A tool is `def name(media: Media, *, image: int = 0, ...) -> ToolResult` with type hints and a Google-style docstring.
The language model fills in the JSON parameters only; `media`, and any other parameter JSON has no type for, is ours.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from pose_tools.types import Media
from pose_tools.user_error import UserError
from pose_tools.views import View


class ToolError(UserError):
    """The call cannot be carried out. Its text is short and teaches: it goes back to the language model as the tool's answer."""


class BackendMissing(ToolError):
    """What the tool runs on is not installed; the text names the remedy."""


@dataclass(frozen=True)
class Range:
    """Bounds of a number, both included, or of the length of a string or list: `Annotated[float, Range(0, 1)]`."""

    low: float
    high: float


@dataclass(frozen=True)
class ToolResult:
    """What a tool found. Nothing found is a normal result.

    `data` is JSON (geometry in pixels of the original picture, metres). `text` is the short form for the language model.
    `tokens` holds, per pose encoder, (n, d) float32 rows for the model's `<pose>` slots, NaN where there is nothing.
    `overlay` is an RGB uint8 picture for people, or None where none was asked for. `confidence` is in 0..1, None if unknown.
    """

    data: dict[str, Any]
    text: str
    tokens: dict[str, np.ndarray] = field(default_factory=dict)
    overlay: np.ndarray | None = None
    confidence: float | None = None


@dataclass(frozen=True)
class ToolCard:
    """What a person wants to know before they let a model use a tool."""

    needs: str
    cost: str
    licence: str
    failure_modes: tuple[str, ...]


@dataclass(frozen=True)
class Tool:
    """A function with its card.

    `write(result, views)` is the result's text in the pixels of the views' grids (one view per picture). `draw(media, result)`
    paints the overlay. `version()` names what the answer depends on beside the arguments (backend, weights), so that the cache
    never returns what an older one said. `looks_at`: what has to be in the conversation, a picture or a clip. `by_default`: whether it is
    offered wherever that is there; others are offered by name, to models that were trained with them.
    """

    function: Callable[..., ToolResult]
    card: ToolCard
    write: Callable[[ToolResult, Sequence[View]], str] | None = None
    draw: Callable[[Media, ToolResult], np.ndarray] | None = None
    version: Callable[[], str] | None = None
    looks_at: Literal["image", "clip"] = "image"
    by_default: bool = True

    @property
    def name(self) -> str:
        return self.function.__name__
