"""`python -m tasks.fitted`: which rows trainings took from their files, without training.

Reads a JSON list of `{"stage", "parameters", "files": {path: file}}` from standard input, and writes a JSON
line for each: `{"uses": {path: {use: [0-based positions]}}}`, or `{"error"}` for a training that this version
of prefloop cannot follow.
"""

from __future__ import annotations

import json
import sys
from functools import cache
from typing import Any

from prefloop.errors import PrefloopError
from prefloop.files import read_jsonl
from tasks.support.ending import ended_well
from tasks.support.fitted_rows import Row, row_uses
from tasks.support.signals import StopFlag


def answer(question: dict[str, Any]) -> dict[str, Any]:
    """Of one training, the positions of rows by file and use."""
    group, _, part = question["stage"].partition("@")

    @cache
    def rows(path: str) -> list[Row]:
        return list(read_jsonl(question["files"][path]))

    uses: dict[str, dict[str, list[int]]] = {}
    try:
        for path, place, use in row_uses(group, part, question["parameters"], rows):
            uses.setdefault(path, {}).setdefault(use, []).append(place)
    except (PrefloopError, KeyError) as error:
        said = error.message if isinstance(error, PrefloopError) else f"{error} is not here"
        return {"error": said}
    return {"uses": uses}


def main() -> None:
    """Answers every question."""
    with ended_well("fitted", StopFlag()):
        for question in json.load(sys.stdin):
            print(json.dumps(answer(question)), flush=True)


if __name__ == "__main__":
    main()
