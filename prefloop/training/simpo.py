"""Fitting a policy to comparisons with SimPO."""

from __future__ import annotations

from collections.abc import Sequence

from prefloop.config.simpo import SimPOConfig
from prefloop.objectives.simpo import simpo_loss
from prefloop.training.direct import PairsPart, PolicyPairs, reward_part
from prefloop.training.loop import Part


def simpo_part(config: SimPOConfig) -> PairsPart:
    """What a step adds up, for `fit_comparisons` and `comparison_figures`: no reference is asked."""

    def part(pairs: PolicyPairs, rows: Sequence[int], count: int) -> Part:
        terms = simpo_loss(
            pairs.chosen_mean,
            pairs.rejected_mean,
            beta=config.beta,
            margin=config.margin,
            probability=pairs.probability,
        )
        return reward_part(terms, pairs, count, config.nll_coef)

    return part
