"""Pipeline runs held against each other: what differed, and which is better. Pure functions on their
records."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

GROUPS = ("code", "params", "data", "environment")

EVALUATION_DATA = "data/validated/evaluation.jsonl"


@dataclass(frozen=True)
class Difference:
    """Something that is not the same in all runs.

    Attributes:
        group: code, params, data or environment.
        values: one for each run; None where a run has none.
    """

    group: str
    name: str
    values: tuple[Any, ...]


@dataclass(frozen=True)
class FigureRow:
    """One figure of one policy in every run."""

    policy: str
    figure: str
    values: tuple[float | None, ...]

    @property
    def change(self) -> float | None:
        """Last run minus first."""
        first, last = self.values[0], self.values[-1]
        return None if first is None or last is None else last - first


@dataclass(frozen=True)
class Comparison:
    """What `compare` found.

    Attributes:
        runs: their ids.
        differences: what differed, by group.
        figures: every policy's main figures.
        verdict: sentences that say which run is better, and how sure that is.
    """

    runs: tuple[str, ...]
    differences: tuple[Difference, ...]
    figures: tuple[FigureRow, ...]
    verdict: tuple[str, ...]


def compare(records: Sequence[Mapping[str, Any]]) -> Comparison:
    """Compares two runs or more; changes are from the first to the last."""
    return Comparison(
        runs=tuple(str(record["run"]) for record in records),
        differences=tuple(_differences(records)),
        figures=tuple(_figures(records)),
        verdict=tuple(_verdict(records)),
    )


def best_policy(record: Mapping[str, Any]) -> tuple[str, str, float] | None:
    """(policy, figure, value) of a run's best policy by gold score, or by win rate where no gold judge is."""
    figures: Mapping[str, Mapping[str, float]] = record.get("figures") or {}
    for figure in ("gold.mean", "win_rate_vs_sft.mean"):
        scored = {name: values[figure] for name, values in figures.items() if values.get(figure) is not None}
        if scored:
            name = max(scored, key=lambda policy: scored[policy])
            return name, figure, scored[name]
    return None


def _differences(records: Sequence[Mapping[str, Any]]) -> list[Difference]:
    found = []
    for group in GROUPS:
        sides = [_code(record) if group == "code" else record.get(group) or {} for record in records]
        if group == "params":
            sides = _absent_sections_as_one(sides)
        for name in sorted(set().union(*sides)):
            values = tuple(side.get(name) for side in sides)
            if len({str(value) for value in values}) > 1:
                found.append(Difference(group, name, values))
    return found


def _absent_sections_as_one(sides: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """A method that not all runs use under its one name: each of its parameters would be a difference."""
    sections = [{name.partition(".")[0] for name in side} for side in sides]
    absent = set[str]().union(*sections) - set[str].intersection(*sections) - {"policies"}
    merged: list[Mapping[str, Any]] = []
    for side in sides:
        idle = {name for name in side if "." in name and name.partition(".")[0] in absent}
        kept = {name: value for name, value in side.items() if name not in idle}
        merged.append(kept | {name.partition(".")[0]: "in use" for name in idle})
    return merged


def _code(record: Mapping[str, Any]) -> dict[str, Any]:
    return {"commit": record.get("git_commit"), "uncommitted changes": record.get("git_dirty")}


def _figures(records: Sequence[Mapping[str, Any]]) -> list[FigureRow]:
    sides: list[Mapping[str, Mapping[str, float]]] = [record.get("figures") or {} for record in records]
    policies = dict.fromkeys(policy for side in sides for policy in side)
    rows = []
    for policy in policies:
        for figure in dict.fromkeys(name for side in sides for name in side.get(policy, {})):
            rows.append(FigureRow(policy, figure, tuple(side.get(policy, {}).get(figure) for side in sides)))
    return rows


def _verdict(records: Sequence[Mapping[str, Any]]) -> list[str]:
    best = [best_policy(record) for record in records]
    scored = [(record, found) for record, found in zip(records, best, strict=True) if found is not None]
    if len(scored) < 2:
        return ["fewer than two of these runs were evaluated: nothing to choose between"]
    if len({found[1] for _, found in scored}) > 1:
        return ["these runs were judged by different judges: their scores cannot be compared"]
    lines = []
    if len({str((record.get("data") or {}).get(EVALUATION_DATA)) for record, _ in scored}) > 1:
        lines.append("the evaluation prompts differ: read the difference with care")
    winner, (policy, figure, value) = max(scored, key=lambda pair: pair[1][2])
    for record, (other, _, lower) in scored:
        if record is winner:
            continue
        gap = value - lower
        if gap == 0:
            lines.append(f"{winner['run']} and {record['run']} are equal: {policy} with {figure} {value:.3f}")
            continue
        sure = _certainty(winner, policy, record, other, figure)
        lines.append(
            f"{winner['run']} is better than {record['run']}: {policy} with {figure} {value:.3f} against "
            f"{other} with {lower:.3f} ({gap:+.3f}; {sure})"
        )
    return lines


def _certainty(
    winner: Mapping[str, Any], policy: str, other: Mapping[str, Any], second: str, figure: str
) -> str:
    name = figure.removesuffix(".mean")
    high = ((winner.get("intervals") or {}).get(policy) or {}).get(name)
    low = ((other.get("intervals") or {}).get(second) or {}).get(name)
    if not high or not low:
        return "no intervals kept"
    return "intervals apart" if high[0] > low[1] else "intervals overlap: may be chance"
