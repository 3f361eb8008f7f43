"""Single completions marked desirable or not, from unpaired rows and from comparisons."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

from prefloop.config.kto import KTOConfig
from prefloop.data.comparisons import as_ranking
from prefloop.data.templates import Message

_MOST: Final = 4 / 3
"""Upper bound of `weight_ratio`, whose lower one is 1 (Ethayarajh et al. 2024, section 4)."""
_SLACK: Final = 1.1
"""What misses a bound by less than this factor gets no advice: ties alone unbalance rankings a little."""


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
    """Completions of `{"prompt", "completion", "label"}` rows and of preference rows, and how many were left
    out.

    Of a comparison, completions ranked above its mean rank are desirable and those below it undesirable: of
    a pair the chosen and the rejected one. Left out are those at the mean (the middle one of three, ties
    alone), both of a pair whose raters are evenly split, and rows that were skipped or found both bad. Other
    soft labels count as plain ones. A row with a label that was skipped is left out, too.
    """
    kept: list[Unpaired] = []
    unused = 0
    for row in rows:
        if "completion" in row:
            if row.get("skipped"):
                unused += 1
            else:
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


def weight_ratio(desirable: int, undesirable: int, config: KTOConfig) -> float:
    """What desirable completions weigh together over what undesirable ones do; counts of at least 1."""
    return (config.desirable_weight * desirable) / (config.undesirable_weight * undesirable)


def balance_advice(desirable: int, undesirable: int, config: KTOConfig) -> str:
    """In words, how far to raise the rarer class's weight; "" where both classes weigh about the same."""
    ratio = weight_ratio(desirable, undesirable, config)
    if 1 / _SLACK <= ratio <= _MOST * _SLACK:
        return ""
    if ratio < 1:
        key, least = "a desirable_weight", config.desirable_weight / ratio
    else:
        key, least = "an undesirable_weight", config.undesirable_weight * ratio / _MOST
    return (
        f"warning: desirable completions weigh {ratio:.3g} times what undesirable ones do; {key} from "
        f"{least:.3g} to {least * _MOST:.3g} makes it 1 to 4/3, as the KTO paper advises"
    )
