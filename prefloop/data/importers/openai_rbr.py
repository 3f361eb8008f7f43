"""Conversations with the wanted type of response and propositions about a completion (Rule-Based Rewards,
gold set).

They become prompts; the wanted response type, the completion and its propositions are kept in `meta`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Row
from prefloop.data.transcripts import required, with_meta

KIND: Final = "prompts"


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one prompt."""
    yield "prompts", with_meta({"prompt": required(record, "prompt")}, record, "prompt")
