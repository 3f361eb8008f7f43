"""What TRL and most preference sets on the hub hold: prompt, chosen and rejected, as text or messages.

The prompt may be implicit (the beginning that chosen and rejected share), or said twice (in `prompt` and
again at the beginning of both). Rows with prompt and completion, messages, or a prompt alone are read too;
with a label they are unpaired.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import takewhile
from typing import Any, Final

from prefloop.data.records import Messages, Row, parse_messages
from prefloop.data.transcripts import (
    compact,
    demonstration,
    preference,
    required,
    split_pair,
    with_meta,
)

KIND: Final = "preferences"
_USED: Final = ("prompt", "chosen", "rejected", "completion", "messages", "label", "text")


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one row of the kind that the record's keys say."""
    if not isinstance(record, dict):
        raise ValueError(f"a record must be an object with keys, got {type(record).__name__}")
    if "chosen" in record or "rejected" in record:
        kind, row = "preferences", _pair(record)
    elif "messages" in record:
        kind, row = "demonstrations", demonstration(parse_messages(record["messages"], "user", "messages"))
    elif "completion" in record:
        kind, row = (
            "demonstrations",
            {"prompt": required(record, "prompt"), "completion": record["completion"]},
        )
    elif "prompt" in record:
        kind, row = "prompts", {"prompt": record["prompt"]}
    else:
        raise ValueError(
            f"there is no chosen, completion, messages or prompt; it has {', '.join(map(str, record))}"
        )
    if kind == "demonstrations" and "label" in record:
        kind, row["label"] = "unpaired", record["label"]
    yield kind, with_meta(row, record, *_USED)


def _pair(record: Mapping[str, Any]) -> Row:
    chosen, rejected = required(record, "chosen"), required(record, "rejected")
    if "prompt" in record:
        prompt = parse_messages(record["prompt"], "user", "prompt")
        left = parse_messages(chosen, "assistant", "chosen")
        right = parse_messages(rejected, "assistant", "rejected")
        return preference(prompt, _without(prompt, left), _without(prompt, right))
    if isinstance(chosen, str) and isinstance(rejected, str):
        return _implicit_text(chosen, rejected)
    left, right = (
        parse_messages(chosen, "assistant", "chosen"),
        parse_messages(rejected, "assistant", "rejected"),
    )
    return preference(*split_pair(left, right))


def _without(prompt: Messages, completion: Messages) -> Messages:
    """A completion that begins by repeating the prompt, without it."""
    if len(completion) > len(prompt) and completion[: len(prompt)] == prompt:
        return completion[len(prompt) :]
    return completion


def _implicit_text(chosen: str, rejected: str) -> Row:
    """Two texts share their beginning, cut back to where a word ends."""
    length = sum(1 for _ in takewhile(lambda pair: pair[0] == pair[1], zip(chosen, rejected, strict=False)))
    shared = chosen[:length]
    if len(shared) < min(len(chosen), len(rejected)) or not shared[-1:].isspace():
        cut = max(shared.rfind(space) for space in " \n\t")
        shared = shared[: cut + 1]
    if not shared.strip():
        raise ValueError("there is no prompt: chosen and rejected share no beginning")
    return {
        "prompt": compact([{"role": "user", "content": shared.rstrip()}], "user"),
        "chosen": chosen[len(shared) :],
        "rejected": rejected[len(shared) :],
    }
