"""Best-of-n: sample n completions, keep the one that scores best."""

from __future__ import annotations

import math

from torch import Tensor


def best_of(scores: Tensor) -> Tensor:
    """Place of each group's best score: (N, G) float -> (N,) int64; of equal ones the lowest."""
    # argmax of a bool tensor gives the first True: not promised for equal floats.
    return (scores == scores.amax(dim=-1, keepdim=True)).int().argmax(dim=-1)


def kl_bound(n: int, rounds: int = 1) -> float:
    """log n - (n - 1) / n: the KL of best-of-n to what it samples from (nats; Stiennon et al. 2020, appendix
    G.3), which is an upper bound where scores can tie (Beirami et al. 2024, arXiv 2401.01879).

    Args:
        rounds: times that best-of-n was taken of the last round's: best-of-n^rounds of the first.
    """
    count = float(n) ** rounds
    return math.log(count) - (count - 1) / count
