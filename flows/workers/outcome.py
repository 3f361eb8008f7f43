"""How a flow run on a worker says why it failed, and how that is read: `exit code N`, then lines."""

from __future__ import annotations

import re
from collections.abc import Sequence

_FIRST = re.compile(r"exit code (\d{1,3})")


def write_failure(code: int, lines: Sequence[str]) -> str:
    """The message of a failed flow run, as Prefect's pages show it, too."""
    return "\n".join([f"exit code {code}", *lines])


def read_failure(message: str) -> tuple[int, list[str]]:
    """Exit code and lines; 1 for a flow run that ended before it could say."""
    first, *rest = message.splitlines() or [""]
    found = _FIRST.fullmatch(first)
    return (int(found[1]), rest[-12:]) if found else (1, message.splitlines()[-12:])
