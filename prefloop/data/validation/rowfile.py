"""A JSON Lines file of rows, read in order or by position, in memory that grows by eight bytes a row."""

from __future__ import annotations

import json
from array import array
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from prefloop.data.records import Row
from prefloop.errors import DataError


class RowFile:
    """Rows of a file that a stage wrote; a row's position is its index in reading order.

    Raises:
        DataError: the file is missing.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        if not self.path.is_file():
            raise DataError(f"{path} is missing", "run the stage that writes it: prefloop plan shows which")
        self._offsets = array("q")
        self._handle = open(self.path, "rb")  # noqa: SIM115 - closed by `close`

    def __len__(self) -> int:
        """How many rows there are; known once `lines` or `rows` has passed all of them."""
        return len(self._offsets)

    def lines(self) -> Iterator[bytes]:
        """Yields each line as it stands; the first pass over all of them remembers where each began."""
        offsets = array("q")
        offset = 0
        with open(self.path, "rb") as handle:
            for line in handle:
                if line.strip():
                    offsets.append(offset)
                    yield line
                offset += len(line)
        self._offsets = offsets

    def rows(self) -> Iterator[Row]:
        """Yields each row. Raises DataError for a line that is no JSON object."""
        for position, line in enumerate(self.lines()):
            yield self._parsed(line, position)

    def row(self, position: int) -> Row:
        """The row at a position, after a pass over all rows."""
        self._handle.seek(self._offsets[position])
        return self._parsed(self._handle.readline(), position)

    def close(self) -> None:
        """Closes the file."""
        self._handle.close()

    def __enter__(self) -> RowFile:
        return self

    def __exit__(self, *exc: object) -> None:
        self.close()

    def _parsed(self, line: bytes, position: int) -> Row:
        try:
            row: Any = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise DataError(
                f"{self.path}, row {position + 1} is no JSON ({error}): {line[:80]!r}",
                "a stage wrote this file and something changed it: delete it and run again",
            ) from error
        if not isinstance(row, dict):
            raise DataError(f"{self.path}, row {position + 1} is no JSON object: {line[:80]!r}")
        return row


def where(row: Row) -> str:
    """Where a row came from: file and line of the import, or its id."""
    if row.get("source") and row.get("line"):
        return f"{row['source']}, line {row['line']}"
    return str(row.get("id") or row.get("source") or "unknown")
