"""What the pipeline adds to its stages, and how long all of it takes.

    python -m benchmarks.pipeline [--stages 100] [--repeats 3] [--whole] [--strict] [--json FILE]

1. A chain of N stages that do nothing (1, and --stages): `prefloop run` beside bare `dvc repro`, in turn.
   From one stage's end to the next one's, less the stage's own command run alone, is what Prefect, DVC and
   MLflow add to it.
2. A run that has nothing to do: for both chains, and for the real dvc.yaml with stand-ins for its outputs.
   That no server starts for it is checked.
3. With --whole: the real pipeline in a fresh clone, each stage's time from the run's own records, and the run
   after it, which changes nothing.

Medians; each target is said to be met or missed. --strict exits with 1 where one is missed. 100 stages take
some minutes a turn; --stages 10 is quicker.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.figures_file import write_figures
from benchmarks.growth.circumstances import circumstances, in_words, load
from benchmarks.overhead.idle_pipeline import make_chain, make_finished
from benchmarks.overhead.records import stage_costs, table
from benchmarks.overhead.turns import Cost, command_alone, forced, median, timed, unchanged
from benchmarks.workspaces import clone_project

A_STAGE, NO_CHANGE, WHOLE = 1.5, 5.0, 300.0


@dataclass(frozen=True)
class Target:
    """What a figure may be at most, and what it is (seconds)."""

    what: str
    limit: float
    wall: float
    cpu: float

    @property
    def met(self) -> bool:
        return self.wall <= self.limit

    def __str__(self) -> str:
        verdict = "met   " if self.met else "MISSED"
        return f"{verdict}  {self.what}: {self.wall:.2f} s (CPU {self.cpu:.2f} s), target {self.limit:g} s"


def added(one: Cost, many: Cost, spacing: float, stages: int, command: Cost) -> Cost:
    """What surrounds each stage after the first, without the stage's own command.

    Args:
        one, many: runs of one stage and of `stages`. spacing: from a stage's end to the next one's (seconds).
    """
    return Cost(spacing - command.wall, (many.cpu - one.cpu) / (stages - 1) - command.cpu)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def chains(scratch: Path, stages: int, repeats: int) -> tuple[dict[str, Any], list[Target]]:
    """Overhead of a stage, and runs without work, of a chain of one and of many."""
    found: dict[str, Any] = {}
    spacing: dict[str, float] = {}
    for count in (1, stages):
        folder = scratch / f"chain-{count}"
        make_chain(folder, count)
        say(f"{count} idle stages")
        timed(folder, ("flows.cli.main", "run"))  # makes databases and caches, once a workspace
        found[f"run of {count}"], spacing = forced(folder, count, repeats)
        found[f"no change of {count}"] = unchanged(folder, repeats)
    command = found["command alone"] = command_alone(scratch / "chain-1", repeats)
    extra = {
        way: added(found["run of 1"][way], found[f"run of {stages}"][way], spacing[way], stages, command)
        for way in ("prefloop", "dvc")
    }
    found["added to a stage"] = extra
    ours = extra["prefloop"]
    targets = [Target("Prefect, DVC and MLflow a stage", A_STAGE, ours.wall, ours.cpu)]
    for count in (1, stages):
        cost = found[f"no change of {count}"]["prefloop"]
        targets.append(Target(f"run without work, {count} idle stages", NO_CHANGE, cost.wall, cost.cpu))
    return found, targets


def finished(scratch: Path, repeats: int) -> tuple[dict[str, Any], list[Target]]:
    """A run without work of the real pipeline."""
    say("the real dvc.yaml, up to date")
    make_finished(scratch / "finished")
    found = unchanged(scratch / "finished", repeats)
    cost = found["prefloop"]
    return {"no change of dvc.yaml": found}, [
        Target("run without work, dvc.yaml", NO_CHANGE, cost.wall, cost.cpu)
    ]


def whole(scratch: Path, repeats: int) -> tuple[dict[str, Any], list[Target]]:
    """The real pipeline from nothing, and the run after it."""
    say("the whole pipeline in a fresh clone")
    folder = scratch / "whole"
    folder.mkdir()
    clone_project(folder)
    cost = timed(folder, ("flows.cli.main", "run"))
    costs = stage_costs(folder)
    print(f"\n{table(costs)}\n")
    after = median([timed(folder, ("flows.cli.main", "run")) for _ in range(repeats)])
    return {"whole": cost, "stages": costs, "no change after it": after}, [
        Target("the whole pipeline", WHOLE, cost.wall, cost.cpu),
        Target("the run after it", NO_CHANGE, after.wall, after.cpu),
    ]


def costs_table(found: Mapping[str, Any]) -> str:
    """Markdown of what was measured both ways."""
    lines = ["| seconds | prefloop | CPU | bare DVC | CPU |", "| --- | ---: | ---: | ---: | ---: |"]
    for what, costs in found.items():
        if isinstance(costs, Cost):
            lines.append(f"| {what} | {costs.wall:.2f} | {costs.cpu:.2f} | | |")
        elif isinstance(costs, Mapping):
            ours, bare = costs["prefloop"], costs["dvc"]
            lines.append(f"| {what} | {ours.wall:.2f} | {ours.cpu:.2f} | {bare.wall:.2f} | {bare.cpu:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--stages", type=int, default=100, help="idle stages of the long chain")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--whole", action="store_true", help="run the real pipeline, too")
    parser.add_argument("--only-whole", action="store_true", help="run the real pipeline alone")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where a target is missed")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    if options.stages < 2:
        parser.error("--stages must be at least 2: the difference to one is measured")
    begun, found, targets = circumstances(), dict[str, Any](), list[Target]()
    with tempfile.TemporaryDirectory(prefix="prefloop-pipeline-") as name:
        parts = [] if options.only_whole else [lambda s, r: chains(s, options.stages, r), finished]
        parts += [whole] if options.whole or options.only_whole else []
        for part in parts:
            figures, wanted = part(Path(name), options.repeats)
            found |= figures
            targets += wanted
    print(f"{in_words(begun)}\n\n{costs_table(found)}\n")
    for target in targets:
        print(target)
    if options.json:
        values = {**begun, "load_after": load(), "targets": [{**asdict(t), "met": t.met} for t in targets]}
        write_figures(options.json, {**values, "figures": found})
    return 1 if options.strict and not all(target.met for target in targets) else 0


if __name__ == "__main__":
    sys.exit(main())
