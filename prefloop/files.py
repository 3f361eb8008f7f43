"""Reading and writing files so that an output appears whole or not at all."""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

from prefloop.errors import DataError, WorkspaceError

_DVC_CACHE = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")


@contextmanager
def atomic_file(path: Path | str, mode: str = "w") -> Iterator[IO[Any]]:
    """Opens a temporary neighbour of `path` and renames it into place when the block ends well.

    Raises:
        WorkspaceError: the disk is full or the folder cannot be written; the old file is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    encoding = None if "b" in mode else "utf-8"
    handle = tempfile.NamedTemporaryFile(  # noqa: SIM115 - renamed below, after it was closed
        mode, encoding=encoding, dir=path.parent, prefix=f".{path.name}.", suffix=".tmp", delete=False
    )
    try:
        with handle:
            yield handle
            handle.flush()
            os.fsync(handle.fileno())
        os.chmod(handle.name, 0o644)
        os.replace(handle.name, path)
    except OSError as error:
        Path(handle.name).unlink(missing_ok=True)
        raise WorkspaceError(
            f"{path} could not be written: {error.strerror or error}",
            "free disk space or mend the folder's permissions, then run again; nothing was half-written",
        ) from error
    except BaseException:
        Path(handle.name).unlink(missing_ok=True)
        raise


@contextmanager
def atomic_folder(path: Path | str) -> Iterator[Path]:
    """Yields an empty temporary folder beside `path` that takes its place when the block ends well.

    Raises:
        WorkspaceError: the disk is full or the folder cannot be written; the old folder is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp"))
    try:
        yield draft
        os.chmod(draft, 0o755)
        if path.exists():
            retired = Path(tempfile.mkdtemp(dir=path.parent, prefix=f".{path.name}.", suffix=".old"))
            os.replace(path, retired / path.name)
            os.replace(draft, path)
            shutil.rmtree(retired, ignore_errors=True)
        else:
            os.replace(draft, path)
    except OSError as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise WorkspaceError(
            f"{path} could not be written: {error.strerror or error}",
            "free disk space or mend the folder's permissions, then run again; nothing was half-written",
        ) from error
    except BaseException:
        shutil.rmtree(draft, ignore_errors=True)
        raise


def write_json(path: Path | str, value: Any) -> None:
    """Writes `value` as indented JSON with sorted keys, whole or not at all."""
    with atomic_file(path) as handle:
        json.dump(value, handle, indent=2, sort_keys=True, allow_nan=False)
        handle.write("\n")


def read_json(path: Path | str) -> Any:
    """Reads one JSON value.

    Raises:
        DataError: the file is missing or no JSON.
    """
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise DataError(
            f"{path} is missing", "run the stage that writes it: prefloop plan shows which"
        ) from error
    except (ValueError, RecursionError) as error:
        raise DataError(
            f"{path} is no JSON: {error}", "restore the file, or delete it and run again"
        ) from error


def write_jsonl(path: Path | str, rows: Iterable[Mapping[str, Any]]) -> int:
    """Writes one JSON object a line, whole or not at all; returns how many."""
    count = 0
    with atomic_file(path) as handle:
        for row in rows:
            handle.write(json.dumps(row, ensure_ascii=False) + "\n")
            count += 1
    return count


def read_jsonl(path: Path | str) -> Iterator[dict[str, Any]]:
    """Yields the objects of a JSON Lines file that a stage wrote.

    Raises:
        DataError: the file is missing, or a line is no JSON object (file, line and an excerpt are named).
    """
    path = Path(path)
    if not path.exists():
        raise DataError(f"{path} is missing", "run the stage that writes it: prefloop plan shows which")
    with open(path, "rb") as handle:
        for number, line in enumerate(handle, start=1):
            if not line.strip():
                continue
            try:
                row = json.loads(line.decode("utf-8"))
            except (
                ValueError,
                RecursionError,
            ) as error:  # no UTF-8, endless digits and deep nesting are among them
                reason = error.msg if isinstance(error, json.JSONDecodeError) else error
                raise DataError(
                    f"{path}, line {number} is no JSON ({reason}): {_excerpt(line)!r}",
                    "mend or remove the line, then run again",
                ) from error
            if not isinstance(row, dict):
                raise DataError(f"{path}, line {number} is no JSON object: {_excerpt(line)!r}")
            yield row


def _excerpt(line: bytes) -> str:
    return line.strip()[:80].decode("utf-8", "replace")


def link_out(path: Path) -> Path | None:
    """Where a file that is a symbolic link leads, if that lies outside the link's own folder; else None.

    Links into a cache, under the hash of what they hold, count as inside: the hub's (snapshots/ beside
    blobs/) and DVC's (files/md5/xx/...).
    """
    if not path.is_symlink():
        return None
    target, folder = path.resolve(), path.parent.resolve()
    places = [folder, *(above.parent / "blobs" for above in folder.parents if above.name == "snapshots")]
    if any(target.is_relative_to(place) for place in places) or _DVC_CACHE.search(target.as_posix()):
        return None
    return target


def sha256_file(path: Path | str) -> str:
    """Hex SHA-256 of a file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as handle:
        while chunk := handle.read(1 << 20):
            digest.update(chunk)
    return digest.hexdigest()


def sha256_text(text: str) -> str:
    """Hex SHA-256 of a text's UTF-8 bytes."""
    return hashlib.sha256(text.encode("utf-8")).hexdigest()
