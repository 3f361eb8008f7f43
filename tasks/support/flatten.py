"""Nested settings and figures as the flat names that a tracking server holds."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """{"lora": {"rank": 8}} under prefix "sft" becomes {"sft.lora.rank": 8}; lists stay values."""
    flat: dict[str, Any] = {}
    for key, value in values.items():
        name = f"{prefix}.{key}" if prefix else str(key)
        if isinstance(value, Mapping):
            flat |= flatten(value, name)
        else:
            flat[name] = value
    return flat


def figures(values: Mapping[str, Any]) -> dict[str, float]:
    """The finite numbers of a nested mapping under flat names; an interval [low, high] becomes `.low` and
    `.high`."""
    found: dict[str, float] = {}
    for name, value in flatten(values).items():
        if isinstance(value, (list, tuple)) and len(value) == 2:
            found |= figures({name: {"low": value[0], "high": value[1]}})
        elif isinstance(value, (bool, int, float)) and math.isfinite(value):
            found[name] = float(value)
    return found


def without_nan(value: Any) -> Any:
    """The same structure with every number that is not finite replaced by None, since JSON has none of
    them."""
    if isinstance(value, Mapping):
        return {key: without_nan(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
