"""Comparisons as trainers see them: every preference row, pair or ranking, becomes one ranking."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.templates import Message
from prefloop.objectives.pairs import pair_indices


@dataclass(frozen=True)
class Ranking:
    """One prompt with ranked completions.

    Attributes:
        prompt, completions: strings or messages.
        ranks: 0 is best, equal ranks are ties.
        margin: by how much the better one is better, where a rater said so.
        probability: share of raters for the better of a pair (at least 1/2), where labels are soft; else 1.
        rater, source, subset: where it came from, for accuracy by part.
    """

    prompt: str | Sequence[Message]
    completions: list[Any]
    ranks: list[int]
    margin: float = 0.0
    probability: float = 1.0
    rater: str = ""
    source: str = ""
    subset: str = ""

    @property
    def pairs(self) -> list[tuple[int, int]]:
        """(better, worse) indices."""
        return pair_indices(self.ranks)[0]


def as_ranking(row: dict[str, Any]) -> Ranking | None:
    """The ranking of a preference row; None where a rater skipped it or found both bad (not trained on)."""
    if row.get("both_bad") or row.get("skipped"):
        return None
    if "completions" in row:
        completions, ranks = list(row["completions"]), [int(rank) for rank in row["ranks"]]
    else:
        completions, ranks = [row["chosen"], row["rejected"]], [0, 1]
    soft = row.get("probability")
    probability = 1.0 if soft is None or len(completions) > 2 else float(soft)
    if probability < 0.5:
        # Most raters prefer the one that the row calls worse.
        probability, ranks = 1.0 - probability, [max(ranks) - rank for rank in ranks]
    meta = row.get("meta") or {}
    return Ranking(
        prompt=row["prompt"],
        completions=completions,
        ranks=ranks,
        margin=float(row.get("margin") or 0.0),
        probability=probability,
        rater=str(row.get("rater") or ""),
        source=str(row.get("source") or ""),
        subset=str(meta.get("kind") or meta.get("subset") or row.get("source") or ""),
    )


def rankings(rows: Iterable[dict[str, Any]]) -> tuple[list[Ranking], int]:
    """Rankings that order something, and how many rows do not (ties alone, skipped, both bad)."""
    kept: list[Ranking] = []
    unused = 0
    for row in rows:
        ranking = as_ranking(row)
        if ranking is None or not ranking.pairs:
            unused += 1
        else:
            kept.append(ranking)
    return kept, unused
