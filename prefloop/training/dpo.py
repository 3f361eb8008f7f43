"""Fitting a policy to comparisons with DPO and the losses of its family."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Unpack

import torch
from torch import Tensor
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.dpo import DPOConfig
from prefloop.objectives.completions import PairTerms, mean_logprob
from prefloop.objectives.dpo import dpo_loss, robust_dpo_loss
from prefloop.objectives.hinge import hinge_loss
from prefloop.objectives.ipo import ipo_loss
from prefloop.training.direct import (
    PairsPart,
    PolicyPairs,
    Run,
    comparison_figures,
    fit_comparisons,
    reward_part,
)
from prefloop.training.loop import Part
from prefloop.training.pairs import EncodedComparison


def pair_terms(pairs: PolicyPairs, reference: Tensor, config: DPOConfig) -> PairTerms:
    """The loss that `config.loss` names, of every pair.

    Args:
        reference: (N,) float, log-probs SUMMED over each completion that the pairs' places count.
    """
    against, beside = reference[pairs.better], reference[pairs.worse]
    if config.loss == "ipo" and config.ipo_logprobs == "mean":
        return ipo_loss(
            pairs.chosen_mean,
            pairs.rejected_mean,
            mean_logprob(against, pairs.chosen_lengths),
            mean_logprob(beside, pairs.rejected_lengths),
            beta=config.beta,
            probability=pairs.probability,
        )
    columns = pairs.chosen, pairs.rejected, against, beside
    if config.loss in ("ipo", "hinge"):
        loss = ipo_loss if config.loss == "ipo" else hinge_loss
        return loss(*columns, beta=config.beta, probability=pairs.probability)
    smoothed = dpo_loss if config.loss == "sigmoid" else robust_dpo_loss
    return smoothed(
        *columns, beta=config.beta, label_smoothing=config.label_smoothing, probability=pairs.probability
    )


def dpo_part(reference: Sequence[Tensor], config: DPOConfig) -> PairsPart:
    """What a step adds up.

    Args:
        reference: for each comparison (K,) float, log-probs of its completions under the SFT policy.
    """

    def part(pairs: PolicyPairs, rows: Sequence[int], count: int) -> Part:
        against = torch.cat([reference[i] for i in rows]).to(pairs.chosen.device)
        return reward_part(pair_terms(pairs, against, config), pairs, count, config.nll_coef)

    return part


def fit_dpo(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    reference: Sequence[Tensor],
    config: DPOConfig,
    **run: Unpack[Run],
) -> dict[str, Any]:
    """Trains in place; a step's loss is the mean over all pairs of its prompts.

    Args:
        reference: for each comparison (K,) float, log-probs of its completions under the SFT policy.

    Returns:
        What `train` says of the training, for the stage's figures.

    Raises:
        DataError: there is no pair.
    """
    return fit_comparisons(model, tokenizer, comparisons, dpo_part(reference, config), config, "dpo", **run)


def held_out_figures(
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    comparisons: Sequence[EncodedComparison],
    reference: Sequence[Tensor],
    config: DPOConfig,
    precision: str,
) -> dict[str, float]:
    """Loss and figures on held-out comparisons; empty without any."""
    return comparison_figures(model, tokenizer, comparisons, dpo_part(reference, config), precision)
