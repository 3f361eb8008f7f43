"""What each stage of a finished run took, from the records that the run itself keeps."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

import yaml

from prefloop.files import read_json
from tasks.support.workspace import slug


@dataclass(frozen=True)
class StageCost:
    """One stage (seconds).

    Attributes:
        begun: since the first stage's beginning.
        total: from its process's start to its end. work: of these, the stage's own, by its clock.
        cpu: of its work. waiting: from the end of what it reads to its beginning.
    """

    stage: str
    begun: float
    total: float
    work: float
    cpu: float
    waiting: float

    @property
    def around(self) -> float:
        """DVC, imports and start."""
        return max(self.total - self.work, 0.0)


def stage_costs(root: Path) -> list[StageCost]:
    """Every stage of the last run in `root`, in the order of their beginnings."""
    ended, totals = {}, {}
    for line in (root / ".prefloop/history.jsonl").read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        ended[run["stage"]] = datetime.fromisoformat(run["ended"]).timestamp()
        totals[run["stage"]] = float(run["seconds"])
    parents = parents_of(yaml.safe_load((root / "dvc.lock").read_text(encoding="utf-8"))["stages"])
    begun = {stage: ended[stage] - totals[stage] for stage in ended}
    first = min(begun.values())
    costs = []
    for stage, start in sorted(begun.items(), key=lambda pair: pair[1]):
        record = read_json(root / "runs" / f"{slug(stage)}.json")
        ready = max((ended[parent] for parent in parents.get(stage, ()) if parent in ended), default=first)
        costs.append(
            StageCost(
                stage,
                start - first,
                totals[stage],
                record["wall_seconds"],
                record["cpu_seconds"],
                max(start - ready, 0.0),
            )
        )
    return costs


def parents_of(locked: Mapping[str, Mapping[str, object]]) -> dict[str, set[str]]:
    """Which stages wrote what a stage reads, by dvc.lock; an input may be a folder of several outputs."""

    def paths(stage: str, key: str) -> list[str]:
        entries = locked[stage].get(key) or []
        return [str(entry["path"]) for entry in entries]  # type: ignore[attr-defined]

    written = {path: stage for stage in locked for path in paths(stage, "outs")}

    def related(read: str, out: str) -> bool:
        return read == out or out.startswith(f"{read}/") or read.startswith(f"{out}/")

    return {
        stage: {
            writer for out, writer in written.items() for read in paths(stage, "deps") if related(read, out)
        }
        for stage in locked
    }


def table(costs: Sequence[StageCost]) -> str:
    """Markdown, a line a stage and a last one with the sums."""
    lines = ["| stage | begun | total | work | CPU | DVC and start | waiting |", "| --- |" + " ---: |" * 6]
    lines += [
        f"| {c.stage} | {c.begun:.0f} | {c.total:.1f} | {c.work:.1f} | {c.cpu:.1f} | {c.around:.1f} "
        f"| {c.waiting:.0f} |"
        for c in costs
    ]
    sums = [sum(getattr(c, name) for c in costs) for name in ("total", "work", "cpu", "around", "waiting")]
    return "\n".join([*lines, f"| all | | {' | '.join(f'{value:.0f}' for value in sums)} |"])
