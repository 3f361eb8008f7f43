"""Which format a delivered file has: its folder says so, or the rows do."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from prefloop.data.importing import load_format
from prefloop.data.readers import Broken, container_of, read_records
from prefloop.errors import DataError

OPTIONS: Final = "options.json"
"""Beside the files of a format's folder: options of `prefloop data import`, as an object of texts."""
_LOOKED_AT: Final = 20


Key = tuple[str, tuple[tuple[str, str], ...], str]
"""Format and options, unless they were guessed, and the content's hash."""


@dataclass(frozen=True)
class Recipe:
    """How a file is imported.

    Attributes:
        format: as `prefloop data formats` names it.
        options: NAME -> VALUE, as `prefloop data import --option` takes them.
        guessed: nobody said the format: content that was imported as another is known.
    """

    format: str
    options: dict[str, str] = field(default_factory=dict)
    guessed: bool = False

    def key(self, digest: str) -> Key:
        """What makes two deliveries equal, for content of this hash."""
        if self.guessed:
            return "", (), digest
        return self.format.replace("-", "_"), tuple(sorted(self.options.items())), digest


def recipe_of(folder: Path, name: str, default: Recipe | None) -> Recipe:
    """How to import `folder/name`: a file in `folder/FORMAT/` as that format, a loose one as `default`, or by
    its first rows where there is none.

    Raises:
        DataError: no such format, options that cannot be read, or rows that say nothing.
    """
    first, *rest = Path(name).parts
    if not rest:
        return default or Recipe(guess(folder / name), guessed=True)
    load_format(first)
    return Recipe(first, _options(folder / first / OPTIONS))


def is_options(name: str) -> bool:
    """True for a folder's options, which are no delivery."""
    return len(Path(name).parts) == 2 and Path(name).name == OPTIONS


def guess(path: Path) -> str:
    """The format of a file by its name and its first readable row.

    Raises:
        DataError: neither says it.
    """
    container = container_of(path)
    if container in (".csv", ".tsv", ".parquet"):
        return "table"
    if container == ".txt":
        return "text"
    for number, record in enumerate(read_records(path)):
        if not isinstance(record.value, Broken):
            found = _by_keys(record.value)
            if found:
                return found
            break
        if number >= _LOOKED_AT:
            break
    raise DataError(
        f"{path.name}: its first rows do not say which format it has",
        "put it into a folder named after its format, such as incoming/ultrafeedback/ "
        "(`prefloop data formats` lists them)",
    )


def _by_keys(row: Any) -> str:
    if not isinstance(row, Mapping):
        return ""
    if "chosen" in row and "rejected" in row:
        if "prompt" in row:
            return "native" if _plain_pair(row) else "trl"
        transcript = isinstance(row["chosen"], str) and row["chosen"].lstrip().startswith(
            ("Human:", "Assistant:")
        )
        return "hh-rlhf" if transcript else "trl"
    if "messages" in row:
        return "kto" if "label" in row else "trl"
    if {"prompt", "completions"} <= row.keys() or {"prompt", "completion"} <= row.keys():
        return "native"
    return "native" if row.keys() & {"prompt", "text"} else ""


def _plain_pair(row: Mapping[str, Any]) -> bool:
    """False where a chosen conversation repeats the prompt, which format trl takes off."""
    return isinstance(row["prompt"], str) and isinstance(row["chosen"], str)


def _options(path: Path) -> dict[str, str]:
    if not path.exists():
        return {}
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise DataError(f"{path} cannot be read: {error}", "mend it, then deliver the file again") from error
    if not isinstance(values, dict) or not all(isinstance(value, str) for value in values.values()):
        raise DataError(
            f"{path} is no object of texts", 'for example: {"prompt": "question", "chosen": "better"}'
        )
    return values
