"""Bringing files into a workspace: each import is a version, a folder of data/sources/ that never changes."""

from __future__ import annotations

import glob
import importlib
import json
import pkgutil
import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from itertools import takewhile
from pathlib import Path
from typing import Any, Final, TextIO

from prefloop.config.parse import nearest
from prefloop.data import importers
from prefloop.data.readers import Broken, Record, read_records
from prefloop.data.records import Row, content_id
from prefloop.data.taming import tamed
from prefloop.errors import DataError, WorkspaceError
from prefloop.files import atomic_folder, read_json, sha256_file, write_json
from prefloop.printable import printable, printable_line

Convert = Callable[[Any, Mapping[str, str]], Iterator[tuple[str, Row]]]

SOURCES: Final = Path("data/sources")
_EXCERPT: Final = 120
_VERSION: Final = re.compile(r"(\d{3,})-\w+")


@dataclass(frozen=True)
class Version:
    """One import.

    Attributes:
        name: number and format, as in "001-hh_rlhf".
        folder: where it lies.
        rows: readable rows by kind.
        invalid: records that could not be read; they are kept as rows that validation quarantines.
        empty: records that hold nothing of use, such as a tree without two ranked replies.
        created: False if equal content had been imported before, and this is that version.
    """

    name: str
    folder: Path
    rows: dict[str, int]
    invalid: int
    empty: int
    created: bool


def formats() -> dict[str, str]:
    """Name of each format, and the first sentence that describes it."""
    found = {}
    for module in pkgutil.iter_modules(importers.__path__):
        text = importlib.import_module(f"prefloop.data.importers.{module.name}").__doc__ or ""
        found[module.name.replace("_", "-")] = text.split("\n\n")[0].replace("\n", " ")
    return found


def load_format(name: str) -> tuple[str, Convert]:
    """The kind that a format's unreadable records count under, and its converter.

    Raises:
        DataError: no such format; the nearest is named.
    """
    known = [module.name for module in pkgutil.iter_modules(importers.__path__)]
    slug = name.replace("-", "_")
    if slug not in known:
        raise DataError(f"unknown format {name!r}", nearest(name, [k.replace("_", "-") for k in known]))
    module = importlib.import_module(f"prefloop.data.importers.{slug}")
    return str(module.KIND), module.convert


def convert_records(
    format: str, records: Iterable[Record], source: str, options: Mapping[str, str]
) -> Iterator[tuple[str, Row]]:
    """Yields (kind, row) for each record, with `id`, `source` and `line`; unreadable ones as `invalid` rows.

    A record that gives no row is yielded as ("empty", {}).
    """
    kind, convert = load_format(format)
    for record in records:
        where = {"source": source, "line": record.line}
        if isinstance(record.value, Broken):
            yield kind, {"invalid": record.value.reason, "raw": record.value.excerpt, **where}
            continue
        try:
            value = tamed(record.value)
        except ValueError as error:  # what it holds cannot be kept as it is
            yield kind, {"invalid": str(error), "raw": printable(repr(record.value)[:_EXCERPT]), **where}
            continue
        try:
            rows = [_identified(row) for row in convert(value, options)]
        except ValueError as error:
            yield kind, {"invalid": str(error), "raw": value, **where}
            continue
        except (TypeError, LookupError, AttributeError, ArithmeticError) as error:
            # A converter that looked for a list and met a number: the record is not of its format.
            reason = f"no record of format {format} ({type(error).__name__}: {error})"
            yield kind, {"invalid": reason, "raw": value, **where}
            continue
        for row_kind, row in rows:
            yield row_kind, {"id": row.get("id") or content_id(row), **row, **where}
        if not rows:
            yield "empty", {}


def _identified(row: tuple[str, Row]) -> tuple[str, Row]:
    """A converter's row. Raises ValueError for an id that is neither text nor number."""
    if isinstance(found := row[1].get("id"), (bool, list, dict)):
        raise ValueError(f"id must be text or a number, got {type(found).__name__}")
    return row


def import_files(
    format: str, files: Sequence[Path | str], options: Mapping[str, str] | None = None, root: Path | str = "."
) -> Version:
    """Converts files into a new version under data/sources/.

    Args:
        format: as `formats()` names them.
        files: in the order in which their rows are to stand.
        options: what the format needs to know, such as columns.
        root: the workspace.

    Returns:
        The new version; or the one that equal files with equal options had made before.

    Raises:
        DataError: a file cannot be read at all, or not one record of it; nothing is written then.
    """
    if not files:
        raise DataError("no files to import", "name at least one file")
    load_format(format)
    paths = [Path(file) for file in files]
    for path in paths:
        next(iter(read_records(path)), None)
    names = _names(paths)
    slug, options = format.replace("-", "_"), dict(options or {})
    recipe = {
        "format": slug,
        "options": options,
        "files": [{"name": n, "sha256": sha256_file(p)} for n, p in zip(names, paths, strict=True)],
    }
    known = versions(root)
    for version in known:
        if _contents(read_json(version.folder / "manifest.json")) == _contents(recipe):
            return version
    number = 1 + max((int(name.split("-")[0]) for name in version_names(root)), default=0)
    name = f"{number:03d}-{slug}"
    target = Path(root) / SOURCES / name
    with atomic_folder(target) as folder:
        counts = _write(folder, format, zip(names, paths, strict=True), options)
        invalid, empty = counts.pop("invalid", 0), counts.pop("empty", 0)
        if not counts:
            raise DataError(
                f"{', '.join(map(str, paths))}: none of {invalid + empty} records could be read as {format}"
                + _first_reason(folder),
                "is it another format? `prefloop data formats` lists them",
            )
        manifest = {"version": name, **recipe, "rows": dict(counts), "invalid": invalid, "empty": empty}
        write_json(folder / "manifest.json", manifest)
        if target.exists():
            raise WorkspaceError(f"{target} was made by another import meanwhile", "import again")
    return Version(name, target, dict(counts), invalid, empty, created=True)


def import_text(patterns: Sequence[str], root: Path | str = ".") -> list[Version]:
    """Imports the files that each pattern matches as pre-training text, one version a pattern; no match, no
    version.

    Args:
        patterns: as in `ingest.text`, relative to the workspace.
        root: the workspace.
    """
    found = []
    for pattern in patterns:
        files = matching_files(pattern, root)
        if files:
            found.append(import_files("text", files, {}, root))
    return found


def matching_files(pattern: str, root: Path | str = ".") -> list[Path]:
    """Files that a pattern of `ingest.text` matches, in order.

    Raises:
        DataError: a linked folder leads to one of them from where the pattern begins to somewhere else.
    """
    parts = (Path(root) / pattern).parts
    fixed = list(takewhile(lambda part: not glob.has_magic(part), parts[:-1]))
    start = Path(*fixed).resolve()
    files = [Path(root) / file for file in sorted(glob.glob(pattern, root_dir=root, recursive=True))]
    for file in files:
        if not file.parent.resolve().is_relative_to(start):
            raise DataError(
                f"{file}: a linked folder leads out of {start}: it is not followed",
                "copy the folder in place, or name it in ingest.text by a pattern of its own",
            )
    return files


def version_names(root: Path | str = ".") -> list[str]:
    """Names of all versions, those included whose folder is not checked out, oldest first."""
    folder = Path(root) / SOURCES
    entries = folder.iterdir() if folder.is_dir() else iter(())
    names = {entry.name.removesuffix(".dvc") for entry in entries}
    return sorted(
        (name for name in names if _VERSION.fullmatch(name)), key=lambda n: (int(n.split("-")[0]), n)
    )


def versions(root: Path | str = ".") -> list[Version]:
    """All versions, oldest first.

    Raises:
        DataError: a version is known but its folder is missing or has no manifest.
    """
    found = []
    for name in version_names(root):
        folder = Path(root) / SOURCES / name
        if not folder.is_dir():
            raise DataError(f"{folder} is not in this workspace", f"fetch it: dvc pull {SOURCES / name}.dvc")
        manifest = read_json(folder / "manifest.json")
        found.append(
            Version(name, folder, manifest["rows"], manifest["invalid"], manifest["empty"], created=False)
        )
    return found


def _contents(recipe: Mapping[str, Any]) -> tuple[Any, ...]:
    """What makes two imports equal: file names do not."""
    return recipe["format"], recipe["options"], [file["sha256"] for file in recipe["files"]]


def _names(paths: Sequence[Path]) -> list[str]:
    """Short names by which rows say where they come from: file names, with folders where those are equal."""
    repeated = {name for name, count in Counter(path.name for path in paths).items() if count > 1}
    return [
        printable_line(f"{p.absolute().parent.name}/{p.name}" if p.name in repeated else p.name)
        for p in paths
    ]


def _write(
    folder: Path, format: str, files: Iterable[tuple[str, Path]], options: Mapping[str, str]
) -> Counter[str]:
    """Writes one file a kind; counts rows by kind, with `invalid` and `empty` besides."""
    counts: Counter[str] = Counter()
    handles: dict[str, TextIO] = {}
    with ExitStack() as stack:
        for name, path in files:
            for kind, row in convert_records(format, read_records(path), name, options):
                counts["invalid" if "invalid" in row else kind] += 1
                if kind == "empty":
                    continue
                if kind not in handles:
                    handles[kind] = stack.enter_context(open(folder / f"{kind}.jsonl", "w", encoding="utf-8"))
                handles[kind].write(json.dumps(row, ensure_ascii=False) + "\n")
    return counts


def _first_reason(folder: Path) -> str:
    for file in sorted(folder.glob("*.jsonl")):
        with open(file, encoding="utf-8") as handle:
            row = json.loads(handle.readline())
        return f"; the first: {row['source']}, line {row['line']}: {row['invalid']}"
    return ""
