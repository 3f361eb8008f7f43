"""Pairs of whole transcripts, `{"chosen", "rejected"}`, with turns opened by "Human:" and "Assistant:"
(hh-rlhf)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final

from prefloop.data.records import Messages, Row
from prefloop.data.transcripts import preference, required_text, split_pair

KIND: Final = "preferences"
_ROLES: Final = {"Human": "user", "Assistant": "assistant"}
_TURN: Final = re.compile(r"(?:\A|\n\n)(Human|Assistant):")


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one preference: the shared turns are the prompt."""
    chosen, rejected = (turns(required_text(record, name)) for name in ("chosen", "rejected"))
    yield "preferences", preference(*split_pair(chosen, rejected))


def turns(transcript: str) -> Messages:
    """Splits a transcript at its role marks; white space around a turn belongs to the marks.

    Raises:
        ValueError: it does not begin with a role mark.
    """
    pieces = _TURN.split(transcript)
    if pieces[0].strip() or len(pieces) < 3:
        raise ValueError(
            f"the transcript does not begin with Human: or Assistant: but {pieces[0].strip()[:40]!r}"
        )
    return [
        {"role": _ROLES[role], "content": content.strip()}
        for role, content in zip(pieces[1::2], pieces[2::2], strict=True)
    ]
