"""Fitting a policy to comparisons with SimPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.simpo import SimPOConfig
from prefloop.objectives.simpo import simpo_loss
from prefloop.training.direct import (
    EncodedComparison,
    PairsPart,
    PolicyPairs,
    Run,
    comparison_figures,
    fit_comparisons,
    reward_part,
)
from prefloop.training.loop import Part


def simpo_part(config: SimPOConfig) -> PairsPart:
    """What a step adds up."""

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


def fit_simpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    config: SimPOConfig,
    **run: Unpack[Run],
) -> dict[str, Any]:
    """Trains in place, without a reference; a step's loss is the mean over all pairs of its prompts.

    Returns:
        What `train` says of the training, for the stage's figures.

    Raises:
        DataError: there is no pair.
    """
    return fit_comparisons(model, tokenizer, comparisons, simpo_part(config), config, "simpo", **run)


def held_out_figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    config: SimPOConfig,
    precision: str,
) -> dict[str, float]:
    """Loss and figures on held-out comparisons; empty without any."""
    return comparison_figures(model, tokenizer, comparisons, simpo_part(config), precision)
