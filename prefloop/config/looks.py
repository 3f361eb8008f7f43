"""The knobs of trainings that look at their policy on the way."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.parse import at_least
from prefloop.config.training import TrainingConfig


@dataclass(frozen=True)
class LooksConfig(TrainingConfig):
    """A policy that answers a few prompts now and then, for its curve of gold against KL.

    Attributes:
        looks: times in a training that it does, evenly spread, the last after the last step; 0 is off.
        look_prompts: prompts that it answers each time, of those for reinforcement learning (count).
    """

    looks: int = 5
    look_prompts: int = 128

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least("looks", self.looks, 0)
        at_least("look_prompts", self.look_prompts, 1)
