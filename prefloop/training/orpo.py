"""Fitting a policy to comparisons with ORPO."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.orpo import ORPOConfig
from prefloop.objectives.orpo import orpo_loss
from prefloop.training.direct import (
    EncodedComparison,
    PairsPart,
    PolicyPairs,
    Run,
    comparison_figures,
    fit_comparisons,
)
from prefloop.training.loop import Part


def orpo_part(config: ORPOConfig) -> PairsPart:
    """What a step adds up."""

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
                "accuracy": float((terms.log_odds_ratio > 0).sum()) / count,
                "log_odds_ratio": float(terms.log_odds_ratio.sum()) / count,
                **pairs.logprob_figures(count),
            },
        )

    return part


def fit_orpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    config: ORPOConfig,
    **run: Unpack[Run],
) -> dict[str, Any]:
    """Trains in place, without a reference; a step's loss is the mean over all pairs of its prompts.

    Returns:
        What `train` says of the training, for the stage's figures.

    Raises:
        DataError: there is no pair.
    """
    return fit_comparisons(model, tokenizer, comparisons, orpo_part(config), config, "orpo", **run)


def held_out_figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    config: ORPOConfig,
    precision: str,
) -> dict[str, float]:
    """Loss and figures on held-out comparisons; empty without any."""
    return comparison_figures(model, tokenizer, comparisons, orpo_part(config), precision)
