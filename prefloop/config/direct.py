"""What the methods that learn from preferences directly share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.looks import LooksConfig
from prefloop.config.parse import at_least, between
from prefloop.config.rollout import SamplingConfig


@dataclass(frozen=True)
class DirectConfig(LooksConfig):
    """A policy fitted to preferences without a reward model.

    Attributes:
        holdout: share of prompts kept apart to measure the loss on, chosen by a hash of the prompt.
        look_tokens: longest answer of a look (tokens, the end token included), below `max_length`; 0 takes
            half of that.
    """

    holdout: float = 0.1
    look_tokens: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        between("holdout", self.holdout, 0, 0.5)
        at_least("look_tokens", self.look_tokens, 0)

    @property
    def look_sampling(self) -> SamplingConfig:
        """How the policy answers when it is looked at: from its whole distribution, at temperature 1."""
        return SamplingConfig(min(self.look_tokens or self.max_length // 2, self.max_length - 1))


@dataclass(frozen=True)
class PairwiseConfig(DirectConfig):
    """The same, from pairs; `batch_size` counts prompts, each with all its pairs.

    Attributes:
        pairs_per_prompt: at most this many pairs of one ranking; 0 takes all.
        share_prompt: encode a prompt once for all its completions: "auto" does so on a CPU where it pays and
            the model allows it, "on" wherever the model allows it; with dropout never.
    """

    pairs_per_prompt: int = 0
    share_prompt: Literal["auto", "on", "off"] = "auto"

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("pairs_per_prompt", self.pairs_per_prompt, 0)
