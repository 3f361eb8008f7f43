"""From figures a policy to one comparison: what metrics/evaluate.json holds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from prefloop.errors import DataError
from prefloop.evaluation.answers import MAIN
from prefloop.evaluation.intervals import Floats
from prefloop.evaluation.oracle import gap_closed

Rows = Sequence[Mapping[str, Any]]


def merge(
    figures: Mapping[str, Mapping[str, Any]], samples: Mapping[str, Rows], *, resamples: int = 2000
) -> dict[str, Any]:
    """Puts the policies side by side and adds what needs more than one of them.

    Args:
        figures: policy -> its metrics/evaluate/POLICY.json, "sft" among them.
        samples: policy -> rows of its reports/samples/POLICY.jsonl.
        resamples: bootstrap samples behind each interval.

    Returns:
        `judge`, `prompts` (count a panel), `oracle` (None without a gold judge), and `policies`: the figures,
        with `gap_closed` (mean, ci95, n): the share of the way from SFT to the reachable maximum, or None.

    Raises:
        DataError: policies were judged by different judges, or on different prompts.
    """
    judges = {name: figures[name]["judge"] for name in figures}
    if len(set(judges.values())) > 1:
        raise DataError(f"policies were judged by different judges: {judges}", "run the stage evaluate again")
    sft = samples["sft"]
    asked = [row["id"] for row in sft]
    for name, rows in samples.items():
        if [row["id"] for row in rows] != asked:
            raise DataError(
                f"reports/samples/{name}.jsonl and reports/samples/sft.jsonl answer different prompts",
                "score every policy on one evaluation set: prefloop run evaluate --force",
            )
    panels = [str(row["panel"]) for row in sft]
    policies = {}
    for name in figures:
        policies[name] = {key: figures[name][key] for key in figures[name] if key not in ("policy", "oracle")}
        policies[name]["gap_closed"] = _gap_closed(samples[name], sft, resamples)
    return {
        "judge": judges["sft"],
        "prompts": {panel: panels.count(panel) for panel in sorted(set(panels))},
        "oracle": figures["sft"].get("oracle"),
        "policies": policies,
    }


def _gap_closed(policy: Rows, sft: Rows, resamples: int) -> dict[str, Any] | None:
    """Over the main prompts whose reachable maximum was measured."""
    known = [i for i, row in enumerate(sft) if row["panel"] == MAIN and row.get("reachable") is not None]
    if not known:
        return None
    closed = gap_closed(
        _column(policy, "gold", known), _column(sft, "gold", known), _column(sft, "reachable", known),
        resamples=resamples,
    )  # fmt: skip
    return None if closed is None else closed.as_json()


def _column(rows: Rows, name: str, indices: Sequence[int]) -> Floats:
    return np.array([rows[i][name] for i in indices], dtype=np.float64)
