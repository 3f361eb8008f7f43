"""Writing at most so many rows of a kind, chosen by a hash and not by where they stand."""

from __future__ import annotations

import json
import os
import tempfile
from array import array
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any

import numpy as np


class Selection:
    """Rows on disk with a 64-bit key each; those with the lowest keys are kept.

    Equal keys (one prompt) are kept or left out together, so that fewer than `limit` rows may be kept.
    """

    def __init__(self, handle: IO[str], limit: int) -> None:
        self._handle, self._limit = handle, limit
        self._keys = array("Q")

    def add(self, row: Mapping[str, Any], key: int) -> None:
        """Appends a row."""
        self._handle.write(json.dumps(row, ensure_ascii=False) + "\n")
        self._keys.append(key)

    def __len__(self) -> int:
        return len(self._keys)

    def write(self, target: IO[str]) -> int:
        """Copies the kept rows to `target` in the order in which they came; returns how many."""
        self._handle.flush()
        self._handle.seek(0)
        keys = np.frombuffer(self._keys, dtype=np.uint64) if self._keys else np.empty(0, np.uint64)
        kept = np.ones(len(keys), bool)
        if self._limit and len(keys) > self._limit:
            first_out = np.partition(keys, self._limit)[self._limit]
            kept = keys < first_out
        for line, keep in zip(self._handle, kept, strict=True):
            if keep:
                target.write(line)
        return int(kept.sum())


@contextmanager
def selection(folder: Path, limit: int) -> Iterator[Selection]:
    """A selection of at most `limit` rows (0: all of them), its rows in a temporary file of `folder`."""
    descriptor, name = tempfile.mkstemp(dir=folder, suffix=".jsonl")
    os.close(descriptor)
    try:
        with open(name, "r+", encoding="utf-8") as handle:
            yield Selection(handle, limit)
    finally:
        Path(name).unlink(missing_ok=True)
