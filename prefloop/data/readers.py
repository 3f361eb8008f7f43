"""Records out of files: JSON Lines, JSON arrays, CSV, Parquet and plain text, compressed or not, in bounded
memory.

What cannot be read is yielded as a `Broken` record with its line, never skipped.
"""

from __future__ import annotations

import csv
import io
import json
from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

from prefloop.data.taming import decoder
from prefloop.data.unpacking import CHUNK, COMPRESSIONS, Bomb, allowed_bytes, damage, opened
from prefloop.errors import DataError
from prefloop.files import link_out

CONTAINERS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_LONGEST_LINE: Final = 64 << 20
_LONGEST_TEXT: Final = 1 << 30
_PARQUET_ROWS: Final = 256
_ROW_BYTES: Final = 16
"""What a row counts at least, however little its values hold."""
_EXCERPT: Final = 120


@dataclass(frozen=True, slots=True)
class Broken:
    """A record that could not be read: why, and the beginning of what stood there."""

    reason: str
    excerpt: str


@dataclass(frozen=True, slots=True)
class Record:
    """One record of a file; `line` is 1-based (the row number in Parquet and JSON arrays)."""

    line: int
    value: Any


def container_of(path: Path) -> str:
    """The file's container by its name, compression aside.

    Raises:
        DataError: a name that says nothing about the format.
    """
    suffixes = [suffix.lower() for suffix in path.suffixes]
    if suffixes and suffixes[-1] in COMPRESSIONS:
        suffixes.pop()
    if not suffixes or suffixes[-1] not in CONTAINERS:
        raise DataError(
            f"{path}: the name does not say what the file is",
            f"rename it to end in {', '.join(CONTAINERS)}, optionally with {' or '.join(COMPRESSIONS)}",
        )
    return suffixes[-1]


def read_records(path: Path) -> Iterator[Record]:
    """Yields a file's records in order.

    Raises:
        DataError: the file is missing, a folder, a device, a link out of its folder, empty, no text at all,
            or of an unknown kind.
    """
    if not path.is_file():
        kind = "a folder" if path.is_dir() else "no regular file" if path.exists() else "missing"
        raise DataError(f"{path} is {kind}", "name an existing file")
    if (target := link_out(path)) is not None:
        raise DataError(
            f"{path} is a link to {target}, outside its folder: it is not followed",
            "what came with other people's data may point at files of yours; copy it in place if it is meant",
        )
    if path.stat().st_size == 0:
        raise DataError(f"{path} is empty", "name a file with rows in it")
    container = container_of(path)
    if container == ".parquet":
        return _parquet(path)
    if container in (".csv", ".tsv"):
        return _table(path, "\t" if container == ".tsv" else ",")
    if container == ".txt":
        return _whole(path)
    if container == ".json" and not _is_lines(path):
        return _array(path)
    return _json_lines(path)


def _lines(path: Path) -> Iterator[Record]:
    """Yields each line as bytes; damage and over-long lines as `Broken`."""
    number = 0
    with opened(path) as handle:
        while True:
            number += 1
            try:
                line = handle.readline(_LONGEST_LINE)
                whole = len(line) < _LONGEST_LINE or line.endswith(b"\n")
                if not whole:
                    while (rest := handle.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                        pass
            except Exception as error:
                reason = damage(error)
                if reason is None:
                    raise
                yield Record(number, Broken(f"{reason}: nothing can be read from here on", ""))
                return
            if not line:
                return
            if not whole:
                yield Record(number, Broken(f"the line is longer than {_LONGEST_LINE} bytes", _excerpt(line)))
                continue
            yield Record(number, line.removeprefix(b"\xef\xbb\xbf") if number == 1 else line)


def _text_lines(path: Path) -> Iterator[Record]:
    """Yields each line as text; what is no UTF-8 as `Broken`."""
    for record in _lines(path):
        if isinstance(record.value, Broken):
            yield record
            continue
        try:
            yield Record(record.line, record.value.decode("utf-8"))
        except UnicodeDecodeError as error:
            reason = f"not UTF-8 (byte {error.start + 1} of the line is 0x{record.value[error.start]:02x})"
            yield Record(record.line, Broken(reason, _excerpt(record.value)))


def _excerpt(line: bytes | str) -> str:
    text = line[: 4 * _EXCERPT].decode("utf-8", "replace") if isinstance(line, bytes) else line
    return text.strip()[:_EXCERPT]


def _json_lines(path: Path) -> Iterator[Record]:
    decode = decoder().decode
    for record in _text_lines(path):
        if isinstance(record.value, Broken):
            yield record
        elif record.value.strip():
            try:
                yield Record(record.line, decode(record.value))
            except (ValueError, RecursionError) as error:
                yield Record(record.line, Broken(_json_fault(error), _excerpt(record.value)))


def _json_fault(error: ValueError | RecursionError) -> str:
    """Why a text was not taken as JSON."""
    if isinstance(error, RecursionError):
        return "no JSON that can be read: nested too deep"
    return f"no JSON ({error.msg})" if isinstance(error, json.JSONDecodeError) else f"no JSON ({error})"


def _is_lines(path: Path) -> bool:
    """True unless the first character opens a JSON array."""
    with opened(path) as handle:
        try:
            return not handle.read(256).decode("utf-8", "replace").lstrip("\ufeff \t\r\n").startswith("[")
        except Exception as error:
            if damage(error) is None:
                raise
            return True


def _array(path: Path) -> Iterator[Record]:
    """Elements of one top-level array, decoded one by one from a moving window."""
    raw_decode = decoder().raw_decode
    window, number, begun = "", 0, False
    with opened(path) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape")
        while True:
            try:
                chunk = text.read(CHUNK)
            except Exception as error:
                reason = damage(error)
                if reason is None:
                    raise
                yield Record(number + 1, Broken(f"{reason}: nothing can be read from here on", ""))
                return
            window += chunk
            while True:
                window = window.lstrip(" \t\r\n," if begun else " \t\r\n")
                if not begun and window:
                    window, begun = window[1:], True
                    continue
                if not window or window.startswith("]"):
                    break
                try:
                    value, end = raw_decode(window)
                except (ValueError, RecursionError) as error:
                    if isinstance(error, json.JSONDecodeError) and chunk and len(window) < _LONGEST_LINE:
                        break
                    reason = f"{_json_fault(error)}: nothing can be read from here on"
                    yield Record(number + 1, Broken(reason, _excerpt(window)))
                    return
                number += 1
                yield Record(number, value)
                window = window[end:]
            if window.startswith("]"):
                return
            if not chunk:
                yield Record(number + 1, Broken("the array does not end: the file is truncated", ""))
                return


def _table(path: Path, delimiter: str) -> Iterator[Record]:
    """Rows of a CSV file as mappings from its header; a row of another width is `Broken`."""
    csv.field_size_limit(_LONGEST_LINE)
    broken: deque[Record] = deque()
    line = 0

    def readable() -> Iterator[str]:
        nonlocal line
        for record in _text_lines(path):
            if isinstance(record.value, Broken):
                broken.append(record)
            else:
                line = record.line
                yield record.value

    reader = csv.reader(readable(), delimiter=delimiter, strict=True)
    header: list[str] = []
    while True:
        try:
            cells = next(reader, None)
        except csv.Error as error:
            yield Record(line, Broken(f"no CSV ({error})", ""))
            continue
        while broken:
            yield broken.popleft()
        if cells is None:
            return
        if not header:
            header = cells
            if twice := [name for name in header if header.count(name) > 1]:
                raise DataError(f"{path} has the column {twice[0]!r} twice", "rename or remove one of them")
        elif len(cells) == len(header):
            yield Record(line, dict(zip(header, cells, strict=True)))
        elif cells:
            reason = f"the header has {len(header)} columns, this row {len(cells)}"
            yield Record(line, Broken(reason, _excerpt(delimiter.join(cells))))


def _parquet(path: Path) -> Iterator[Record]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path} is no Parquet file: {error}", "name a whole Parquet file") from error
    number, size = 0, path.stat().st_size
    left = allowed_bytes(size)
    with file:
        try:
            for batch in file.iter_batches(batch_size=_PARQUET_ROWS):
                left -= max(batch.nbytes, _ROW_BYTES * batch.num_rows)
                if left < 0:
                    raise Bomb(size)
                for value in batch.to_pylist():
                    number += 1
                    yield Record(number, value)
        except Bomb as error:
            yield Record(number + 1, Broken(str(error), ""))
        except (pa.ArrowException, OSError, ValueError, OverflowError) as error:
            reason = f"the file is damaged ({error}): nothing can be read from here on"
            yield Record(number + 1, Broken(reason, ""))


def _whole(path: Path) -> Iterator[Record]:
    """A plain text file as one record, `{"text": ...}`; a line that is no UTF-8 is a record of its own."""
    parts: list[str] = []
    length = 0
    for record in _text_lines(path):
        if isinstance(record.value, Broken):
            yield record
            continue
        length += len(record.value)
        if length > _LONGEST_TEXT:
            yield Record(record.line, Broken(f"the text is longer than {_LONGEST_TEXT} characters", ""))
            return
        parts.append(record.value)
    yield Record(1, {"text": "".join(parts)})
