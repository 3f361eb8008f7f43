"""What the methods that learn from preferences directly share."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least, between
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class DirectConfig(TrainingConfig):
    """A policy fitted to preferences without a reward model.

    Attributes:
        holdout: share of prompts kept apart to measure the loss on, chosen by a hash of the prompt.
    """

    holdout: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        between("holdout", self.holdout, 0, 0.5)


@dataclass(frozen=True)
class PairwiseConfig(DirectConfig):
    """The same, from pairs; `batch_size` counts prompts, each with all its pairs.

    Attributes:
        pairs_per_prompt: at most this many pairs of one ranking; 0 takes all.
    """

    pairs_per_prompt: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pairs_per_prompt", self.pairs_per_prompt, 0)
