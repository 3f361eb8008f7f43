"""Import and validation of preference data against the number of rows; each step in a process of its own.

    python -m benchmarks.growth.rows STEP FOLDER      one step, as `python -m benchmarks.scaling rows` runs it

Half of the prompts come from a template and differ in one word, a tenth of the rows are dirty, and one in a
thousand is a near-duplicate of an earlier row.
"""

from __future__ import annotations

import gzip
import json
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from benchmarks.growth.curve import Curve, Point
from prefloop.config.ingest import IngestConfig
from prefloop.config.validate import ValidateConfig
from prefloop.data.assembling import assemble
from prefloop.data.importing import import_files, versions
from prefloop.data.sources import from_version
from prefloop.data.validation.checking import check_kind
from prefloop.data.validation.leaks import find_leaks
from prefloop.errors import DataError
from tasks.support.memory import peak_rss_bytes

ROOT = Path(__file__).resolve().parents[2]
WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "lk", "m")]
VALIDATED = ("demonstrations", "preferences", "prompts")
STEPS = ("import", "ingest", *VALIDATED, "leaks")
BEFORE_LEAKS = ("judge", "unpaired", "evaluation")
WHY = {"leaks": "linear, and sorting of keys"}
SEED = 0


def generated(rows: int, seed: int) -> Iterator[dict[str, str]]:
    """Pairs with prompts of 15 to 60 words and completions of 20 to 100."""
    draw = random.Random(seed)
    recent: list[dict[str, str]] = []
    for number in range(rows):
        if number % 1000 == 999:
            row = {**recent[number // 1000 % len(recent)]}
            row["prompt"] += " now"
            yield row
            continue
        if number % 2:
            prompt = (
                f"What is the length of item {number} when it is measured on a warm day by a careful person?"
            )
        else:
            prompt = " ".join(draw.choices(WORDS, k=draw.randint(15, 60)))
        chosen, rejected = (" ".join(draw.choices(WORDS, k=draw.randint(20, 100))) for _ in range(2))
        if number % 10 == 3:
            rejected = (chosen, "", "caf\ufffd " + rejected)[number % 3]
        row = {"prompt": prompt, "chosen": chosen, "rejected": rejected}
        if len(recent) < 100:
            recent.append(row)
        yield row


def write_pairs(rows: int, folder: Path) -> float:
    """Writes FOLDER/pairs.jsonl.gz; returns the mean size of a row before compression (bytes)."""
    size = 0
    with gzip.open(folder / "pairs.jsonl.gz", "wt", compresslevel=1) as handle:
        for row in generated(rows, SEED):
            size += handle.write(json.dumps(row) + "\n")
    return size / rows


def validate(kind: str, root: Path) -> int:
    """Validates one kind; returns how many rows came in."""
    out, aside = root / f"validated/{kind}.jsonl", root / f"quarantine/{kind}.jsonl"
    raw = root / f"raw/{kind}.jsonl"
    return check_kind(kind, raw, out, aside, ValidateConfig(), root / "scratch").rows_in


def load_expectations(kind: str, root: Path) -> None:
    """Validates one row apart: what checking costs once, seconds of imports, is no matter of rows."""
    with tempfile.TemporaryDirectory(dir=root) as name:
        raw = Path(name) / "raw" / f"{kind}.jsonl"
        raw.parent.mkdir()
        with open(root / f"raw/{kind}.jsonl", encoding="utf-8") as handle:
            raw.write_text(handle.readline(), encoding="utf-8")
        with suppress(DataError):  # one row is too few
            validate(kind, Path(name))


def ingest(root: Path) -> int:
    """Assembles what was imported; returns how many rows came in."""
    assemble(
        [from_version(version) for version in versions(root)], IngestConfig(source="files"), root / "raw"
    )
    return sum(versions(root)[0].rows.values())


def measure(step: str, root: Path) -> dict[str, Any]:
    """Runs one step in this process: rows, seconds of wall and processor time, peak memory (MiB)."""
    works: dict[str, Callable[[], int]] = {
        "import": lambda: sum(import_files("trl", [root / "pairs.jsonl.gz"], {}, root).rows.values()),
        "ingest": lambda: ingest(root),
        "leaks": lambda: sum(
            find_leaks(root / "validated", ValidateConfig(), root / "scratch").prompts.values()
        ),
        **{kind: lambda kind=kind: validate(kind, root) for kind in VALIDATED},
    }
    if step in VALIDATED:
        load_expectations(step, root)
    elif step == "leaks":
        for kind in BEFORE_LEAKS:
            validate(kind, root)
    wall, cpu = time.perf_counter(), time.process_time()
    rows = works[step]()
    return {
        "rows": rows,
        "cpu": time.process_time() - cpu,
        "wall": time.perf_counter() - wall,
        "peak": peak_rss_bytes() / 2**20,
    }


def curves(sizes: Sequence[int], say: Callable[[str], None]) -> list[Curve]:
    """A curve a step; the steps of one size run in order, on what those before them wrote."""
    points: dict[str, list[Point]] = {step: [] for step in STEPS}
    width = 0.0
    for size in sizes:
        with tempfile.TemporaryDirectory(prefix="prefloop-rows-") as name:
            width = write_pairs(size, Path(name))
            for step in STEPS:
                found = in_process_of_its_own(step, name)
                point = Point(found["rows"], found["cpu"], found["wall"], found["rows"], found["peak"])
                points[step].append(point)
                cost = f"{point.cpu:.1f} s of CPU, {point.wall:.1f} s, {point.peak:.0f} MiB"
                say(f"{step}, {size:,} rows: {cost}")
    return [
        Curve(
            step if step not in VALIDATED else f"validate {step}",
            "prompts" if step == "leaks" else "rows",
            WHY.get(step, "linear"),
            points[step],
            width,
        )
        for step in STEPS
    ]


def in_process_of_its_own(step: str, folder: str) -> dict[str, Any]:
    """What `measure` found; exits where the step fails."""
    command = [sys.executable, "-m", "benchmarks.growth.rows", step, folder]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{step} failed:\n{done.stderr[-3000:]}")
    return dict(json.loads(done.stdout.splitlines()[-1]))


if __name__ == "__main__":
    print(json.dumps(measure(sys.argv[1], Path(sys.argv[2]))))
