"""The gate between the records of any file and rows: past it, every value is one that JSON can write.

JSON as people have it says more than JSON can: NaN, one key twice, halves of characters. Parquet and the hub
bring dates, decimals and bytes.
"""

from __future__ import annotations

import datetime
import decimal
import json
import math
from collections.abc import Mapping
from typing import Any, Final

DEEPEST: Final = 64
"""Levels of nesting; a conversation with its parts has five."""
_WIDEST: Final = 1 << 63


def tamed(value: Any, depth: int = 0) -> Any:
    """The value as JSON has it: dates as ISO 8601, decimals and UTF-8 bytes as text, NaN (missing) as null.

    Raises:
        ValueError: nested too deep, an infinite or endless number, half a character, bytes that are no text.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise ValueError(
                f"half a character (surrogate \\u{ord(value[error.start]):04x}) in a text"
            ) from None
        return value
    if isinstance(value, int):
        if not -_WIDEST <= value < _WIDEST:
            raise ValueError("a whole number of more than 64 bits")
        return value
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("a number that is not finite")
        return None if math.isnan(value) else value
    if depth >= DEEPEST:
        raise ValueError(f"nested deeper than {DEEPEST} levels")
    if isinstance(value, Mapping):
        return {_key(key): tamed(item, depth + 1) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [tamed(item, depth + 1) for item in value]
    if isinstance(value, (datetime.datetime, datetime.date, datetime.time)):
        return value.isoformat()
    if isinstance(value, (decimal.Decimal, datetime.timedelta)):
        return str(value)
    if isinstance(value, bytes):
        try:
            return value.decode("utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{len(value)} bytes that are no UTF-8 text") from None
    raise ValueError(f"a value of type {type(value).__name__}, which is no text, number, list or object")


def decoder() -> json.JSONDecoder:
    """A JSON decoder that refuses NaN, Infinity and one key twice, of which Python would keep the last."""
    return json.JSONDecoder(object_pairs_hook=_object, parse_constant=_constant)


def _key(key: Any) -> str:
    if not isinstance(key, str):
        raise ValueError(f"a key that is no text: {key!r}")
    return str(tamed(key))


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    made = dict(pairs)
    if len(made) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"the key {twice!r} stands twice in one object")
    return made


def _constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON: write null where a number is missing")
