"""Questions with worked answers, `{"question", "answer"}`; what follows `####` is kept as `meta.answer`
(GSM8K)."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Row
from prefloop.data.transcripts import required_text, with_meta

KIND: Final = "demonstrations"


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one demonstration."""
    answer = required_text(record, "answer")
    row = with_meta(
        {"prompt": required_text(record, "question"), "completion": answer}, record, "question", "answer"
    )
    if "####" in answer:
        row["meta"] = {**row.get("meta", {}), "answer": answer.rsplit("####", 1)[1].strip().replace(",", "")}
    yield "demonstrations", row
