"""What a watch says: sentences for people, or one JSON object a line for machines."""

from __future__ import annotations

import json
import sys
from datetime import UTC, datetime
from typing import Any, TextIO

from prefloop.printable import printable


class Voice:
    """Writes events to standard output as they happen.

    Args:
        as_json: `{"time", "event", "text", ...}` a line, instead of the text alone.
    """

    def __init__(self, *, as_json: bool = False, stream: TextIO | None = None) -> None:
        self.as_json = as_json
        self._stream = stream if stream is not None else sys.stdout
        self._last: dict[str, str] = {}

    def say(self, event: str, text: str, **values: Any) -> None:
        """Says one thing that happened.

        Args:
            event: short name of its kind; docs/watch.md lists them.
            values: what a machine wants to know beside the text.
        """
        if self.as_json:
            now = datetime.now(UTC).isoformat(timespec="milliseconds")
            line = json.dumps({"time": now, "event": event, "text": text, **values})
        else:  # a file's name may hold what a terminal would obey
            line = printable(text)
        try:
            print(line, file=self._stream, flush=True)
        except (OSError, ValueError):
            return  # nobody reads any more: no reason to stop watching

    def say_once(self, event: str, text: str, **values: Any) -> None:
        """The same, unless it is what was said last of this kind."""
        if self._last.get(event) != text:
            self._last[event] = text
            self.say(event, text, **values)

    def forget(self, event: str) -> None:
        """What was said of this kind is over; it may be said again."""
        self._last.pop(event, None)
