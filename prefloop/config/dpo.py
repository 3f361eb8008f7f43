"""DPO."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least, between
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class DPOConfig(TrainingConfig):
    """Section `dpo`; `batch_size` counts prompts, each with all its pairs.

    Attributes:
        beta: strength of the tie to the SFT policy.
        label_smoothing: share of labels taken to be flipped (cDPO, Mitchell 2023).
        nll_coef: weight of the chosen completion's negative log-likelihood a token (Pang et al. 2024).
        pairs_per_prompt: at most this many pairs of one ranking; 0 takes all.
        holdout: share of prompts kept apart to measure the loss on, chosen by a hash of the prompt.
    """

    beta: float = 0.1
    label_smoothing: float = 0.0
    nll_coef: float = 0.0
    pairs_per_prompt: int = 0
    holdout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("beta", self.beta, 0, strict=True)
        between("label_smoothing", self.label_smoothing, 0, 0.499)
        at_least("nll_coef", self.nll_coef, 0)
        at_least("pairs_per_prompt", self.pairs_per_prompt, 0)
        between("holdout", self.holdout, 0, 0.5)
