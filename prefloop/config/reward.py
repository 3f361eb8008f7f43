"""Reward model."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least, between
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class RewardConfig(TrainingConfig):
    """Section `reward`; `batch_size` counts prompts, each with all its ranked completions.

    Attributes:
        base: where the trunk comes from: "sft", "base", or a folder or hub id of any encoder or decoder.
        revision: branch, tag or commit on the hub, when `base` is a hub id.
        holdout: share of prompts kept apart for accuracy and calibration, chosen by a hash of the prompt.
        centering: weight of (r_chosen + r_rejected)^2, which keeps scores near 0 (Eisenstein et al. 2023).
        normalise_prompts: completions of the SFT policy on which scores are brought to mean 0, std 1 (count).
        bootstrap: resamples for intervals.
    """

    base: str = "sft"
    revision: str = "main"
    holdout: float = 0.1
    centering: float = 0.01
    normalise_prompts: int = 256
    bootstrap: int = 1000

    def __post_init__(self) -> None:
        super().__post_init__()
        between("holdout", self.holdout, 0, 0.5)
        at_least("centering", self.centering, 0)
        at_least("normalise_prompts", self.normalise_prompts, 2)
