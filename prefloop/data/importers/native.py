"""prefloop's own rows; the kind follows from their keys, or from option kind=NAME (evaluation, say)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import KINDS, Row

KIND: Final = "preferences"


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields the row as it is; whether it is right is for validation to say."""
    if not isinstance(record, dict):
        raise ValueError(f"a row must be an object with keys, got {type(record).__name__}")
    kind = options.get("kind") or _kind(record)
    if kind not in KINDS:
        raise ValueError(f"unknown kind {kind!r}: one of {', '.join(KINDS)}")
    yield kind, dict(record)


def _kind(record: Mapping[str, Any]) -> str:
    if "chosen" in record or "rejected" in record or "completions" in record or "ranks" in record:
        return "preferences"
    if "completion" in record:
        return "unpaired" if "label" in record else "demonstrations"
    if "prompt" in record:
        return "prompts"
    if "text" in record:
        return "text"
    raise ValueError(f"its keys say no kind: {', '.join(map(str, record)) or 'none'}")
