"""What past runs of a stage took: .prefloop/history.jsonl, one line a run."""

from __future__ import annotations

import json
import statistics
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.settings import STATE
from prefloop.errors import DataError
from prefloop.files import read_json
from tasks.support.costs import COSTS, cost_of
from tasks.support.workspace import slug

RECENT = 5


def remember(root: Path, stage: str, seconds: float, pipeline: str = "") -> None:
    """Adds one finished run of `stage`, with what its record says of its cost; restored and skipped ones are
    not runs.

    Args:
        seconds: wall time, DVC's own included.
        pipeline: id of the pipeline run: a record of another one is not this run's.
    """
    path = root / STATE / "history.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    record = _record(root, stage)
    line = {
        "stage": stage,
        "seconds": round(seconds, 1),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
        **(cost_of(record) if record.get("pipeline") == pipeline else {}),
    }
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def past_seconds(root: Path, stage: str) -> float | None:
    """Median duration of the last runs of `stage` in this workspace (seconds); None if it never ran."""
    seconds = [float(line["seconds"]) for line in _lines(root, stage)]
    return statistics.median(seconds) if seconds else None


def past_cost(root: Path, stage: str) -> dict[str, float]:
    """Each figure's median over the last runs of `stage` that have it; of a stage that no run of ours ended,
    what the record of its outputs says. Empty where nothing is known."""
    costs = [cost_of(line) for line in _lines(root, stage)]
    known = {name: [cost[name] for cost in costs if name in cost] for name in COSTS}
    found = {name: statistics.median(values) for name, values in known.items() if values}
    return found or cost_of(_record(root, stage))


def _lines(root: Path, stage: str) -> list[dict[str, Any]]:
    """The last runs of `stage`, oldest first."""
    path = root / STATE / "history.jsonl"
    found = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line cut off by a kill; it is a record of a duration, nothing more
        if value.get("stage") == stage:
            found.append(value)
    return found[-RECENT:]


def _record(root: Path, stage: str) -> Mapping[str, Any]:
    try:
        record = read_json(root / "runs" / f"{slug(stage)}.json")
    except DataError:
        return {}
    return record if isinstance(record, dict) else {}
