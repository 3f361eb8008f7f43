"""Single answers with a thumb up or down: `messages` or `prompt` and `completion`, with a `label`."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.importers import trl
from prefloop.data.records import Row
from prefloop.data.transcripts import required

KIND: Final = "unpaired"


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one unpaired row."""
    if not isinstance(required(record, "label"), bool):
        raise ValueError(f"label must be true or false, got {record['label']!r}")
    yield from trl.convert(record, options)
