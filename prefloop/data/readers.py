"""Records out of files: JSON Lines, JSON arrays, CSV, Parquet and plain text, compressed or not, in bounded
memory.

What cannot be read is yielded as a `Broken` record with its line, never skipped.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import zlib
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Final

from prefloop.errors import DataError

COMPRESSIONS: Final = (".gz", ".zst")
CONTAINERS: Final = (".jsonl", ".ndjson", ".json", ".csv", ".tsv", ".parquet", ".txt")
_LONGEST_LINE: Final = 64 << 20
_CHUNK: Final = 1 << 20
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
        DataError: the file is missing, a folder, empty, no text at all, or of an unknown kind.
    """
    if not path.is_file():
        raise DataError(f"{path} is {'a folder' if path.is_dir() else 'missing'}", "name an existing file")
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


@contextmanager
def _opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by what they are, not by what the name says."""
    with open(path, "rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(raw) as handle:
                yield handle  # type: ignore[misc]
        elif magic == b"\x28\xb5\x2f\xfd":
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                yield io.BufferedReader(stream, _CHUNK)
        elif magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path} is UTF-16 text", "convert it to UTF-8, e.g. iconv -f UTF-16 -t UTF-8")
        elif path.suffix in COMPRESSIONS:
            raise DataError(f"{path} is not compressed, though its name says so", "rename or compress it")
        else:
            yield raw


def _damage(error: Exception) -> str | None:
    """Words for an error of a damaged compressed file; None if it is something else."""
    if isinstance(error, EOFError):
        return "the compressed file is truncated"
    if isinstance(error, (gzip.BadGzipFile, zlib.error)) or type(error).__name__ == "ZstdError":
        return f"the compressed file is damaged ({error})"
    return None


def _lines(path: Path) -> Iterator[Record]:
    """Yields each line as bytes; damage and over-long lines as `Broken`."""
    number = 0
    with _opened(path) as handle:
        while True:
            number += 1
            try:
                line = handle.readline(_LONGEST_LINE)
            except Exception as error:
                reason = _damage(error)
                if reason is None:
                    raise
                yield Record(number, Broken(f"{reason}: nothing can be read from here on", ""))
                return
            if not line:
                return
            if len(line) >= _LONGEST_LINE and not line.endswith(b"\n"):
                while (rest := handle.readline(_LONGEST_LINE)) and not rest.endswith(b"\n"):
                    pass
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
    for record in _text_lines(path):
        if isinstance(record.value, Broken):
            yield record
        elif record.value.strip():
            try:
                yield Record(record.line, json.loads(record.value))
            except (json.JSONDecodeError, RecursionError) as error:
                reason = (
                    f"no JSON ({error})" if isinstance(error, RecursionError) else f"no JSON ({error.msg})"
                )
                yield Record(record.line, Broken(reason, _excerpt(record.value)))


def _is_lines(path: Path) -> bool:
    """True unless the first character opens a JSON array."""
    with _opened(path) as handle:
        try:
            return not handle.read(256).decode("utf-8", "replace").lstrip("\ufeff \t\r\n").startswith("[")
        except Exception as error:
            if _damage(error) is None:
                raise
            return True


def _array(path: Path) -> Iterator[Record]:
    """Elements of one top-level array, decoded one by one from a moving window."""
    decoder = json.JSONDecoder()
    window, number, opened = "", 0, False
    with _opened(path) as handle:
        text = io.TextIOWrapper(handle, encoding="utf-8-sig", errors="surrogateescape")
        while True:
            try:
                chunk = text.read(_CHUNK)
            except Exception as error:
                reason = _damage(error)
                if reason is None:
                    raise
                yield Record(number + 1, Broken(f"{reason}: nothing can be read from here on", ""))
                return
            window += chunk
            while True:
                window = window.lstrip(" \t\r\n," if opened else " \t\r\n")
                if not opened and window:
                    window, opened = window[1:], True
                    continue
                if not window or window.startswith("]"):
                    break
                try:
                    value, end = decoder.raw_decode(window)
                except json.JSONDecodeError as error:
                    if chunk and len(window) < _LONGEST_LINE:
                        break
                    reason = f"no JSON ({error.msg}): nothing can be read from here on"
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
    except (pa.ArrowInvalid, OSError) as error:
        raise DataError(f"{path} is no Parquet file: {error}", "name a whole Parquet file") from error
    number = 0
    with file:
        for batch in file.iter_batches(batch_size=1024):
            for value in batch.to_pylist():
                number += 1
                yield Record(number, value)


def _whole(path: Path) -> Iterator[Record]:
    """A plain text file as one record, `{"text": ...}`; a line that is no UTF-8 is a record of its own."""
    parts: list[str] = []
    for record in _text_lines(path):
        if isinstance(record.value, Broken):
            yield record
        else:
            parts.append(record.value)
    yield Record(1, {"text": "".join(parts)})
