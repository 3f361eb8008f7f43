"""A reward model's scale: mean 0 and std 1 over completions of the SFT policy, and how length bears on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from prefloop.config.reward import RewardConfig
from prefloop.errors import TrainingError
from prefloop.models.reward_model import RewardModel
from prefloop.models.reward_normalisation import Normalisation, aggregate_members, slope_on


def normalise(
    model: RewardModel, prompts: Sequence[Any], completions: Sequence[Any], config: RewardConfig
) -> float:
    """Sets the model's normalisation from the SFT policy's completions; returns their `length_slope`.

    Members are normalised each, then their aggregate. A single model is its own aggregate. The slope is that
    of the normalised score on the completion's length, before length control (standard deviations a token).

    Raises:
        TrainingError: scores do not vary, so that nothing could be learned from them.
    """
    raw = model.raw(prompts, completions)
    members: tuple[tuple[float, float], ...] = ((0.0, 1.0),)
    if model.members > 1:
        members = tuple(_mean_and_std(column, f"member {i}") for i, column in enumerate(raw.unbind(dim=1)))
    ensemble = config.ensemble
    scale = Normalisation(members=members, aggregate=ensemble.aggregate, uwo_coef=ensemble.uwo_coef)
    combined = aggregate_members(scale.standardise(raw), scale.aggregate, scale.uwo_coef)
    mean, std = _mean_and_std(combined, "the reward model")
    lengths = [model.completion_tokens(completion) for completion in completions]
    slope = slope_on(lengths, (combined - mean) / std)
    regressed = config.length_control == "regress"
    model.normalisation = Normalisation(
        mean=mean,
        std=std,
        members=members,
        aggregate=scale.aggregate,
        uwo_coef=scale.uwo_coef,
        slope=slope if regressed else 0.0,
        mean_tokens=sum(lengths) / len(lengths) if regressed else 0.0,
        penalty=config.length_penalty,
    )
    return slope


def _mean_and_std(scores: Tensor, who: str) -> tuple[float, float]:
    mean, std = float(scores.mean()), float(scores.std())
    if not std > 1e-6:
        raise TrainingError(
            f"{who} gives every completion the same score ({mean:.4f})",
            "train it longer or at another learning rate, and look at the comparisons' agreement",
        )
    return mean, std
