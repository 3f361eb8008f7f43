"""Pre-training text: plain .txt files, or records with a `text` field (option field=NAME for another)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Row
from prefloop.data.transcripts import required_text, with_meta

KIND: Final = "text"


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one document; the record's other fields are its `meta`."""
    field = options.get("field", "text")
    yield "text", with_meta({"text": required_text(record, field)}, record, field)
