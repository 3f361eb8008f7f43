"""Imports and validates a generated preference set; prints rows a second and peak memory.

    python -m benchmarks.data_scale --rows 1000000

Half of the prompts come from a template and differ in one word, a tenth of the rows are dirty, and one in a
thousand is a near-duplicate of an earlier row.
"""

from __future__ import annotations

import argparse
import gzip
import json
import random
import resource
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from prefloop.config.ingest import IngestConfig
from prefloop.config.validate import ValidateConfig
from prefloop.data.assembling import assemble
from prefloop.data.importing import import_files
from prefloop.data.sources import from_version
from prefloop.data.validation.checking import check_kind
from prefloop.data.validation.leaks import find_leaks

WORDS = [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in "aeiou" for c in ("n", "r", "st", "lk", "m")]


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


def peak_mib() -> float:
    """Largest resident memory of this process so far (MiB)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1 << 20 if sys.platform == "darwin" else 1 << 10)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        with gzip.open(root / "pairs.jsonl.gz", "wt", compresslevel=1) as handle:
            for row in generated(arguments.rows, arguments.seed):
                handle.write(json.dumps(row) + "\n")
        print(f"{'step':<16}{'seconds':>9}{'CPU s':>9}{'rows / CPU s':>14}{'peak MiB':>10}")
        raw = root / "raw"
        config = ValidateConfig()

        def step(what: str, rows: int, wall: float, cpu: float) -> None:
            seconds = time.perf_counter() - wall
            used = time.process_time() - cpu
            print(f"{what:<16}{seconds:>9.1f}{used:>9.1f}{rows / used:>14.0f}{peak_mib():>10.0f}", flush=True)

        clock = time.perf_counter(), time.process_time()
        version = import_files("trl", [root / "pairs.jsonl.gz"], {}, root)
        step("import", arguments.rows, *clock)
        clock = time.perf_counter(), time.process_time()
        counts = assemble([from_version(version)], IngestConfig(source="files"), raw)["rows"]
        step("ingest", arguments.rows, *clock)
        for kind in ("demonstrations", "preferences", "judge", "unpaired", "prompts", "evaluation"):
            clock = time.perf_counter(), time.process_time()
            out, aside = root / f"validated/{kind}.jsonl", root / f"quarantine/{kind}.jsonl"
            report = check_kind(kind, raw / f"{kind}.jsonl", out, aside, config, root / "scratch")
            if counts[kind]:
                step(kind, counts[kind], *clock)
                near = next(f.rows for f in report.findings if f.name == "no_near_duplicate")
                print(f"{'':<16}{report.quarantined} quarantined {report.reasons}, {near} near-duplicates")
        clock = time.perf_counter(), time.process_time()
        leaks = find_leaks(root / "validated", config, root / "scratch")
        step("leaks", sum(leaks.prompts.values()), *clock)


if __name__ == "__main__":
    main()
