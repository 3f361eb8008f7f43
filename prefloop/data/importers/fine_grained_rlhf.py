"""Questions with four predictions and six pairwise judgments (Fine-Grained RLHF, QA feedback).

Judgments come as 1-2, 1-3, 1-4, 2-3, 2-4, 3-4: 1 prefers the first, 2 the second, 0 neither. Judgments that
fit one ranking give one ranked row; contradicting ones give six rows of two. The passages that raters saw
follow the question, unless option passages=no.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any, Final

from prefloop.data.records import Row
from prefloop.data.transcripts import ranks_of, required, required_text

KIND: Final = "preferences"
_PREDICTIONS: Final = 4
_PAIRS: Final = tuple(combinations(range(_PREDICTIONS), 2))
_RANKS: Final = {0: [0, 0], 1: [0, 1], 2: [1, 0]}


def convert(record: Any, options: Mapping[str, str]) -> Iterator[tuple[str, Row]]:
    """Yields one ranked comparison, or six of two."""
    prompt = required_text(record, "question")
    if options.get("passages", "yes") != "no":
        passages = "\n\n".join(
            f"{title}\n{' '.join(sentences)}" for title, *sentences in record.get("passages", [])
        )
        prompt = f"{prompt}\n\n{passages}" if passages else prompt
    texts = [required_text(record, f"prediction {i + 1}") for i in range(_PREDICTIONS)]
    judgments = required(record, "preference")
    if not isinstance(judgments, list) or len(judgments) != len(_PAIRS) or not set(judgments) <= set(_RANKS):
        raise ValueError(f"preference must be six judgments of 0, 1 or 2, got {judgments!r}")
    ranks = _ranking(judgments)
    if ranks is not None:
        yield "preferences", {"prompt": prompt, "completions": texts, "ranks": ranks}
        return
    for (i, j), judgment in zip(_PAIRS, judgments, strict=True):
        yield (
            "preferences",
            {"prompt": prompt, "completions": [texts[i], texts[j]], "ranks": _RANKS[judgment]},
        )


def _ranking(judgments: list[int]) -> list[int] | None:
    """The ranking (ties allowed) that gives these judgments, if any: it is that of wins minus losses."""
    balance = [0.0] * _PREDICTIONS
    for (i, j), judgment in zip(_PAIRS, judgments, strict=True):
        sign = {0: 0, 1: 1, 2: -1}[judgment]
        balance[i] += sign
        balance[j] -= sign
    for (i, j), judgment in zip(_PAIRS, judgments, strict=True):
        if (balance[i] > balance[j], balance[i] < balance[j]) != (judgment == 1, judgment == 2):
            return None
    return ranks_of(balance)
