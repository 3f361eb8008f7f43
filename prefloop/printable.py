"""Text from outside on its way to a terminal or a name: what would act there is shown instead."""

from __future__ import annotations

import re
from typing import Final

# Control characters (ESC begins what moves the cursor, sets the title or writes the clipboard), the C1 ones,
# which some terminals obey as well, marks that reverse the order in which text is read, line separators, and
# halves of characters, which no encoding can write. Tab and line break stay.
_ACTING: Final = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]"
)
_BREAKS: Final = re.compile("[\t\n]")


def printable(text: str) -> str:
    """The text, each character that acts on a terminal written out (`\\x1b`); tab and line break stay."""
    return _ACTING.sub(_escaped, text)


def printable_line(text: str) -> str:
    """The same in one line: tabs and line breaks are escaped, too."""
    return _BREAKS.sub(_escaped, printable(text))


def _escaped(match: re.Match[str]) -> str:
    code = ord(match[0])
    return f"\\x{code:02x}" if code < 0x100 else f"\\u{code:04x}"
