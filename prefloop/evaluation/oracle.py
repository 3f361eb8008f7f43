"""How much better a policy could be, and how much of that it reached."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from prefloop.errors import DataError
from prefloop.evaluation.intervals import Estimate, Floats, bootstrap


def best_of(scores: Floats) -> Floats:
    """The best score of each prompt's samples; scores (N, S), returns (N,).

    By the gold judge over samples of the SFT policy this is what reranking could reach without any training:
    the reachable maximum.
    """
    if scores.ndim != 2 or scores.shape[1] == 0:
        raise DataError(f"best of n needs samples of shape (prompts, samples), got {scores.shape}")
    return np.asarray(scores.max(axis=1), dtype=np.float64)


def spread_over_kinds(kinds: Sequence[str], count: int) -> list[int]:
    """Ascending indices of `count` prompts (0: all): every k-th by kind, so that kinds keep their shares."""
    order = sorted(range(len(kinds)), key=lambda i: (kinds[i], i))
    count = min(count or len(kinds), len(kinds))
    return sorted(order[number * len(order) // count] for number in range(count))


def gap_closed(policy: Floats, sft: Floats, reachable: Floats, *, resamples: int = 2000) -> Estimate | None:
    """(policy - sft) / (reachable - sft) of mean scores on the same prompts, each array of shape (N,).

    0 is the SFT policy, 1 the reachable maximum; the interval resamples prompts for all three together. None
    where the reachable maximum is no better than SFT, which leaves no gap to close.

    Raises:
        DataError: the arrays do not speak of the same prompts.
    """
    if not len(policy) == len(sft) == len(reachable):
        raise DataError(
            f"scores of {len(policy)}, {len(sft)} and {len(reachable)} prompts cannot be paired",
            "evaluate every policy on one data/validated/evaluation.jsonl: prefloop run evaluate --force",
        )
    if len(policy) == 0 or reachable.mean() <= sft.mean():
        return None

    def statistic(weights: Floats) -> Floats:
        gap = weights @ (reachable - sft)
        return np.asarray((weights @ (policy - sft)) / np.maximum(gap, 1e-12), dtype=np.float64)

    return bootstrap(len(policy), statistic, resamples=resamples)
