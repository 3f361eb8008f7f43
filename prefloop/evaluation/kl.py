"""How far a policy has moved from the SFT policy."""

from __future__ import annotations

from prefloop.evaluation.answers import Answers
from prefloop.evaluation.intervals import Estimate, bootstrap_mean


def kl_to_sft(answers: Answers, *, resamples: int = 2000) -> Estimate:
    """KL(pi || sft) in nats a response, by the estimator k1 = mean of the summed log-ratio (Schulman 2020).

    It is unbiased when answers were sampled from the whole distribution at the temperature of the log-probs;
    greedy or nucleus sampling makes it the mean log-ratio of those answers instead. A finite sample can fall
    below 0.
    """
    return bootstrap_mean(answers.log_ratio, resamples=resamples)
