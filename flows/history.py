"""What past runs of a stage took: .prefloop/history.jsonl, one line a run."""

from __future__ import annotations

import json
import statistics
from datetime import UTC, datetime
from pathlib import Path

from flows.settings import STATE

RECENT = 5


def remember(root: Path, stage: str, seconds: float) -> None:
    """Adds one finished run of `stage`; restored and skipped ones are not runs."""
    path = root / STATE / "history.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    line = {
        "stage": stage,
        "seconds": round(seconds, 1),
        "ended": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with open(path, "a", encoding="utf-8") as handle:
        handle.write(json.dumps(line) + "\n")


def past_seconds(root: Path, stage: str) -> float | None:
    """Median duration of the last runs of `stage` in this workspace (seconds); None if it never ran."""
    path = root / STATE / "history.jsonl"
    if not path.exists():
        return None
    seconds = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            value = json.loads(line)
        except json.JSONDecodeError:
            continue  # a line cut off by a kill; it is a record of a duration, nothing more
        if value.get("stage") == stage:
            seconds.append(float(value["seconds"]))
    return statistics.median(seconds[-RECENT:]) if seconds else None
