"""Times prefloop and its peers side by side: trainings against TRL, sampling against transformers.

    python -m benchmarks.speed [METHOD ...] [--sizes 1m 7m 30m] [--lengths short long] [--rounds 3]
        [--steps N] [--threads N] [--precision fp32] [--json FILE] [--markdown FILE] [--strict]

Methods are sft, dpo, reward, kto, grpo, rloo, ppo and generate; all of them by default. docs/speed.md says
what is compared, and how TRL is tuned. Exits with 1 if a side fails or losses disagree; with --strict also if
a target is missed. A GPU, where there is one, has sizes and lengths of its own.

Every training and sampling runs in a process of its own, prefloop's too, in turn: A B C A B C.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")

from transformers.utils import logging

from benchmarks.figures_file import write_figures
from benchmarks.timing import machine, material
from benchmarks.timing.figures import Result
from benchmarks.timing.running import Asked, time_row
from benchmarks.timing.sizes import CPU_LENGTHS, CPU_SIZES, GPU_LENGTHS, GPU_SIZES, METHODS
from benchmarks.timing.table import as_json, table
from prefloop.config.compute import ComputeConfig
from prefloop.training.environment import resolve

CONVERSATIONS = 512


def main(arguments: Sequence[str] | None = None) -> int:
    environment = resolve(ComputeConfig())
    gpu = environment.device == "cuda"
    sizes, lengths = (GPU_SIZES, GPU_LENGTHS) if gpu else (CPU_SIZES, CPU_LENGTHS)
    known = (*METHODS, "generate")
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("methods", nargs="*", metavar="METHOD", help=f"{', '.join(known)}; all by default")
    parser.add_argument("--sizes", nargs="+", default=list(sizes), choices=list(sizes))
    parser.add_argument("--lengths", nargs="+", default=list(lengths), choices=list(lengths))
    parser.add_argument("--rounds", type=int, default=3, help="times that each side runs")
    parser.add_argument("--steps", type=int, default=0, help="of a training; 0 takes the size's own")
    parser.add_argument("--threads", type=int, default=environment.threads, help="of each process")
    parser.add_argument(
        "--precision", choices=("fp32", "bf16"), help="of both sides; else compute's own choice"
    )
    parser.add_argument("--tuned-only", action="store_true", help="leave out TRL as it comes")
    parser.add_argument("--strict", action="store_true", help="exit with 1 if a target is missed, too")
    parser.add_argument("--json", type=Path, help="write everything that was recorded to this file")
    parser.add_argument("--markdown", type=Path, help="write the table to this file")
    options = parser.parse_args(arguments)
    if unknown := set(options.methods) - set(known):
        parser.error(f"no method {', '.join(sorted(unknown))}: there are {', '.join(known)}")
    if options.steps and options.steps < 4:
        parser.error("--steps must be at least 4: the first ones warm up")
    logging.disable_progress_bar()
    if options.precision:
        environment = replace(environment, precision=options.precision)
    asked = Asked(
        environment,
        options.threads,
        options.rounds,
        options.steps,
        plain=not options.tuned_only,
    )
    about = machine.about(environment, options.threads)
    results: list[Result] = []
    with tempfile.TemporaryDirectory() as name:
        for size in options.sizes:
            for length in options.lengths:
                folder = Path(name) / f"{size}-{length}"
                made = material.make(folder / "material", sizes[size], lengths[length], CONVERSATIONS)
                for method in options.methods or known:
                    print(f"{method} {size} {length}", file=sys.stderr, flush=True)
                    scratch = folder / method
                    scratch.mkdir(parents=True)
                    results.append(time_row(method, sizes[size], lengths[length], made, scratch, asked))
                    # What there is so far is written after each row: a run takes hours.
                    if options.json:
                        write_figures(options.json, as_json(results, about))
                    if options.markdown:
                        options.markdown.write_text(table(results, about) + "\n", encoding="utf-8")
    print(table(results, about))
    if any(result.fails for result in results):
        return 1
    return 1 if options.strict and any(result.missed for result in results) else 0


if __name__ == "__main__":
    sys.exit(main())
