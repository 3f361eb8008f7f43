"""The end of a run: what came of it, the policies side by side, where the report is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from flows.planning.show import duration
from flows.run import Ended
from prefloop.config.read import read_yaml

COLUMNS = (
    ("gold", "gold"),
    ("reward", "reward"),
    ("win rate vs sft", "win_rate_vs_sft"),
    ("KL to sft", "kl_to_sft"),
    ("length", "length"),
    ("ended", "ended"),
    ("distinct-2", "distinct_2"),
)
EVALUATION = Path("metrics/evaluate.json")
REPORT = Path("reports/report.html")


def summary_lines(root: Path, ended: Ended) -> list[str]:
    """Lines for a terminal or a pipe."""
    lines = []
    if ended.signal_number is not None:
        lines.append("stopped; run again to go on from where it was")
    for stage, error in ended.failures.items():
        lines.append(f"{stage} failed: {error}")
    if ended.held_back:
        lines.append(f"not run: {', '.join(ended.held_back)}")
    if ended.plan.stages and ended.plan.nothing_to_do:
        lines.append(f"nothing changed: all {len(ended.plan.stages)} stages are up to date")
    lines += policy_table(root)
    if (root / REPORT).exists() and not ended.exit_code:
        lines += ["", f"report: {REPORT}"]
    return [*lines, _counts(ended)]


def as_values(root: Path, ended: Ended) -> dict[str, Any]:
    """The same as plain values."""
    return {
        "exit_code": ended.exit_code,
        "stages": ended.outcomes,
        "failures": {stage: error.message for stage, error in ended.failures.items()},
        "not_run": list(ended.held_back),
        "seconds": round(ended.seconds, 1),
        "policies": evaluation(root).get("policies", {}),
        "report": str(REPORT) if (root / REPORT).exists() else None,
    }


def policy_table(root: Path) -> list[str]:
    """The policies of metrics/evaluate.json side by side; no line where there is none."""
    policies = evaluation(root).get("policies", {})
    if not policies:
        return []
    order = (read_yaml(root / "params.yaml").get("evaluate") or {}).get("policies", [])
    policies = {name: policies[name] for name in [*order, *policies] if name in policies}
    rows = [["policy", *(title for title, _ in COLUMNS)]]
    rows += [[name, *(cell(figures.get(key)) for _, key in COLUMNS)] for name, figures in policies.items()]
    return ["", *align(rows)]


def evaluation(root: Path) -> dict[str, Any]:
    """metrics/evaluate.json, or an empty mapping."""
    try:
        return dict(json.loads((root / EVALUATION).read_text(encoding="utf-8")))
    except (OSError, ValueError):
        return {}


def cell(value: Any) -> str:
    """A figure, with its interval when it has one: `1.42 [1.36, 1.48]`."""
    if isinstance(value, dict):
        interval = value.get("ci95")
        shown = cell(value.get("mean"))
        return f"{shown} [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else shown
    return f"{value:.2f}" if isinstance(value, (int, float)) else "-"


def align(rows: list[list[str]]) -> list[str]:
    """Columns of equal width, the first to the left, the others to the right."""
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return [
        "  ".join(
            f"{text:<{width}}" if column == 0 else f"{text:>{width}}"
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]


def _counts(ended: Ended) -> str:
    outcomes = list(ended.outcomes.values())
    parts = [f"{outcomes.count(word)} {word}" for word in ("ran", "restored", "skipped") if word in outcomes]
    return f"{', '.join(parts) or 'no stage ended'}, in {duration(ended.seconds)}"
