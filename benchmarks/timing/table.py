"""The table of a run, in Markdown, and what stands in its JSON file."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks.timing.figures import Result, Timed

MIB = 2.0**20
COLUMNS = (
    "method",
    "model",
    "lengths",
    "prefloop, s a step",
    "TRL tuned",
    "TRL as it comes",
    "x tuned (CPU time)",
    "x as it comes",
    "target",
    "tokens/s",
    "of GEMM",
    "peak MiB: prefloop, tuned, as it comes",
    "growth MiB",
    "whole process, s",
    "losses differ",
    "load",
    "verdict",
)

SAMPLED = ("completions", "logprobs")
"""What a recording holds of each token sampled: for the comparison alone."""


def table(results: Sequence[Result], about: Mapping[str, Any]) -> str:
    """Markdown: what it was measured on, and one row a result.

    Times are medians over steps and rounds with quartiles; "generate" is transformers' generate in place of
    TRL, and its step all responses.
    """
    said = ", ".join(f"{name} {value}" for name, value in about.items())
    lines = [said, "", f"| {' | '.join(COLUMNS)} |", f"|{' --- |' * len(COLUMNS)}"]
    lines += [f"| {' | '.join(_cells(result))} |" for result in results]
    return "\n".join(lines)


def as_json(results: Sequence[Result], about: Mapping[str, Any]) -> dict[str, Any]:
    """Everything that was recorded but the text that was sampled, and every figure of the table."""
    rows = []
    for result in results:
        figures: dict[str, Any] = {"fails": result.fails, "verdict": result.verdict, "target": result.target}
        if not result.fails:
            figures |= {
                "times_tuned": result.ratio(result.tuned),
                "times_plain": result.ratio(result.plain),
                "times_tuned_cpu": result.ratio(result.tuned, "busy"),
                "difference": result.difference,
                "utilisation": result.utilisation,
            }
        sides = {name: _unsampled(getattr(result, name)) for name in ("ours", "tuned", "plain")}
        rows.append(dataclasses.asdict(result) | sides | figures)
    return {"about": dict(about), "rows": rows}


def _unsampled(side: Timed) -> dict[str, Any]:
    kept = [{what: one[what] for what in one if what not in SAMPLED} for one in side.recordings]
    return {"recordings": kept, "walls": side.walls}


def _cells(result: Result) -> list[str]:
    head = [result.method, result.size, result.lengths]
    if result.fails:
        return [*head, *[""] * (len(COLUMNS) - 5), _load(result), result.verdict]
    sides = (result.ours, result.tuned, result.plain)
    seconds = result.ours.spread().median
    tokens = (result.tokens + result.ours.sampled) / seconds
    own = result.ratio(result.tuned)
    return [
        *head,
        *(_time(side) for side in sides),
        f"**{own:.1f}** ({_number(result.ratio(result.tuned, 'busy'), '.1f')})",
        _number(result.ratio(result.plain), ".1f"),
        f"{result.target:g}",
        f"{tokens:,.0f}",
        _number(result.utilisation, ".0%"),
        ", ".join(_number(side.memory / MIB, ",.0f") if side.recordings else "-" for side in sides),
        ", ".join(_number(side.growth / MIB, ",.0f") if side.recordings else "-" for side in sides),
        ", ".join(_number(side.wall, ".1f") for side in sides),
        f"{result.difference:.0e}" if result.method != "generate" else "",
        _load(result),
        result.verdict,
    ]


def _time(side: Timed) -> str:
    if not side.recordings:
        return "-"
    spread = side.spread()
    return f"{spread.median:.3g} [{spread.low:.3g}, {spread.high:.3g}]"


def _number(value: float, form: str) -> str:
    return "-" if math.isnan(value) else format(value, form)


def _load(result: Result) -> str:
    return f"{result.load[0]:.1f} to {result.load[1]:.1f}"
