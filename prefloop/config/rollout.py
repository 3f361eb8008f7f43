"""How completions are sampled."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least, between


@dataclass(frozen=True)
class SamplingConfig:
    """Sampling of completions.

    Attributes:
        max_new_tokens: longest completion (tokens, the end token included).
        temperature: softmax temperature; 0 is greedy.
        top_p: nucleus; 1 samples from the whole distribution.
    """

    max_new_tokens: int = 48
    temperature: float = 1.0
    top_p: float = 1.0

    def __post_init__(self) -> None:
        at_least("max_new_tokens", self.max_new_tokens, 1)
        at_least("temperature", self.temperature, 0)
        between("top_p", self.top_p, 0, 1)
