"""The win rate a policy would have if its answers were as long as the SFT policy's."""

from __future__ import annotations

from typing import Final

import numpy as np

from prefloop.evaluation.answers import Answers
from prefloop.evaluation.intervals import Estimate, Floats, bootstrap
from prefloop.evaluation.win_rate import outcomes

_RIDGE: Final = 1e-3
_STEPS: Final = 25


def length_controlled_win_rate(candidate: Answers, baseline: Answers, *, resamples: int = 500) -> Estimate:
    """Win rate at equal length, after AlpacaEval's length control (Dubois et al. 2024).

    logit P(win) = a + b tanh(dlength / sd(dlength)) + c difficulty, fitted to outcomes in which a tie counts
    one half, then averaged over prompts with the length term set to 0. A prompt's difficulty is the
    standardised judge's score of the baseline's answer; only one candidate is fitted, so `a` is its term.
    """
    wins = outcomes(candidate, baseline)
    gap = (candidate.lengths - baseline.lengths).astype(np.float64)
    spread = float(gap.std())
    length_term = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    design = np.stack([np.ones_like(gap), length_term, _standardised(baseline.judge)], axis=1)  # (N, 3)
    at_equal_length = design * np.array([1.0, 0.0, 1.0])

    def statistic(weights: Floats) -> Floats:
        coefficients = _fit(design, wins, weights)  # (R, 3)
        predicted = 1.0 / (1.0 + np.exp(-coefficients @ at_equal_length.T))  # (R, N)
        return np.asarray((weights * predicted).sum(axis=1), dtype=np.float64)

    return bootstrap(len(candidate), statistic, resamples=resamples)


def _standardised(values: Floats) -> Floats:
    spread = float(values.std())
    return (values - values.mean()) / spread if spread > 0 else np.zeros_like(values)


def _fit(design: Floats, outcome: Floats, weights: Floats) -> Floats:
    """Weighted logistic regressions by Newton's method; a small ridge keeps a clean sweep finite.

    Shapes: design (N, P), outcome (N,), weights (R, N); returns (R, P).
    """
    ridge = _RIDGE * np.eye(design.shape[1])
    coefficients = np.zeros((len(weights), design.shape[1]))
    for _ in range(_STEPS):
        predicted = 1.0 / (1.0 + np.exp(-np.clip(coefficients @ design.T, -30, 30)))  # (R, N)
        gradient = (weights * (outcome - predicted)) @ design - coefficients * _RIDGE  # (R, P)
        curvature = np.einsum("rn,np,nq->rpq", weights * predicted * (1 - predicted), design, design) + ridge
        step = np.linalg.solve(curvature, gradient[:, :, None])[:, :, 0]
        coefficients += np.clip(step, -2.0, 2.0)
        if np.abs(step).max() < 1e-9:
            break
    return coefficients
