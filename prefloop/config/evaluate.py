"""Evaluation."""

from __future__ import annotations

from dataclasses import dataclass, field

from prefloop.config.parse import at_least
from prefloop.config.rollout import SamplingConfig


@dataclass(frozen=True)
class EvaluateConfig:
    """Section `evaluate`.

    Attributes:
        policies: models to score, each a folder of models/.
        sampling: how they answer.
        batch_size: completions sampled at once.
        bootstrap: resamples for intervals, paired by prompt.
        oracle_samples: SFT samples a prompt of which the best is the reachable maximum (gold judge only).
        oracle_prompts: main prompts, spread over the kinds, on which that is measured; 0 takes all.
        max_prompts: evaluation prompts at most of each panel; 0 takes all.
    """

    policies: list[str] = field(default_factory=lambda: ["base", "sft", "ppo", "dpo"])
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    batch_size: int = 256
    bootstrap: int = 2000
    oracle_samples: int = 64
    oracle_prompts: int = 200
    max_prompts: int = 0
    threads: int = 0

    def __post_init__(self) -> None:
        at_least("batch_size", self.batch_size, 1)
        at_least("threads", self.threads, 0)
        at_least("bootstrap", self.bootstrap, 100)
        at_least("oracle_samples", self.oracle_samples, 0)
        at_least("oracle_prompts", self.oracle_prompts, 0)
        at_least("max_prompts", self.max_prompts, 0)
        if "sft" not in self.policies:
            raise ValueError("policies must hold sft: win rates and KL are taken against it")
