"""Fitting a policy to comparisons with ORPO."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.config.orpo import ORPOConfig
from prefloop.objectives.orpo import orpo_loss
from prefloop.training.direct import PairsPart, PolicyPairs
from prefloop.training.figures import share
from prefloop.training.loop import Part


def orpo_part(config: ORPOConfig) -> PairsPart:
    """What a step adds up, for `fit_comparisons` and `comparison_figures`: no reference is asked."""

    def part(pairs: PolicyPairs, rows: Sequence[int], count: int) -> Part:
        terms = orpo_loss(
            pairs.chosen_mean,
            pairs.rejected_mean,
            odds_coef=config.odds_coef,
            probability=pairs.probability,
        )
        return Part(
            terms.loss.sum() / count,
            {
                "accuracy": share(terms.log_odds_ratio > 0, count),
                "log_odds_ratio": share(terms.log_odds_ratio, count),
                **pairs.logprob_figures(count),
            },
        )

    return part
