"""The learning curve of a stage: rows that survive a kill, and the CSV made of them."""

from __future__ import annotations

import csv
import json
import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from prefloop.files import atomic_file

Row = dict[str, float]


class Curve:
    """Metrics by step, appended to a file in scratch as training goes.

    A row reaches the file before the checkpoint of its step is made, so a run that resumes there finds every
    row up to it; rows beyond are cut, and the file ends with the bytes of a run that nothing disturbed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._fresh = True

    def append(self, step: int, values: Mapping[str, float]) -> None:
        """Adds the metrics of `step`; a first row without `cut` before it starts the curve anew."""
        if self._fresh:
            self.cut(0)
        row = {"step": step, **{name: value for name, value in values.items() if math.isfinite(value)}}
        with open(self.path, "a", encoding="utf-8") as handle:
            handle.write(json.dumps(row) + "\n")

    def cut(self, step: int) -> None:
        """Forgets every row after `step`, and a line that a kill left torn."""
        kept = [row for row in self.rows() if row["step"] <= step]
        with atomic_file(self.path) as handle:
            handle.writelines(json.dumps(row) + "\n" for row in kept)
        self._fresh = False

    def sync(self) -> None:
        """Forces the rows to disk, so that a checkpoint never outlives its rows."""
        if self.path.exists():
            with open(self.path, "rb") as handle:
                os.fsync(handle.fileno())

    def rows(self) -> list[Row]:
        """Rows in order of their steps' first appearance, those of one step merged."""
        if not self.path.exists():
            return []
        merged: dict[float, Row] = {}
        for line in self.path.read_text(encoding="utf-8").splitlines():
            try:
                row = json.loads(line)
            except json.JSONDecodeError:
                continue
            merged.setdefault(row["step"], {}).update(row)
        return list(merged.values())


def write_csv(path: Path | str, rows: Sequence[Row]) -> None:
    """Writes rows under a header of every name in order of appearance; a metric that a row lacks stays
    empty."""
    names = list(dict.fromkeys(["step", *(name for row in rows for name in row)]))
    with atomic_file(path) as handle:
        writer = csv.DictWriter(handle, names, restval="", lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
