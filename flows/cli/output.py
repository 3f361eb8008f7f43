"""What commands print: names come from data, files and servers, and act on no terminal."""

from __future__ import annotations

from prefloop.printable import printable, printable_line


def say(line: str = "") -> None:
    """Prints one line; what would move the cursor or begin another line is written out (`\\x1b`, `\\x0a`)."""
    print(printable_line(line), flush=True)


def say_all(text: str) -> None:
    """Prints a text of several lines, each as its own."""
    print(printable(text), flush=True)
