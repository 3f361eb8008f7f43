"""Many faults, one after another: does every run end as if nothing had happened?

    python -m tests.soak [--faults 50] [--real 6] [--pool 8] [--seed 0] [--only N ...] [--folder DIR]
        [--json FILE]

Starts PostgreSQL, S3-compatible storage, a Prefect server and an MLflow server, makes three workspaces (a
light pipeline, the real dvc.yaml at tiny sizes, the light one over two workers), and lets faults strike runs
in them, a line each: what, when, how the run ended. Prints a table; exits with 1 where something was lost,
differs, or was left running.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import tempfile
from collections import Counter
from collections.abc import Collection, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from benchmarks.growth.circumstances import circumstances, in_words
from tests.soak.pipelines import DISTRIBUTED, LIGHT, REAL, Pipeline
from tests.soak.services import servers
from tests.soak.soak import Result, Soak, available, left_out, schedule
from tests.soak.world import world


def say(text: str) -> None:
    print(text, flush=True)


def table(results: Sequence[Result]) -> str:
    """Markdown, a line a fault."""
    lines = [
        "| | pipeline | fault | struck | finished by | s | |",
        "| --: | --- | --- | --- | --- | --: | --- |",
    ]
    for one in results:
        well = "as undisturbed" + (", metrics by the next run" if one.late else "")
        verdict = well if one.well else "; ".join(one.problems)
        lines.append(
            f"| {one.number} | {one.pipeline} | {one.what or one.fault} | {one.moment} | {one.how} "
            f"| {one.seconds:.0f} | {verdict} |"
        )
    return "\n".join(lines)


def soak(
    folder: Path, shares: Sequence[tuple[Pipeline, int]], seed: int, only: Collection[int] = ()
) -> list[Result]:
    """Strikes in one pipeline after the other.

    Args:
        shares: how many faults each gets.
        only: numbers of the faults that strike; empty takes all.
    """
    results: list[Result] = []
    begin = 1
    with ExitStack() as stack:
        around = stack.enter_context(servers(folder / "servers"))
        say(f"servers: {', '.join(around.services)}")
        for pipeline, count in shares:
            wanted, begin = range(begin, begin + count), begin + count
            if not count or (only and not set(only) & set(wanted)):
                continue
            with world(folder / pipeline.name, pipeline, around) as made:
                made_soak = Soak(made, seed, say)
                has = available(made)
                for line in left_out(has, pipeline.kinds):
                    say(f"     {pipeline.name:5}  left out: {line}")
                made_soak.prepare()
                for number, fault in zip(wanted, schedule(count, seed, has, pipeline.kinds), strict=True):
                    if not only or number in only:
                        results.append(made_soak.strike(number, fault))
                        say(str(results[-1]))
    return results


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--faults", type=int, default=50, help="how many in all")
    parser.add_argument("--real", type=int, default=6, help="of these, in the real pipeline")
    parser.add_argument("--pool", type=int, default=8, help="of these, in the one over two workers")
    parser.add_argument("--seed", type=int, default=0, help="which faults, and when")
    parser.add_argument(
        "--only", type=int, nargs="+", default=[], metavar="N", help="of all these, only the ones numbered"
    )
    parser.add_argument(
        "--folder", type=Path, help="where to work and what to keep; a temporary folder without"
    )
    parser.add_argument("--json", type=Path)
    options = parser.parse_args(arguments)
    light = options.faults - options.real - options.pool
    if light < 0:
        parser.error("--real and --pool are parts of --faults")
    signal.signal(signal.SIGTERM, lambda number, _frame: sys.exit(128 + number))  # servers end with it
    begun = circumstances()
    say(f"{in_words(begun)}\nseed {options.seed}")
    with tempfile.TemporaryDirectory(prefix="prefloop-soak-", ignore_cleanup_errors=True) as temporary:
        folder = (options.folder or Path(temporary)).absolute()
        shares = [(LIGHT, light), (REAL, options.real), (DISTRIBUTED, options.pool)]
        results = soak(folder, shares, options.seed, options.only)
    failed = [one for one in results if not one.well]
    ways = Counter(one.how for one in results if one.well)
    say(f"\n{table(results)}\n\n{len(results)} faults, {len(failed)} failed; {dict(ways)}")
    if options.json:
        values = {**begun, "seed": options.seed, "faults": [asdict(one) for one in results]}
        options.json.write_text(json.dumps(values, indent=2), encoding="utf-8")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
