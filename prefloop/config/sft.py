"""Supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.parse import at_least, between
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Section `sft`; `batch_size` counts demonstrations.

    Attributes:
        holdout: share of prompts kept apart to measure the loss on, chosen by a hash of the prompt.
        train_on: "completion" learns the last answer only, "assistant" every assistant turn.
        average: what the loss is a mean over: "token", the learned tokens of the step; "sequence", its
            demonstrations, each of which counts the mean over its own tokens.
        packing: several demonstrations in one row of `max_length`, each blind to the others.
        neftune_alpha: scale of the noise on input embeddings in training (Jain et al. 2023); 0 is none.
    """

    holdout: float = 0.05
    train_on: str = "completion"
    average: Literal["token", "sequence"] = "token"
    packing: bool = False
    neftune_alpha: float = 0.0

    def __post_init__(self) -> None:
        super().__post_init__()
        between("holdout", self.holdout, 0, 0.5)
        at_least("neftune_alpha", self.neftune_alpha, 0)
        if self.train_on not in ("completion", "assistant"):
            raise ValueError(f"train_on must be completion or assistant, got {self.train_on!r}")
