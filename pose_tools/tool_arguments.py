"""Checks what a language model wrote as arguments of a tool, before the tool sees it.

A language model writes anything: every value is checked against the type hint, its `Range`, and, for `image`, the pictures
that are there. Every refusal is one ToolError that says what was got and what is expected.
"""

from __future__ import annotations

import inspect
import math
import types
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pose_tools.tool_protocol import Range, Tool, ToolError
from pose_tools.types import Media

LONGEST_TEXT = 1000
LONGEST_LIST = 100
SCALARS = {int: "a whole number", float: "a number", str: "a string", bool: "true or false"}


@dataclass(frozen=True)
class Parameter:
    """A parameter the language model fills in: hint (without `Annotated`), bounds or None, default or `inspect.Parameter.empty`."""

    hint: Any
    bounds: Range | None
    default: Any


def quote(value: Any) -> str:
    """`value` as a message shows it: ASCII, at most 60 characters."""
    try:
        text = ascii(value[:100] if isinstance(value, (str, list)) else value)
    except (ValueError, RecursionError):  # a number of thousands of digits, a bottomless list
        text = f"a {type(value).__name__}"
    return text if len(text) <= 60 else text[:57] + "..."


@cache
def json_parameters(function: Callable[..., Any]) -> dict[str, Parameter]:
    """The parameters of a tool that JSON has a type for, in order; `media` and everything else that is ours is left out."""
    plain, annotated = get_type_hints(function), get_type_hints(function, include_extras=True)
    return {
        name: Parameter(plain[name], _bounds(annotated[name]), parameter.default)
        for name, parameter in inspect.signature(function).parameters.items()
        if _is_json(plain.get(name))
    }


def _bounds(hint: Any) -> Range | None:
    """The `Range` of `Annotated[float, Range(0, 1)]`, also within `... | None`."""
    if get_origin(hint) is Annotated:
        return next((extra for extra in hint.__metadata__ if isinstance(extra, Range)), None)
    if get_origin(hint) in (Union, types.UnionType):
        return next(filter(None, map(_bounds, get_args(hint))), None)
    return None


def _is_json(hint: Any) -> bool:
    origin = get_origin(hint)
    if origin is list:
        return all(_is_json(item) for item in get_args(hint))
    if origin in (Union, types.UnionType):
        return all(item is type(None) or _is_json(item) for item in get_args(hint))
    return hint in SCALARS or origin is Literal


def check_arguments(tool: Tool, media: Media, arguments: Mapping[str, Any] | None) -> dict[str, Any]:
    """The arguments with defaults filled in, each of its type and in its range; raises ToolError otherwise."""
    arguments = {} if arguments is None else arguments
    if not isinstance(arguments, Mapping):
        raise ToolError(f"{tool.name}: the arguments are {quote(arguments)}; expected a JSON object such as {{}}")
    parameters = json_parameters(tool.function)
    names = ", ".join(parameters) or "none"
    for name in arguments:
        if name not in parameters:
            raise ToolError(f"{tool.name}: unknown argument {quote(name)}; its arguments are: {names}")
    checked = {}
    for name, parameter in parameters.items():
        if name in arguments:
            checked[name] = _check(parameter.hint, parameter.bounds, arguments[name], f"{tool.name}: argument '{name}'")
        elif parameter.default is inspect.Parameter.empty:
            raise ToolError(f"{tool.name}: argument '{name}' is missing; its arguments are: {names}")
        else:
            checked[name] = parameter.default
    if "image" in checked:
        _check_image(tool.name, checked["image"], media)
    if tool.looks_at == "clip":
        _check_clip(tool.name, media)
    return checked


def _check_image(tool: str, index: int, media: Media) -> None:
    if not media.images:
        raise ToolError(f"{tool}: there is no picture in this conversation")
    if not 0 <= index < len(media.images):
        there = "is only image 0" if len(media.images) == 1 else f"are images 0 to {len(media.images) - 1}"
        raise ToolError(f"{tool}: image {quote(index)} is not there; there {there}")


def _check_clip(tool: str, media: Media) -> None:
    if not media.frames:
        raise ToolError(f"{tool}: there is no clip in this conversation")
    if len(media.frames) < 2:
        raise ToolError(f"{tool}: the clip has one frame; two or more are needed")
    if media.fps is None or not (math.isfinite(media.fps) and media.fps > 0):
        raise ToolError(f"{tool}: the clip's frames per second are not known")


def _check(hint: Any, bounds: Range | None, value: Any, place: str) -> Any:
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _check_union(get_args(hint), bounds, value, place)
    if origin is Literal:
        # bool is an int and 1 == True: a choice is the same value of the same type
        if not any(type(value) is type(choice) and value == choice for choice in get_args(hint)):
            raise ToolError(f"{place} is {quote(value)}; expected one of: {', '.join(str(c) for c in get_args(hint))}")
        return value
    if origin is list:
        if not isinstance(value, list):
            raise ToolError(f"{place} is {quote(value)}; expected a list")
        _check_length(bounds or Range(0, LONGEST_LIST), value, place, "items")
        (item,) = get_args(hint)
        return [_check(item, None, entry, f"{place}[{i}]") for i, entry in enumerate(value)]
    return _check_scalar(hint, bounds, value, place)


def _check_union(hints: tuple[Any, ...], bounds: Range | None, value: Any, place: str) -> Any:
    if value is None and type(None) in hints:
        return None
    problem = None
    for hint in hints:
        if hint is not type(None):
            try:
                return _check(hint, bounds, value, place)
            except ToolError as error:
                problem = problem or error
    raise problem or ToolError(f"{place} is {quote(value)}; expected null")


def _check_scalar(hint: type, bounds: Range | None, value: Any, place: str) -> Any:
    accepted = (int, float) if hint is float else hint
    if not isinstance(value, accepted) or (isinstance(value, bool) and hint is not bool):
        raise ToolError(f"{place} is {quote(value)}; expected {SCALARS[hint]}")
    if isinstance(value, str):
        _check_length(bounds or Range(0, LONGEST_TEXT), value, place, "characters")
    elif isinstance(value, (int, float)) and hint is not bool:
        try:
            value = hint(value)
            finite = math.isfinite(value)
        except OverflowError:  # a whole number with hundreds of digits
            finite = False
        if not finite:
            raise ToolError(f"{place} is {quote(value)}; expected a finite number")
        if bounds is not None and not bounds.low <= value <= bounds.high:
            raise ToolError(f"{place} is {quote(value)}; expected {bounds.low:g} to {bounds.high:g}")
    return value


def _check_length(bounds: Range, value: str | list[Any], place: str, what: str) -> None:
    if not bounds.low <= len(value) <= bounds.high:
        raise ToolError(f"{place} has {len(value)} {what}; expected {bounds.low:g} to {bounds.high:g}")
