"""A full queue and a full store: does all of it run, once, and can it still be looked at?

    python -m benchmarks.load [--runs 200] [--workers 8] [--mlflow-runs 1000] [--only queue|dashboard]
        [--database postgresql|sqlite] [--repeats 5] [--strict] [--json FILE] [--markdown FILE]

1. A Prefect server on which infra/setup.sh ran, MLflow's server, and --workers processes of infra/worker.sh,
   each with a clone of one workspace. --runs runs of the deployment prefloop-run/pipeline are queued at once;
   most find nothing new, some have parameters of their own, and once new data come into every clone. When
   all have ended, four records are held against each other: Prefect's history of states, lines that the
   stages wrote themselves, the workspaces' histories, and MLflow's runs.
2. --mlflow-runs runs, written as the pipeline writes them, and what `prefloop` and MLflow's pages ask of
   them, through a running server; each several times.

PostgreSQL is taken where it is installed, else SQLite. --strict exits with 1 where a run was lost or done
twice, or where an answer took a second or more. A run takes seconds of processor time even where it
finds nothing new, most of them for imports: 200 runs take long on two cores.
"""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.dashboard.answers import Answers, dashboard
from benchmarks.figures_file import write_figures
from benchmarks.growth.circumstances import circumstances, in_words, load
from benchmarks.queueing.figures import QueueFigures
from benchmarks.queueing.orders import in_words as queue_in_words
from benchmarks.queueing.orders import orders
from benchmarks.queueing.run import Done, run_queue
from benchmarks.queueing.servers import (
    make_database,
    mlflow_reaches_postgres,
    postgres,
    postgres_programs,
)

MEASURED = "## As measured\n"


@dataclass(frozen=True)
class Databases:
    """Where servers keep what they know; an empty address is SQLite.

    Attributes:
        dashboard: of the MLflow server with many runs.
    """

    prefect: str = ""
    mlflow: str = ""
    dashboard: str = ""

    def __str__(self) -> str:
        kinds = {name: "PostgreSQL" if getattr(self, name) else "SQLite" for name in ("prefect", "mlflow")}
        return f"Prefect on {kinds['prefect']}, MLflow on {kinds['mlflow']}"


@contextmanager
def databases(folder: Path, wanted: str) -> Iterator[Databases]:
    """A PostgreSQL of the benchmark's own where one is installed and wanted, else SQLite."""
    programs = None if wanted == "sqlite" else postgres_programs()
    if programs is None or not shutil.which("psql"):
        if wanted == "postgresql":
            sys.exit("PostgreSQL is not installed: initdb or psql is missing")
        yield Databases()
        return
    (folder / "postgres").mkdir()
    with postgres(folder / "postgres", programs) as url:
        named = ["prefect", *(["mlflow", "dashboard"] if mlflow_reaches_postgres() else [])]
        yield Databases(**{name: make_database(url, name) for name in named})


def queue_table(found: QueueFigures) -> str:
    """Markdown of the queue's figures."""
    rows = [
        ("runs, workers", f"{found.runs}, {found.workers}"),
        ("all of them", f"{found.seconds:.0f} s, {found.a_minute:.1f} runs a minute"),
        ("wait in the queue, median and longest", f"{found.waited:.0f} s, {found.waited_longest:.0f} s"),
        ("from a worker's taking to the flow's first line, median", f"{found.started:.1f} s"),
        ("from there to the end, median: nothing new", f"{found.ran_unchanged:.1f} s"),
        ("from there to the end, median: with work", f"{found.ran_changed:.1f} s"),
        ("`prefloop run` with nothing new, alone", f"{found.alone:.1f} s (CPU {found.alone_cpu:.1f} s)"),
        ("processor time of workers and runs, a run", f"{found.cpu:.1f} s"),
        ("of it more than `prefloop run` with nothing new", f"{found.added_cpu:.1f} s"),
        ("most memory of Prefect's server", f"{found.server_mib:.0f} MiB"),
    ]
    return "\n".join(["| | |", "| --- | ---: |", *(f"| {name} | {value} |" for name, value in rows)])


def verdict(done: Done) -> str:
    """What the records say together."""
    if not done.wrong:
        counts = ", ".join(f"{number} {what}" for what, number in done.counts.items())
        return f"None lost, none run twice, by all four records: {counts}."
    return "\n".join([f"{len(done.wrong)} things are wrong:", *(f"- {line}" for line in done.wrong)])


def page(begun: dict[str, Any], kinds: str, done: Done | None, answers: Answers | None) -> str:
    """Markdown of what was measured."""
    parts = [f"{in_words({**begun, 'load_after': load()})} {kinds}."]
    if done:
        parts += [f"### The queue\n\n{queue_in_words(done.queue)}.", queue_table(done.figures), verdict(done)]
    if answers:
        parts += [f"### {answers.runs} runs in MLflow\n\n{answers.table()}", answers.verdict()]
    return "\n\n".join(parts)


def write_page(path: Path, text: str) -> None:
    """Puts what was measured in place of the page's last section.

    Raises:
        ValueError: the page has no such section.
    """
    before, heading, _ = path.read_text(encoding="utf-8").partition(MEASURED)
    if not heading:
        raise ValueError(f"{path} has no section {MEASURED.strip()!r}")
    path.write_text(f"{before}{heading}\n{text}\n", encoding="utf-8")


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--runs", type=int, default=200, help="how many are queued")
    parser.add_argument("--workers", type=int, default=8)
    parser.add_argument("--mlflow-runs", type=int, default=1000)
    parser.add_argument("--database", choices=["postgresql", "sqlite"], help="which is there, without")
    parser.add_argument("--only", choices=["queue", "dashboard"])
    parser.add_argument("--repeats", type=int, default=5, help="how often each question is asked")
    parser.add_argument("--strict", action="store_true", help="exit with 1 where something is wrong or slow")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--markdown", type=Path, help="a page whose last section becomes what was measured")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGTERM, lambda number, _: sys.exit(128 + number))  # servers and workers end, too
    begun, done, answers = circumstances(), None, None
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="prefloop-load-")))
        used = stack.enter_context(databases(folder, options.database or ""))
        if options.only != "dashboard":
            done = run_queue(folder, orders(options.runs), options.workers, used.prefect, used.mlflow)
        if options.only != "queue":
            answers = dashboard(folder, options.mlflow_runs, options.repeats, used.dashboard)
    text = page(begun, str(used), done, answers)
    print(text)
    if options.markdown:
        write_page(options.markdown, text)
    if options.json:
        values = {"begun": begun, "databases": str(used), "queue": done, "answers": answers}
        write_figures(options.json, values)
    wrong = bool((done and done.wrong) or (answers and answers.slow))
    return 1 if options.strict and wrong else 0


if __name__ == "__main__":
    sys.exit(main())
