"""Single completions marked desirable or not, from unpaired rows and from comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prefloop.data.comparisons import as_ranking
from prefloop.data.templates import Message


@dataclass(frozen=True)
class Unpaired:
    """One completion.

    Attributes:
        prompt, completion: strings or messages.
        desirable: what its rater said of it alone, or by its place in a comparison.
    """

    prompt: str | Sequence[Message]
    completion: str | Sequence[Message]
    desirable: bool


def unpaired(rows: Iterable[dict[str, Any]]) -> tuple[list[Unpaired], int]:
    """Completions of `{"prompt", "completion", "label"}` rows and of preference rows, and how many of the
    latter's completions were left out.

    Of a comparison, completions ranked above its mean rank are desirable and those below it undesirable: of
    a pair the chosen and the rejected one. Left out are those at the mean (the middle one of three, ties
    alone), both of a pair whose raters are evenly split, and rows that were skipped or found both bad. Other
    soft labels count as plain ones.
    """
    kept: list[Unpaired] = []
    unused = 0
    for row in rows:
        if "completion" in row:
            kept.append(Unpaired(row["prompt"], row["completion"], bool(row["label"])))
            continue
        ranking = as_ranking(row)
        if ranking is None or ranking.probability == 0.5:
            unused += len(row.get("completions", (0, 0)))
            continue
        total, count = sum(ranking.ranks), len(ranking.ranks)
        for completion, rank in zip(ranking.completions, ranking.ranks, strict=True):
            if rank * count == total:
                unused += 1
            else:
                kept.append(Unpaired(ranking.prompt, completion, rank * count < total))
    return kept, unused
