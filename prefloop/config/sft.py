"""Supervised fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import between
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class SFTConfig(TrainingConfig):
    """Section `sft`; `batch_size` counts demonstrations.

    Attributes:
        holdout: share of prompts kept apart to measure the loss on, chosen by a hash of the prompt.
        train_on: "completion" learns the last answer only, "assistant" every assistant turn.
    """

    holdout: float = 0.05
    train_on: str = "completion"

    def __post_init__(self) -> None:
        super().__post_init__()
        between("holdout", self.holdout, 0, 0.5)
        if self.train_on not in ("completion", "assistant"):
            raise ValueError(f"train_on must be completion or assistant, got {self.train_on!r}")
