"""Instructions with input and output (Alpaca, Dolly), or with `chosen` and `rejected` outputs."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Messages, Row
from prefloop.data.transcripts import compact, required_text, with_meta

KIND: Final = "demonstrations"
_USED: Final = (
    "instruction",
    "input",
    "context",
    "output",
    "response",
    "chosen",
    "rejected",
    "system",
    "history",
)


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields a preference if the record has `chosen`, else a demonstration; the input comes last."""
    prompt = compact(_prompt(record), "user")
    if "chosen" in record or "rejected" in record:
        kind = "preferences"
        row: Row = {
            "prompt": prompt,
            "chosen": required_text(record, "chosen"),
            "rejected": required_text(record, "rejected"),
        }
    else:
        answer = "response" if "response" in record and "output" not in record else "output"
        kind, row = "demonstrations", {"prompt": prompt, "completion": required_text(record, answer)}
    yield kind, with_meta(row, record, *_USED)


def _prompt(record: Any) -> Messages:
    parts = [required_text(record, "instruction"), record.get("input") or record.get("context") or ""]
    messages: Messages = []
    if record.get("system"):
        messages.append({"role": "system", "content": required_text(record, "system")})
    for turn in record.get("history") or []:
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise ValueError("history must be a list of [instruction, response] texts")
        messages += [{"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]}]
    messages.append({"role": "user", "content": "\n\n".join(str(part) for part in parts if part)})
    return messages
