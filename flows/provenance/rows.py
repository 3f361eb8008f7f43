"""Which rows models were fitted on, and which models have seen a row."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flows.settings import child_environment
from prefloop.data.records import content_id
from prefloop.errors import DataError, WorkspaceError
from prefloop.files import read_jsonl
from tasks.support.code import all_code
from tasks.support.lineage import DATA, Lineage, Making
from tasks.support.reads import SEEN

VALIDATED = f"{DATA}validated/"
Uses = dict[str, dict[str, list[int]]]
"""File -> what for -> 0-based positions of rows."""


@dataclass(frozen=True)
class Training:
    """The rows that one training took.

    Attributes:
        making: the stage's run.
        uses: of each file that it read rows of.
        unknown: why that cannot be said, or "".
        other_code: True where the stage's code is another one by now, which made the choice anew.
    """

    making: Making
    uses: Uses
    unknown: str = ""
    other_code: bool = False


def follow(lineage: Lineage, makings: Sequence[Making]) -> list[Training]:
    """What each training did with the rows of its files."""
    questions: list[dict[str, Any]] = []
    missing: dict[int, str] = {}
    for number, making in enumerate(makings):
        files = {path: lineage.objects.find(d, path) for path, d in making.deps.items() if _is_rows(path)}
        gone = [path for path, file in files.items() if file is None]
        if gone:
            missing[number] = f"{', '.join(gone)} as it was is not in DVC's cache"
            continue
        named = {path: str(file) for path, file in files.items()}
        questions.append({"stage": making.stage, "parameters": making.parameters, "files": named})
    answers = iter(_ask(lineage.root, questions))
    now = all_code(lineage.root) if (lineage.root / "dvc.yaml").exists() else {}
    found = []
    for number, making in enumerate(makings):
        if number in missing:
            found.append(Training(making, {}, missing[number]))
            continue
        said = next(answers)
        code = now.get(making.group)
        other = code is not None and making.code not in ("", code.fingerprint)
        found.append(Training(making, said.get("uses", {}), said.get("error", ""), other))
    return found


def fitted_rows(lineage: Lineage, making: Making) -> Iterator[dict[str, Any]]:
    """One value a row that the model, or one that it descends from, was fitted on: kind, id, file, line, use,
    and the stage that read it.

    Raises:
        DataError: a training's rows can no longer be told.
    """
    makings = [one for one in (making, *lineage.ancestors(making)) if one.model]
    for training in follow(lineage, makings):
        stage = training.making.stage
        if training.unknown:
            raise DataError(
                f"the rows that {stage} took cannot be told: {training.unknown}",
                "fetch what is missing: dvc fetch, or dvc fetch --run-cache",
            )
        for path, uses in training.uses.items():
            file = lineage.objects.find(training.making.deps[path], path)
            assert file is not None  # it was there to be followed
            use_of = {place: use for use, places in uses.items() if use in SEEN for place in places}
            for place, row in enumerate(read_jsonl(file)):
                if place in use_of:
                    yield {
                        "kind": Path(path).stem,
                        **row_id(row),
                        "file": path,
                        "line": place + 1,
                        "stage": stage,
                        "use": use_of[place],
                        **{f"from_{key}": row[key] for key in ("source", "line") if key in row},
                        **({"chosen_by": "the code of today"} if training.other_code else {}),
                    }


def row_id(row: Mapping[str, Any]) -> dict[str, str]:
    """The row's id; of one without, a hash of what it says."""
    if row.get("id") is not None:
        return {"id": str(row["id"]), "id_is": "its own"}
    return {"id": content_id(row), "id_is": "a hash of its content"}


def _is_rows(path: str) -> bool:
    return path.startswith(VALIDATED) and path.endswith(".jsonl")


def _ask(root: Path, questions: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """In a process of its own: what chooses rows is part of the trainings, which import torch."""
    if not questions:
        return []
    done = subprocess.run(
        [sys.executable, "-m", "tasks.fitted"],
        cwd=root,
        env=child_environment(),
        input=json.dumps(questions),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise WorkspaceError(f"tasks.fitted ended with {done.returncode}: {done.stderr.strip()[-1000:]}")
    return [json.loads(line) for line in done.stdout.splitlines()]
