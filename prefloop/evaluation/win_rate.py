"""How often a policy's answer is preferred to the SFT policy's answer to the same prompt."""

from __future__ import annotations

from typing import Final

import numpy as np

from prefloop.evaluation.answers import Answers, paired
from prefloop.evaluation.intervals import Estimate, Floats, bootstrap_mean

_TIE: Final = 1e-6
"""Judges' scores closer than this are equal: floating-point noise is no preference."""


def outcomes(candidate: Answers, baseline: Answers) -> Floats:
    """1 for each prompt the candidate wins by the judge, 0.5 for a tie, 0 for a loss; shape (N,), float64.

    The same words are a tie, whatever a judge's arithmetic makes of them.

    Raises:
        DataError: the two did not answer the same prompts.
    """
    paired(candidate, baseline)
    difference = candidate.judge - baseline.judge
    same = np.array([a == b for a, b in zip(candidate.texts, baseline.texts, strict=True)], dtype=bool)
    difference[same | (np.abs(difference) < _TIE)] = 0.0
    return 0.5 * (1.0 + np.sign(difference))


def win_rate(candidate: Answers, baseline: Answers, *, resamples: int = 2000) -> Estimate:
    """(wins + ties / 2) / n with a prompt-paired bootstrap interval."""
    return bootstrap_mean(outcomes(candidate, baseline), resamples=resamples)
