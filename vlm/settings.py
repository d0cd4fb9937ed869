"""Settings: nested dataclasses from a YAML file and `--set a.b=value`, with real types, and back to YAML.

    @dataclass
    class Optimiser:
        lr: float = 1e-3

    @dataclass
    class Run:
        output: str
        optimiser: Optimiser = field(default_factory=Optimiser)

    settings = load(Run, "run.yaml", ["optimiser.lr=1e-4"])     # a float, not a string as plain YAML has it
    save(settings, "resolved.yaml")                             # every field, loads to an equal object

An unknown key, a wrong type, a key given twice, a missing file: one SettingsError that says where and what was expected.
Fields may be bool, int, float, str, None, Path, Literal, list, tuple, dict, other dataclasses, unions of these, or Any.
"""

from __future__ import annotations

import dataclasses
import difflib
import os
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, TypeVar, Union

import yaml

from pose_tools.files import write_text
from pose_tools.user_error import UserError

T = TypeVar("T")


class SettingsError(UserError):
    """Settings that cannot be used; the message names the file, the key, what was got and what was expected."""


@dataclasses.dataclass(frozen=True)
class _Typed:
    """A value as typed after `--set key=`: read as YAML where that fits the field, else as the text itself."""

    text: str


class _Loader(yaml.SafeLoader):
    """SafeLoader that refuses a key given twice (plain YAML silently keeps the last)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set()
        for key_node, _ in node.value:
            if isinstance(key_node, yaml.ScalarNode) and key_node.value in seen:
                mark = key_node.start_mark
                raise SettingsError(f"{mark.name}, line {mark.line + 1}: the key {key_node.value!r} stands twice")
            seen.add(key_node.value if isinstance(key_node, yaml.ScalarNode) else id(key_node))
        return super().construct_mapping(node, deep)


def load(cls: type[T], path: str | os.PathLike[str] | None, overrides: Sequence[str] = ()) -> T:
    """Reads `cls` from the YAML file `path` (None: defaults alone), then applies `overrides` such as "optimiser.lr=1e-4".

    A list is reached by number ("datasets.0.weight=2"). Raises SettingsError.
    """
    where = "settings" if path is None else str(path)
    values = {} if path is None else read_yaml(path)
    for override in overrides:
        _apply(values, override)
    return from_mapping(cls, values, where)


def read_yaml(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The mapping in a YAML file. Raises SettingsError when the file is missing, not YAML or not a mapping."""
    path = Path(path)
    try:
        with open(path, encoding="utf-8") as file:
            values = yaml.load(file, _Loader)  # noqa: S506 (a SafeLoader)
    except FileNotFoundError:
        near = difflib.get_close_matches(path.name, [p.name for p in path.parent.glob("*.y*ml")], n=3, cutoff=0.4)
        raise SettingsError(f"{path}: no such file" + (f"; beside it there is {', '.join(near)}" if near else "")) from None
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise SettingsError(f"{path}: cannot be read as YAML: {error}") from error
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise SettingsError(f"{path}: the file holds a {type(values).__name__}, expected 'key: value' lines")
    return values


def from_mapping(cls: type[T], values: Mapping[str, Any], where: str = "settings") -> T:
    """Builds the dataclass `cls` from nested mappings, checking names and types. Raises SettingsError."""
    return _dataclass(cls, values, where, "")


def to_mapping(settings: Any) -> Any:
    """Nested dicts, lists and scalars of a dataclass: what `from_mapping` reads back to an equal object."""
    if dataclasses.is_dataclass(settings) and not isinstance(settings, type):
        return {f.name: to_mapping(getattr(settings, f.name)) for f in dataclasses.fields(settings)}
    if isinstance(settings, Mapping):
        return {key: to_mapping(value) for key, value in settings.items()}
    if isinstance(settings, (list, tuple)):
        return [to_mapping(value) for value in settings]
    return str(settings) if isinstance(settings, os.PathLike) else settings


def to_yaml(settings: Any) -> str:
    """Every field of a dataclass as YAML, in the order of its definition."""
    values = to_mapping(settings)
    text = yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)
    if all(character.isprintable() or character == "\n" for character in text):
        return text
    return yaml.safe_dump(values, sort_keys=False, width=120)  # PyYAML reads unusual line ends back as blanks unless they are escaped


def save(settings: Any, path: str | os.PathLike[str]) -> None:
    """Writes `to_yaml(settings)` to `path`, whole or not at all."""
    write_text(path, to_yaml(settings))


def _apply(values: dict[str, Any], override: str) -> None:
    """Writes one "a.b=value" into nested mappings and lists."""
    name, equals, text = override.partition("=")
    keys = name.strip().split(".")
    if not equals or not all(keys):
        raise SettingsError(f"--set {override}: expected key=value, such as optimiser.lr=1e-4")
    target: Any = values
    for depth, key in enumerate(keys):
        last = depth == len(keys) - 1
        if isinstance(target, list):
            if not key.isdecimal() or int(key) >= len(target):
                above = ".".join(keys[:depth])
                raise SettingsError(f"--set {override}: {above} is a list of {len(target)}, so {key!r} must be a number below that")
            slot: Any = int(key)
        elif isinstance(target, dict):
            slot = key
            if not last and target.get(key) is None:
                target[key] = {}
        else:
            raise SettingsError(f"--set {override}: {'.'.join(keys[:depth])} is {_show(target)}, it has no key {key!r}")
        if last:
            target[slot] = _Typed(text)
        else:
            target = target[slot]


def _dataclass(cls: type[T], values: Any, where: str, path: str) -> T:
    if not isinstance(values, Mapping):
        raise SettingsError(f"{_place(where, path)}: expected keys of {cls.__name__}, got {_show(values)}")
    hints = typing.get_type_hints(cls)
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            near = difflib.get_close_matches(str(key), fields, n=1, cutoff=0.5)
            hint = f"did you mean {near[0]!r}?" if near else f"known keys: {', '.join(fields)}"
            raise SettingsError(f"{_place(where, path)}: unknown key {key!r}; {hint}")
    arguments = {}
    for name, field in fields.items():
        if name in values:
            arguments[name] = _convert(hints[name], values[name], where, f"{path}.{name}".lstrip("."))
        elif field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING:
            raise SettingsError(f"{_place(where, path)}: the key {name!r} is required ({_name(hints[name])})")
    try:
        return cls(**arguments)
    except SettingsError:
        raise
    except (ValueError, TypeError) as error:  # what __post_init__ refuses
        raise SettingsError(f"{_place(where, path)}: {error}") from error


def _convert(hint: Any, value: Any, where: str, path: str) -> Any:
    """`value` as the type `hint`; raises SettingsError naming the key."""
    if isinstance(value, _Typed):
        try:
            parsed = yaml.load(value.text, _Loader)  # noqa: S506 (a SafeLoader)
            return _convert(hint, parsed, f"--set {path}={value.text}", path)
        except (SettingsError, yaml.YAMLError) as error:
            try:
                return _convert(hint, value.text, f"--set {path}={value.text}", path)
            except SettingsError as second:
                raise (error if isinstance(error, SettingsError) else second) from None
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (Union, types.UnionType):
        return _union(hint, arguments, value, where, path)
    if origin is Literal:
        if not any(value == a and type(value) is type(a) for a in arguments):
            raise _wrong(where, path, value, f"one of {', '.join(map(str, arguments))}")
        return value
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return value if isinstance(value, hint) else _dataclass(hint, value, where, path)
    if (origin or hint) in (list, tuple):
        return _sequence(hint, origin or hint, arguments, value, where, path)
    if (origin or hint) is dict:
        if not isinstance(value, Mapping):
            raise _wrong(where, path, value, _name(hint))
        key_hint, value_hint = arguments or (Any, Any)
        return {_convert(key_hint, k, where, path): _convert(value_hint, v, where, f"{path}.{k}") for k, v in value.items()}
    return _scalar(hint, value, where, path)


def _union(hint: Any, options: tuple[Any, ...], value: Any, where: str, path: str) -> Any:
    """The option whose type the value already has, else the first that takes it."""
    if value is None and type(None) in options:
        return None
    exact = [o for o in options if o is type(value)]
    errors = []
    for option in exact + [o for o in options if o not in exact and o is not type(None)]:
        try:
            return _convert(option, value, where, path)
        except SettingsError as error:
            errors.append(error)
    raise errors[0] if len(errors) == 1 else _wrong(where, path, value, _name(hint))


def _sequence(hint: Any, kind: type, arguments: tuple[Any, ...], value: Any, where: str, path: str) -> Any:
    if not isinstance(value, (list, tuple)):
        raise _wrong(where, path, value, _name(hint))
    if kind is tuple and arguments and arguments[-1] is not Ellipsis:
        if len(value) != len(arguments):
            raise _wrong(where, path, value, f"{len(arguments)} values ({_name(hint)})")
        hints: Sequence[Any] = arguments
    else:
        hints = [arguments[0] if arguments else Any] * len(value)
    return kind(_convert(h, v, where, f"{path}.{i}") for i, (h, v) in enumerate(zip(hints, value, strict=True)))


def _scalar(hint: Any, value: Any, where: str, path: str) -> Any:
    if hint is type(None) and value is None:
        return None
    if hint in (bool, int, str) and type(value) is hint:
        return value
    if hint in (int, float) and not isinstance(value, bool):
        # YAML 1.1 reads 1e-4 as a string; and 1e4 is a fine way to write a whole number
        try:
            number = float(value) if isinstance(value, (int, float, str)) else None
        except (ValueError, OverflowError):
            number = None
        if number is not None and hint is float:
            return number
        if number is not None and number.is_integer():
            return int(number)
    if hint is Path and isinstance(value, (str, Path)):
        return Path(value)
    raise _wrong(where, path, value, _name(hint))


def _wrong(where: str, path: str, value: Any, expected: str) -> SettingsError:
    return SettingsError(f"{_place(where, path)}: got {_show(value)}, expected {expected}")


def _place(where: str, path: str) -> str:
    return f"{where}: {path}" if path else where


def _show(value: Any) -> str:
    text = "nothing (null)" if value is None else f"{value!r} ({type(value).__name__})"
    return text if len(text) <= 120 else text[:117] + "..."


def _name(hint: Any) -> str:
    if isinstance(hint, type) and not typing.get_args(hint):
        return hint.__name__
    return str(hint).replace("typing.", "").replace("pathlib.", "")
