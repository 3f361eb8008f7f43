"""What an exact judge thinks of a policy, where one exists."""

from __future__ import annotations

from prefloop.evaluation.answers import Answers
from prefloop.evaluation.intervals import Estimate, bootstrap_mean


def gold_score(answers: Answers, *, resamples: int = 2000) -> Estimate | None:
    """Mean gold score an answer, or None where no gold judge exists."""
    if answers.gold is None:
        return None
    return bootstrap_mean(answers.gold, resamples=resamples)
