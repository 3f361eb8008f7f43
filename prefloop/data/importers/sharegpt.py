"""ShareGPT conversations, `{"conversations": [{"from", "value"}]}`, with `chosen` and `rejected` replies or
without."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Messages, Row
from prefloop.data.transcripts import demonstration, preference, required, required_text, with_meta

KIND: Final = "preferences"
_ROLES: Final = {
    "human": "user",
    "user": "user",
    "gpt": "assistant",
    "assistant": "assistant",
    "system": "system",
}
_USED: Final = ("conversations", "chosen", "rejected", "system", "label", "kto_tag")


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields a preference, an unpaired row (`label` or `kto_tag`) or a demonstration."""
    turns = required(record, "conversations")
    if not isinstance(turns, list) or not turns:
        raise ValueError("conversations must be a list of turns")
    messages = [_message(turn) for turn in turns]
    if record.get("system"):
        messages.insert(0, {"role": "system", "content": required_text(record, "system")})
    label = record.get("label", record.get("kto_tag"))
    if "chosen" in record or "rejected" in record:
        kind = "preferences"
        row = preference(messages, _reply(record, "chosen"), _reply(record, "rejected"))
    else:
        kind, row = "demonstrations", demonstration(messages)
        if label is not None:
            kind, row["label"] = "unpaired", label
    yield kind, with_meta(row, record, *_USED)


def _reply(record: Any, name: str) -> Messages:
    value = required(record, name)
    return [_message(turn) for turn in value] if isinstance(value, list) else [_message(value)]


def _message(turn: Any) -> dict[str, str]:
    """Roles that are no chat roles (tools, say) keep their name; validation will not let them pass."""
    role = required_text(turn, "from")
    return {"role": _ROLES.get(role, role), "content": required_text(turn, "value")}
