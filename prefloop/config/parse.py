"""From mappings to frozen dataclasses: unknown keys and wrong types are refused, naming the nearest."""

from __future__ import annotations

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from prefloop.errors import ConfigError

T = TypeVar("T")

_HUB_NAME = re.compile(r"\w(?:[\w-]|\.(?!\.))*(?:/\w(?:[\w-]|\.(?!\.))*)?", re.ASCII)


def parse(cls: type[T], values: Mapping[str, Any] | None, where: str) -> T:
    """Builds the frozen dataclass `cls` from a mapping; keys left out take the dataclass's defaults.

    Args:
        cls: a dataclass type; nested dataclasses, lists, dicts, literals and optionals are followed.
        values: the section as read from YAML; None means empty.
        where: dotted path for messages, such as "sft".

    Raises:
        ConfigError: unknown key (the nearest right one is named), wrong type, or a value that the
            dataclass's own `__post_init__` refuses.
    """
    if values is None:
        values = {}
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where} must be a mapping of keys, got {_shown(values)}")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in values:
        if key not in fields:
            raise ConfigError(f"unknown key {where}.{key}", nearest(str(key), fields, where))
    parsed = {key: _value(hints[key], value, f"{where}.{key}") for key, value in values.items()}
    try:
        return cls(**parsed)
    except ValueError as error:
        raise ConfigError(f"{where}: {error}") from error


def nearest(key: str, known: typing.Iterable[str], where: str = "") -> str:
    """A remedy that names the closest known key, or all of them when none is close."""
    names = sorted(known)
    close = difflib.get_close_matches(key, names, n=1, cutoff=0.6)
    prefix = f"{where}." if where else ""
    if close:
        return f"did you mean {prefix}{close[0]}?"
    return f"known keys: {', '.join(names)}"


def _value(hint: Any, value: Any, where: str) -> Any:
    """Checks one value against its annotation; ints pass as floats, "1e-4" (which YAML reads as text) too."""
    origin = typing.get_origin(hint)
    arguments = typing.get_args(hint)
    if origin in (typing.Union, types.UnionType):
        if value is None and type(None) in arguments:
            return None
        return _value(next(a for a in arguments if a is not type(None)), value, where)
    if origin is typing.Literal:
        if isinstance(value, bool) and ("on" if value else "off") in arguments:
            return "on" if value else "off"  # what YAML 1.1 makes of a bare on or off
        if value not in arguments:
            close = difflib.get_close_matches(str(value), [str(a) for a in arguments], n=1, cutoff=0.5)
            hint_text = f"did you mean {close[0]}?" if close else f"one of: {', '.join(map(str, arguments))}"
            raise ConfigError(f"{where} is {_shown(value)}", hint_text)
        return value
    if origin in (list, tuple):
        if not isinstance(value, (list, tuple)):
            raise ConfigError(f"{where} must be a list, got {_shown(value)}")
        items = [_value(arguments[0], item, f"{where}[{i}]") for i, item in enumerate(value)]
        return tuple(items) if origin is tuple else items
    if origin is dict:
        if not isinstance(value, Mapping):
            raise ConfigError(f"{where} must be a mapping, got {_shown(value)}")
        return {str(key): _value(arguments[1], item, f"{where}.{key}") for key, item in value.items()}
    if hint is Any:
        return value
    if dataclasses.is_dataclass(hint):
        return parse(typing.cast(type, hint), value, where)
    return _scalar(hint, value, where)


def _scalar(hint: type, value: Any, where: str) -> Any:
    if hint is float and not isinstance(value, bool):
        if isinstance(value, (int, float, str)):
            try:
                number = float(value)
            except (ValueError, OverflowError):
                pass
            else:
                if number == number:  # NaN is below no bound and above none: it would pass every check
                    return number
    elif hint is int and isinstance(value, int) and not isinstance(value, bool):
        return value
    elif hint is int and isinstance(value, float) and value.is_integer():
        return int(value)
    elif (hint is bool and isinstance(value, bool)) or (hint is str and isinstance(value, str)):
        return value
    names = {float: "a number", int: "a whole number", bool: "true or false", str: "text"}
    raise ConfigError(f"{where} must be {names.get(hint, hint)}, got {_shown(value)}")


def _shown(value: Any) -> str:
    return f"{value!r} ({type(value).__name__})"


def hub_name(name: str, value: str) -> None:
    """Raises ValueError when `value` is neither empty nor NAME or OWNER/NAME as the hub has them: what looks
    like a path or an address would be taken for one."""
    if value and not _HUB_NAME.fullmatch(value):
        raise ValueError(f"{name} must be NAME or OWNER/NAME as the hub has it, got {value!r}")


def at_least(name: str, value: float, bound: float, *, strict: bool = False) -> None:
    """Raises ValueError when `value` is below `bound` (or equal to it, if `strict`)."""
    if value < bound or (strict and value == bound):
        raise ValueError(f"{name} must be {'more than' if strict else 'at least'} {bound}, got {value}")


def between(name: str, value: float, low: float, high: float) -> None:
    """Raises ValueError when `value` lies outside [low, high]."""
    if not low <= value <= high:
        raise ValueError(f"{name} must lie between {low} and {high}, got {value}")
