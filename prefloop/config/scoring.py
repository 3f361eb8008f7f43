"""The knobs of every stage that samples completions and has them scored."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from prefloop.config.parse import at_least, between
from prefloop.config.rollout import SamplingConfig
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class ScoringConfig(TrainingConfig):
    """Sampling, and what a completion is worth.

    Attributes:
        sampling: how the policy samples.
        engine: what samples: "built_in", or "vllm" on a GPU, to which each new version of the weights is
            pushed (the extra `vllm`).
        engine_memory: with "vllm", the share of the GPU's memory that it takes while it samples.
        score_clip: the reward model's scores are clipped to +- this; 0 turns it off.
        missing_eos: a completion that did not end loses `missing_eos_penalty` ("penalty"), or is worth
            `missing_eos_score` whatever else it says ("score").
        missing_eos_penalty: with "penalty", what is subtracted.
        missing_eos_score: with "score", the whole score.
        overlong_penalty: weight of the soft punishment of long completions (Yu et al. 2025, eq. 13), which
            falls from 0 to -1; 0 turns it off.
        overlong_tokens: over how many of the last tokens before `sampling.max_new_tokens` it falls.
    """

    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    engine: Literal["built_in", "vllm"] = "built_in"
    engine_memory: float = 0.4
    score_clip: float = 0.0
    missing_eos: Literal["penalty", "score"] = "penalty"
    missing_eos_penalty: float = 1.0
    missing_eos_score: float = -1.0
    overlong_penalty: float = 0.0
    overlong_tokens: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("sampling.temperature", self.sampling.temperature, 0, strict=True)
        at_least("engine_memory", self.engine_memory, 0, strict=True)
        between("engine_memory", self.engine_memory, 0, 1)
        at_least("score_clip", self.score_clip, 0)
        at_least("overlong_penalty", self.overlong_penalty, 0)
        at_least("overlong_tokens", self.overlong_tokens, 1)
        if self.overlong_penalty and self.overlong_tokens > self.sampling.max_new_tokens:
            raise ValueError(
                f"overlong_tokens {self.overlong_tokens} is more than sampling.max_new_tokens "
                f"{self.sampling.max_new_tokens}"
            )
