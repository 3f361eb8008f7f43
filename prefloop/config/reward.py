"""Reward model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prefloop.config.parse import at_least, between
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class EnsembleConfig:
    """Several reward models in the place of one (Coste et al. 2023); they differ in their heads' first
    weights and in the order in which they see the comparisons, not in the comparisons.

    Attributes:
        members: how many; 1 is a single model.
        share_trunk: one trunk with a head a member, trained together on one order; otherwise separate
            models, trained one after another.
        aggregate: how their normalised scores become one: the "mean", the "worst" (least) of them, or "uwo",
            the mean less `uwo_coef` times their variance.
        uwo_coef: lambda of "uwo".
    """

    members: int = 1
    share_trunk: bool = False
    aggregate: Literal["mean", "worst", "uwo"] = "mean"
    uwo_coef: float = 0.5

    def __post_init__(self) -> None:
        at_least("members", self.members, 1)
        at_least("uwo_coef", self.uwo_coef, 0)


@dataclass(frozen=True)
class RewardConfig(TrainingConfig):
    """Section `reward`; `batch_size` counts prompts, each with all its ranked completions.

    Attributes:
        base: where the trunk comes from: "sft", "base", or a folder or hub id of any encoder or decoder.
        revision: branch, tag or commit on the hub, when `base` is a hub id.
        loss: "bradley_terry" over all pairs of a ranking, or "plackett_luce" over its choices.
        holdout: share of prompts kept apart for accuracy and calibration, chosen by a hash of the prompt.
        centering: weight of (r_chosen + r_rejected)^2, which keeps scores near 0 (Eisenstein et al. 2023).
        ensemble: several models in the place of one.
        length_control: "regress" subtracts the part of the score that the completion's length explains over
            the SFT policy's completions; "penalty" subtracts `length_penalty` a token.
        length_penalty: with "penalty": normalised score a token of the completion.
        share_prompt: encode a prompt once for all its completions in training: "auto" does so on a CPU where
            it pays and the trunk allows it, "on" wherever the trunk allows it; with dropout never.
        normalise_prompts: completions of the SFT policy on which scores are brought to mean 0, std 1 (count).
        bootstrap: resamples for intervals.
    """

    base: str = "sft"
    revision: str = "main"
    loss: Literal["bradley_terry", "plackett_luce"] = "bradley_terry"
    holdout: float = 0.1
    centering: float = 0.01
    ensemble: EnsembleConfig = field(default_factory=EnsembleConfig)
    length_control: Literal["none", "regress", "penalty"] = "none"
    length_penalty: float = 0.0
    share_prompt: Literal["auto", "on", "off"] = "auto"
    normalise_prompts: int = 256
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        between("holdout", self.holdout, 0, 0.5)
        at_least("centering", self.centering, 0)
        at_least("length_penalty", self.length_penalty, 0)
        at_least("normalise_prompts", self.normalise_prompts, 2)
        if (self.length_control == "penalty") != (self.length_penalty > 0):
            raise ValueError(
                f"length_control is {self.length_control} and length_penalty {self.length_penalty}: "
                "a penalty a token needs both, anything else neither"
            )
