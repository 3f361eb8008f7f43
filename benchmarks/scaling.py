"""What grows with what: cost against rows, sequence length, batch, group size and model size.

    python -m benchmarks.scaling [rows length batch group model ...] [--most 30000] [--rounds 3] [--json FILE]

Prints every point, and for each series the exponent of its processor time over its upper half (the slope of a
line through the logarithms) beside that of the cost which theory predicts for the same sizes. Exits with 1
where the measured one is more than 0.2 above, or where, from 300,000 rows on, a further row costs memory of
more than half its size.
All series together take some minutes on one core; `rows --most 1000000` takes half an hour of processor time.

A fixed part makes a cost grow more slowly than theory says, so an exponent below it is no failure. Processor
time of one thread is compared, as other work on the machine disturbs it less than wall time.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from benchmarks.figures_file import write_figures
from benchmarks.growth.circumstances import circumstances, in_words, load
from benchmarks.growth.curve import Curve, tables

SERIES = ("rows", "length", "batch", "group", "model")
ROWS = (1_000, 3_000, 10_000, 30_000, 100_000, 300_000, 1_000_000)


def say(text: str) -> None:
    """Progress, on standard error."""
    print(text, file=sys.stderr, flush=True)


def measured(series: str, most: int, rounds: int) -> list[Curve]:
    """The curves of one series; what it needs is imported only here, so that rows need no torch."""
    if series == "rows":
        from benchmarks.growth import rows

        return rows.curves([size for size in ROWS if size <= most], say)
    import torch
    from transformers.utils import logging

    torch.set_num_threads(1)
    logging.disable_progress_bar()
    if series == "group":
        from benchmarks.growth import groups

        return groups.curves(rounds, say)
    from benchmarks.growth import fixed_data

    return fixed_data.curves(series, rounds, say)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("series", nargs="*", metavar="SERIES", help=f"{', '.join(SERIES)}; all without")
    parser.add_argument("--most", type=int, default=30_000, help="rows at most")
    parser.add_argument("--rounds", type=int, default=3, help="times that the sizes are trained in turn")
    parser.add_argument("--json", type=Path, help="write every point to this file")
    parser.add_argument("--markdown", type=Path, help="write the tables to this file")
    options = parser.parse_args(arguments)
    if unknown := set(options.series) - set(SERIES):
        parser.error(f"no series {', '.join(sorted(unknown))}: there are {', '.join(SERIES)}")
    if options.most < ROWS[1]:
        parser.error(f"--most must be at least {ROWS[1]}: two sizes make an exponent")
    begun, curves = circumstances(), list[Curve]()
    for series in options.series or SERIES:
        curves += measured(series, options.most, options.rounds)
    text = f"{in_words(begun)}\n\n{tables(curves)}"
    print(text)
    if options.json:
        found = {**begun, "load_after": load(), "curves": [curve.as_values() for curve in curves]}
        write_figures(options.json, found)
    if options.markdown:
        options.markdown.write_text(text + "\n", encoding="utf-8")
    troubles = [trouble for curve in curves for trouble in curve.troubles]
    for trouble in troubles:
        print(f"MISSED  {trouble}")
    return 1 if troubles else 0


if __name__ == "__main__":
    sys.exit(main())
