"""Yes/no questions with the answer that matches a behaviour (model-written evaluations), as prompts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Row
from prefloop.data.transcripts import required_text, with_meta

KIND: Final = "prompts"


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one prompt; the answers stay in `meta`. Option kind=evaluation makes them evaluation prompts."""
    kind = options.get("kind", "prompts")
    if kind not in ("prompts", "evaluation"):
        raise ValueError(f"kind must be prompts or evaluation, got {kind!r}")
    yield kind, with_meta({"prompt": required_text(record, "question")}, record, "question")
