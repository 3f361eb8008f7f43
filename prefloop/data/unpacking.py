"""A file's bytes, decompressed where they are compressed, and no more of them than an honest file holds."""

from __future__ import annotations

import gzip
import io
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Final

from prefloop.errors import DataError

COMPRESSIONS: Final = (".gz", ".zst")
CHUNK: Final = 1 << 20
_UNPACKED_BYTES: Final = 256 << 20
_UNPACKED_TIMES: Final = 200
"""What a compressed file may unpack to: so many bytes, or so many times its size where that is more. Text
packs to a tenth, tables of repeated text to a fiftieth; a bomb to a thousandth and less."""


class Bomb(Exception):
    """A file that unpacks to far more than files of its size do."""

    def __init__(self, packed: int) -> None:
        super().__init__(
            f"the file unpacks to more than {allowed_bytes(packed)} bytes, though it has {packed}: it was "
            "not read further; if it is meant to, unpack it first"
        )


def allowed_bytes(packed: int) -> int:
    """How many bytes a compressed file of so many may hold."""
    return max(_UNPACKED_BYTES, _UNPACKED_TIMES * packed)


class _Unpacked(io.RawIOBase):
    """What a decompressor gives, counted; raises `Bomb` where that is too much."""

    def __init__(self, stream: Any, packed: int) -> None:
        self._stream, self._packed = stream, packed
        self._left = allowed_bytes(packed)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = int(self._stream.readinto1(buffer))  # one piece: what came before damage is not lost with it
        self._left -= count
        if self._left < 0:
            raise Bomb(self._packed)
        return count


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The file's bytes, decompressed by what they are, not by what the name says."""
    size = path.stat().st_size
    with open(path, "rb") as raw:
        magic = raw.read(4)
        raw.seek(0)
        if magic[:2] == b"\x1f\x8b":
            with gzip.open(raw) as handle:
                yield io.BufferedReader(_Unpacked(handle, size), CHUNK)
        elif magic == b"\x28\xb5\x2f\xfd":
            import zstandard

            with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
                yield io.BufferedReader(_Unpacked(stream, size), CHUNK)
        elif magic[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise DataError(f"{path} is UTF-16 text", "convert it to UTF-8, e.g. iconv -f UTF-16 -t UTF-8")
        elif path.suffix in COMPRESSIONS:
            raise DataError(f"{path} is not compressed, though its name says so", "rename or compress it")
        else:
            yield raw


def damage(error: Exception) -> str | None:
    """Words for an error of a damaged compressed file; None if it is something else."""
    if isinstance(error, Bomb):
        return str(error)
    if isinstance(error, EOFError):
        return "the compressed file is truncated"
    if isinstance(error, (gzip.BadGzipFile, zlib.error)) or type(error).__name__ == "ZstdError":
        return f"the compressed file is damaged ({error})"
    return None
