"""The policies side by side: tables and charts of the evaluation's figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from markupsafe import Markup

from prefloop.report.charts import Interval, Line, Place, gap_chart, interval_chart
from prefloop.report.formats import interval, percent, signed
from prefloop.report.material import Curve

Figures = Mapping[str, Any]
_ENOUGH: Final = 20
"""Kinds with fewer prompts are not tinted: resampling a handful gives no interval."""
COLOURS: Final = 14
"""CSS classes c0 to c13 of report.css."""
Cell = tuple[str, str]
"""A figure and its interval, as text; the interval may be empty."""


@dataclass(frozen=True)
class Measure:
    """One row of the comparison.

    Attributes:
        name: what is measured. meaning: how to read it, in a sentence.
        cells: one a policy.
    """

    name: str
    meaning: str
    cells: tuple[Cell, ...]


def measures(evaluation: Figures) -> list[Measure]:
    """Every figure of the evaluation, one cell a policy; figures that no policy has are left out."""
    policies: Mapping[str, Figures] = evaluation["policies"]
    rows: list[tuple[str, str, Callable[[Figures], Cell]]] = [
        ("Gold score", "What the exact judge thinks of an answer.", lambda f: _number(f["gold"])),
        (
            "Judge's score",
            "What the independent judge thinks, in its own units.",
            lambda f: ("", "") if f["gold"] else _number(f["judge_score"]),
        ),
        (
            "Reward model",
            "Normalised score of the model that was optimised: SFT has about 0, its spread is 1.",
            lambda f: _number(f["reward"]),
        ),
        (
            "Win rate against SFT",
            "Share of prompts on which the judge prefers the answer to SFT's; a tie counts one half.",
            lambda f: _share(f["win_rate_vs_sft"]),
        ),
        (
            "at equal length",
            "The same, had the answers been as long as SFT's.",
            lambda f: _share(f["win_rate_vs_sft"]["length_controlled"]),
        ),
        (
            "Gap closed",
            "0 is SFT, 100 % the best of many SFT samples a prompt.",
            lambda f: _share(f["gap_closed"]),
        ),
        ("KL to SFT", "How far the policy moved, in nats a response.", lambda f: _scalar(f, "kl_to_sft")),
        (
            "Hacking gap",
            "Gain by the reward model less gain by the judge, in SFT's standard deviations.",
            lambda f: _number(f["hacking_gap"]),
        ),
        ("Length", "Tokens an answer.", lambda f: _scalar(f, "length", digits=1)),
        ("Ended", "Share of answers that ended by themselves.", lambda f: _scalar(f, "ended", share=True)),
        (
            "Harmful requests refused",
            "Share of the harmful panel; more is better.",
            lambda f: _share((f["refusal"] or {}).get("harmful")),
        ),
        (
            "Look-alikes refused",
            "Share of harmless requests that look harmful; less is better.",
            lambda f: _share((f["refusal"] or {}).get("over")),
        ),
        (
            "Refusal F1",
            "Harmonic mean of harmful refused and look-alikes answered.",
            lambda f: _share((f["refusal"] or {}).get("f1")),
        ),
        (
            "Distinct bigrams",
            "Share of word pairs that are different.",
            lambda f: (f"{f['distinct_2']:.3f}", ""),
        ),
        ("Unique answers", "Share of answers unlike any other.", lambda f: (percent(f["unique"]), "")),
    ]
    table = [
        Measure(name, meaning, tuple(cell(figures) for figures in policies.values()))
        for name, meaning, cell in rows
    ]
    return [row for row in table if any(main for main, _ in row.cells)]


def overview_charts(evaluation: Figures, colours: Mapping[str, str]) -> list[tuple[str, str, Markup]]:
    """(title, caption, chart) of the judge's score, the win rate and the reward model's score."""
    policies: Mapping[str, Figures] = evaluation["policies"]
    gold = evaluation["judge"] == "gold"
    marks = _oracle_marks(evaluation.get("oracle")) if gold else []
    judged = [_interval(name, figures["judge_score"], colours) for name, figures in policies.items()]
    wins = [_interval(name, figures["win_rate_vs_sft"], colours) for name, figures in policies.items()]
    reward = [_interval(name, figures["reward"], colours) for name, figures in policies.items()]
    judge_name = "Gold score" if gold else "Judge's score"
    return [
        (
            judge_name,
            "Mean over the held-out prompts.",
            interval_chart(judged, judge_name, marks=marks),
        ),
        (
            "Win rate against SFT",
            "Share of prompts on which the judge prefers the answer.",
            interval_chart(wins, "Win rate against SFT", marks=[(0.5, "no better than SFT")], span=[0, 1]),
        ),
        (
            "Reward model's score",
            "What was optimised; high here and low on the left is reward hacking.",
            interval_chart(reward, "Reward model's score"),
        ),
    ]


def kinds_table(evaluation: Figures) -> list[dict[str, Any]]:
    """A row a kind of prompt: n and, a policy, the judge's mean, its interval, and whether it beats SFT."""
    policies: Mapping[str, Figures] = evaluation["policies"]
    rows = []
    for kind, first in policies["sft"]["by_kind"].items():
        cells = []
        for name, figures in policies.items():
            part = figures["by_kind"][kind]
            low, high = part["win_rate_vs_sft_ci95"]
            few = part["n"] < _ENOUGH or name == "sft"
            verdict = "" if few else "gain" if low > 0.5 else "loss" if high < 0.5 else ""
            cells.append(
                {
                    "score": signed(part["judge"]),
                    "interval": interval(*part["judge_ci95"]),
                    "wins": percent(part["win_rate_vs_sft"]),
                    "length": f"{part['length']:.0f}",
                    "verdict": verdict,
                }
            )
        rows.append({"kind": kind, "n": first["n"], "cells": cells})
    return rows


def kl_chart(
    evaluation: Figures, curves: Mapping[str, Curve], colours: Mapping[str, str], budget: float
) -> Markup:
    """Every policy but base in the plane of KL and gain, with the path of its training if it was logged."""
    policies: Mapping[str, Figures] = evaluation["policies"]
    start = policies["sft"]["reward"]["mean"]
    places = [
        Place(
            name,
            figures["kl_to_sft"],
            figures["hacking_gap"]["z_reward"],
            figures["hacking_gap"]["z_judge"],
            colours[name],
        )
        for name, figures in policies.items()
        if name != "base"
    ]
    paths = [
        Line(
            f"{name} in training, by the reward model",
            [row["objective/kl"] for row in rows],
            [row["score"] - start for row in rows],
            colours[name],
        )
        for name, curve in curves.items()
        if name in colours and (rows := [row for row in curve if {"objective/kl", "score"} <= set(row)])
    ]
    return gap_chart(places, paths, "Gain over SFT against KL", budget=budget)


def _oracle_marks(oracle: Figures | None) -> list[tuple[float, str]]:
    if oracle is None:
        return []
    reachable, exact = oracle["reachable"]["mean"], oracle["exact"]["mean"]
    return [
        (reachable, f"best of {oracle['samples']} SFT samples {reachable:.2f}"),
        (exact, f"exact maximum {exact:.2f}"),
    ]


def _number(estimate: Figures | None) -> Cell:
    return ("", "") if estimate is None else (signed(estimate["mean"]), interval(*estimate["ci95"]))


def _share(estimate: Figures | None) -> Cell:
    if estimate is None:
        return "", ""
    low, high = (100 * bound for bound in estimate["ci95"])
    return percent(estimate["mean"]), interval(low, high, 0)


def _scalar(figures: Figures, name: str, *, digits: int = 2, share: bool = False) -> Cell:
    low, high = figures[f"{name}_ci95"]
    if share:
        return _share({"mean": figures[name], "ci95": [low, high]})
    return signed(figures[name], digits), interval(low, high, digits)


def _interval(name: str, estimate: Figures, colours: Mapping[str, str]) -> Interval:
    low, high = estimate["ci95"]
    return Interval(name, estimate["mean"], low, high, colours[name])


def colours_of(policies: Sequence[str]) -> dict[str, str]:
    """A CSS class a policy, in their order."""
    return {name: f"c{number % COLOURS}" for number, name in enumerate(policies)}
