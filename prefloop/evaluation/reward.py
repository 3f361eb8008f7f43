"""What the optimised reward model and the independent judge think of a policy."""

from __future__ import annotations

from prefloop.evaluation.answers import Answers
from prefloop.evaluation.intervals import Estimate, bootstrap_mean


def reward_score(answers: Answers, *, resamples: int = 2000) -> Estimate:
    """Mean normalised score of the reward model: 0 is the SFT policy's mean on the normalising prompts, 1 its
    standard deviation there. A policy trained on this score is not judged by it."""
    return bootstrap_mean(answers.reward, resamples=resamples)


def judge_score(answers: Answers, *, resamples: int = 2000) -> Estimate:
    """Mean score of the independent judge, in the judge's own units."""
    return bootstrap_mean(answers.judge, resamples=resamples)
