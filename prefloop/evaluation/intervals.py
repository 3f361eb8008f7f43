"""Estimates with 95 % intervals: a bootstrap that is paired by prompt, and Wilson's interval for shares."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from prefloop.errors import DataError

Floats = NDArray[np.float64]
Statistic = Callable[[Floats], Floats]
"""Maps weights over prompts, shape (R, N) with rows that sum to 1, to one figure a row, shape (R,)."""

_CHUNK: Final = 256
_Z95: Final = 1.959963984540054


@dataclass(frozen=True, slots=True)
class Estimate:
    """A figure and what is known of its error.

    Attributes:
        mean: the figure itself.
        ci95: its 95 % interval, low and high.
        n: prompts behind it (count).
    """

    mean: float
    ci95: tuple[float, float]
    n: int

    def as_json(self) -> dict[str, Any]:
        """As metrics files hold it, rounded so that the order of a sum in the last bit changes no file."""
        return {"mean": rounded(self.mean), "ci95": [rounded(bound) for bound in self.ci95], "n": self.n}


def rounded(value: float) -> float:
    """Rounds to the six decimals that metrics files hold, without a negative zero."""
    return round(float(value), 6) + 0.0


def bootstrap(n: int, statistic: Statistic, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """Percentile bootstrap over prompts (Efron 1979).

    Equal `n`, `resamples` and `seed` draw equal weights, so figures of two policies on the same prompts are
    paired.

    Args:
        n: prompts (count).
        statistic: the figure as a function of weights over prompts; see `Statistic`.
        resamples: bootstrap samples (count).
        seed: of the draws.

    Raises:
        DataError: there are no prompts.
    """
    if n == 0:
        raise DataError("no prompt to measure on", "see why data/validated/evaluation.jsonl has none")
    point = float(statistic(np.full((1, n), 1.0 / n))[0])
    rng = np.random.default_rng(seed)
    figures = []
    for start in range(0, resamples, _CHUNK):
        rows = min(_CHUNK, resamples - start)
        figures.append(statistic(rng.multinomial(n, np.full(n, 1.0 / n), size=rows) / n))
    low, high = np.quantile(np.concatenate(figures), [0.025, 0.975])
    return Estimate(point, (float(low), float(high)), n)


def bootstrap_mean(values: Floats, *, resamples: int = 2000, seed: int = 0) -> Estimate:
    """The mean of `values`, shape (N,), one a prompt, with its bootstrap interval."""
    return bootstrap(len(values), lambda weights: weights @ values, resamples=resamples, seed=seed)


def wilson(hits: int, n: int) -> Estimate:
    """A share with Wilson's score interval (1927), which stays inside [0, 1] and is right at 0 and n hits.

    Raises:
        DataError: n is 0.
    """
    if n == 0:
        raise DataError("no prompt to measure a share on", "see why data/validated/evaluation.jsonl has none")
    share = hits / n
    z2 = _Z95 * _Z95
    centre = (share + z2 / (2 * n)) / (1 + z2 / n)
    half = _Z95 * float(np.sqrt(share * (1 - share) / n + z2 / (4 * n * n))) / (1 + z2 / n)
    low = 0.0 if hits == 0 else centre - half
    high = 1.0 if hits == n else centre + half
    return Estimate(share, (low, high), n)
