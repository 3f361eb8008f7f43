"""ORPO."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.direct import PairwiseConfig
from prefloop.config.parse import at_least


@dataclass(frozen=True)
class ORPOConfig(PairwiseConfig):
    """Section `orpo`; `batch_size` counts prompts, each with all its pairs.

    The defaults are the paper's (Hong et al. 2024).

    Attributes:
        start: the model to train: "base", as in the paper, where the likelihood term does the fine-tuning, or
            "sft".
        odds_coef: lambda, weight of the odds ratio beside the chosen completion's likelihood.
    """

    start: Literal["base", "sft"] = "base"
    odds_coef: float = 0.1
    learning_rate: float = 8e-6

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("odds_coef", self.odds_coef, 0, strict=True)
