"""The tools a language model may call: one table, their JSON schemas, and one way to call them.

To add a tool, write its function and card in a module of its own (see `detect_tool.py`) and put it into TOOLS below.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
import json
import threading
from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from pose_tools import body_tool, detect_tool, embed_hand_tool, hand_pose_tool, similar_hands_tool, track_tool
from pose_tools.tool_arguments import Parameter, check_arguments, json_parameters, quote
from pose_tools.tool_protocol import BackendMissing, Range, Tool, ToolCard, ToolError, ToolResult
from pose_tools.types import Media
from pose_tools.views import View

__all__ = ["TOOLS", "BackendMissing", "Range", "ResultCache", "Tool", "ToolCard", "ToolError", "ToolResult", "call", "schemas", "tools_for"]

TOOLS: dict[str, Tool] = {
    tool.name: tool
    for tool in (detect_tool.TOOL, track_tool.TOOL, hand_pose_tool.TOOL, embed_hand_tool.TOOL, similar_hands_tool.TOOL, body_tool.TOOL)
}


class ResultCache:
    """The last `size` results by content: equal pictures and arguments are worked out once. Safe to share between threads."""

    def __init__(self, size: int = 256) -> None:
        self.size = size
        self.hits = 0
        self._results: OrderedDict[str, ToolResult] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: str) -> ToolResult | None:
        with self._lock:
            if key not in self._results:
                return None
            self._results.move_to_end(key)
            self.hits += 1
            return copy.deepcopy(self._results[key])

    def put(self, key: str, result: ToolResult) -> None:
        with self._lock:
            self._results[key] = copy.deepcopy(replace(result, overlay=None))
            while len(self._results) > self.size:
                self._results.popitem(last=False)

    def clear(self) -> None:
        with self._lock:
            self._results.clear()
            self.hits = 0


CACHE = ResultCache()


def find(name: Any) -> Tool:
    """The tool of that name; ToolError naming the tools there are."""
    if not isinstance(name, str) or name not in TOOLS:
        raise ToolError(f"there is no tool {quote(name)}; the tools are: {', '.join(sorted(TOOLS))}")
    return TOOLS[name]


def tools_for(media: Media) -> tuple[str, ...]:
    """The tools to offer in a conversation about `media`: those for clips where there is a clip, those for pictures where there is a
    picture. So a question about a picture is asked in the words that it had before there were tools for clips."""
    there = {"image": bool(media.images), "clip": bool(media.frames)}
    return tuple(name for name, tool in TOOLS.items() if tool.by_default and there[tool.looks_at])


def schemas(names: Iterable[str]) -> list[dict[str, Any]]:
    """JSON schemas of the named tools, in that order, as `apply_chat_template(tools=...)` takes them; without `media`."""
    return [_schema(find(name)) for name in names]


def _schema(tool: Tool) -> dict[str, Any]:
    from transformers.utils import get_json_schema

    parameters = json_parameters(tool.function)

    def described() -> None: ...

    # get_json_schema reads a function by these four; the copy simply lacks what a language model cannot fill in.
    described.__name__ = tool.name
    described.__doc__ = tool.function.__doc__
    described.__signature__ = _signature(parameters)  # type: ignore[attr-defined]
    described.__annotations__ = {name: parameter.hint for name, parameter in parameters.items()}
    schema = get_json_schema(described)
    for name, parameter in parameters.items():
        if parameter.bounds is not None and parameter.hint in (int, float):
            schema["function"]["parameters"]["properties"][name] |= {"minimum": parameter.bounds.low, "maximum": parameter.bounds.high}
    return schema


def _signature(parameters: Mapping[str, Parameter]) -> inspect.Signature:
    return inspect.Signature(
        [inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=p.default, annotation=p.hint) for name, p in parameters.items()]
    )


def call(
    name: str,
    media: Media,
    arguments: Mapping[str, Any] | None = None,
    *,
    views: Sequence[View] | None = None,
    overlay: bool = False,
    cache: ResultCache | None = CACHE,
) -> ToolResult:
    """Runs one tool on `media` with arguments a language model wrote.

    Args:
        name: a key of TOOLS.
        media: the pictures, clips and cameras of the conversation; RGB uint8 (H, W, 3).
        arguments: JSON values; left-out ones take their defaults.
        views: the View of each picture, if the model sees other than the whole of it: the numbers in `text` are then those of the
            view's grid, as in the model's own answers.
        overlay: also draw the result on the picture, for people.
        cache: where equal calls find their result; None works it out again.

    Raises:
        ToolError: no such tool, an unknown, missing, ill-typed or out-of-range argument, or a missing backend.
    """
    tool = find(name)
    checked = check_arguments(tool, media, arguments)
    key = _key(tool, media, checked) if cache is not None else ""
    result = cache.get(key) if cache is not None else None
    if result is None:
        result = tool.function(media, **checked)
        if cache is not None:
            cache.put(key, result)
    if views is not None and tool.write is not None:
        result = replace(result, text=tool.write(result, views))
    if overlay and tool.draw is not None:
        result = replace(result, overlay=tool.draw(media, result))
    return result


def _key(tool: Tool, media: Media, arguments: dict[str, Any]) -> str:
    digest = hashlib.blake2b(digest_size=20)
    version = tool.version() if tool.version else ""
    digest.update(json.dumps([tool.name, version, arguments, media.fps], sort_keys=True).encode())
    for group in (media.images, media.frames, media.intrinsics, media.keypoints_2d, (media.scene,)):
        digest.update(f"|{len(group)}".encode())
        for array in group:
            if array is None:
                digest.update(b"|none")
            else:
                array = np.ascontiguousarray(array)
                digest.update(f"|{array.dtype}{array.shape}".encode())
                digest.update(array.tobytes() if array.size == 0 else array.view(np.uint8).data)
    return digest.hexdigest()
