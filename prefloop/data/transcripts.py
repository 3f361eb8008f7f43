"""Whole conversations into a prompt and what answers it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from prefloop.data.records import Messages, Row

Turns = str | Messages


def split_pair(chosen: Messages, rejected: Messages) -> tuple[Messages, Messages, Messages]:
    """Splits two transcripts into the turns they share, and the rest of each.

    Each rest holds at least one turn. Two transcripts that part before their last turn leave rests of several
    turns, which validation finds.

    Raises:
        ValueError: they share no turn, so there is no prompt.
    """
    shared = 0
    for left, right in zip(chosen[:-1], rejected[:-1], strict=False):
        if left != right:
            break
        shared += 1
    if shared == 0:
        raise ValueError("the two transcripts share no turn before the last: nothing is compared")
    return chosen[:shared], chosen[shared:], rejected[shared:]


def split_last(messages: Messages) -> tuple[Messages, Messages]:
    """Splits a transcript into what was asked and its last turn.

    Raises:
        ValueError: fewer than two turns.
    """
    if len(messages) < 2:
        raise ValueError(f"a conversation needs at least two turns, this has {len(messages)}")
    return messages[:-1], messages[-1:]


def compact(messages: Messages, role: str) -> Turns:
    """A single message of `role` becomes its text; everything else stays a list of messages."""
    if len(messages) == 1 and messages[0]["role"] == role:
        return messages[0]["content"]
    return messages


def preference(prompt: Messages, chosen: Messages, rejected: Messages) -> Row:
    """A preference row."""
    return {
        "prompt": compact(prompt, "user"),
        "chosen": compact(chosen, "assistant"),
        "rejected": compact(rejected, "assistant"),
    }


def demonstration(messages: Messages) -> Row:
    """A demonstration row out of a whole conversation: its last turn is the completion."""
    prompt, completion = split_last(messages)
    return {"prompt": compact(prompt, "user"), "completion": compact(completion, "assistant")}


def ranks_of(scores: list[float]) -> list[int]:
    """Ranks by score: the highest is 0, equal scores tie, no rank is left out."""
    order = sorted(set(scores), reverse=True)
    return [order.index(score) for score in scores]


def with_meta(row: Row, record: Mapping[str, Any], *used: str) -> Row:
    """Adds the optional keys of a row as they stand, and what else the record holds under `meta`."""
    kept = ("id", "rater", "round", "policy", "margin", "probability", "both_bad", "skipped")
    for key in kept:
        if key not in row and record.get(key) is not None:
            row[key] = record[key]
    rest = {key: value for key, value in record.items() if key not in (*used, *kept, "meta")}
    meta = record.get("meta")
    meta = {**(meta if isinstance(meta, dict) else {}), **rest}
    if meta:
        row["meta"] = meta
    return row


def required(record: Any, name: str) -> Any:
    """A field of a record.

    Raises:
        ValueError: the record is no object, or has no such field.
    """
    if not isinstance(record, dict):
        raise ValueError(f"a record must be an object with keys, got {type(record).__name__}")
    if name not in record:
        raise ValueError(
            f"{name} is missing; the record has {', '.join(sorted(map(str, record))) or 'no keys'}"
        )
    return record[name]


def required_text(record: Any, name: str) -> str:
    """A field of a record that is text. Raises ValueError if it is not."""
    value = required(record, name)
    if not isinstance(value, str):
        raise ValueError(f"{name} must be text, got {type(value).__name__}")
    return value
