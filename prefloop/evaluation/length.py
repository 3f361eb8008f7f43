"""How long answers are, and whether they end."""

from __future__ import annotations

import numpy as np

from prefloop.evaluation.answers import Answers
from prefloop.evaluation.intervals import Estimate, bootstrap_mean, wilson


def length(answers: Answers, *, resamples: int = 2000) -> Estimate:
    """Mean tokens an answer, the end token included."""
    return bootstrap_mean(answers.lengths.astype(np.float64), resamples=resamples)


def ended(answers: Answers) -> Estimate:
    """Share of answers that ended by themselves, before the limit of tokens."""
    return wilson(int(answers.ended.sum()), len(answers))
