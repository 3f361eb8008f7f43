"""Where and how a stage computes; resolved once into the environment fingerprint."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prefloop.config.parse import at_least


@dataclass(frozen=True)
class ComputeConfig:
    """Device, precision and threads of every stage.

    Attributes:
        device: "auto" takes a CUDA GPU when there is one.
        precision: "auto" is bf16 where the processor or GPU is fast at it, fp32 elsewhere.
        threads: CPU threads of each process of a stage (count); 0 takes every core.
        processes: that share a training on one machine (count); 0 takes one a visible GPU, and 1 without any.
        sharding: with more than one process, "full" divides weights, gradients and optimiser state of what
            trains among them; "none" keeps them whole in each.
        checkpoint_seconds: least time between two resumable checkpoints (seconds); no result depends on it.
        trust_remote_code: lets a hub model run its own Python code; off unless you know the model.
    """

    device: Literal["auto", "cpu", "cuda"] = "auto"
    precision: Literal["auto", "fp32", "bf16"] = "auto"
    threads: int = 2
    processes: int = 1
    sharding: Literal["none", "full"] = "none"
    checkpoint_seconds: float = 20.0
    trust_remote_code: bool = False

    def __post_init__(self) -> None:
        at_least("threads", self.threads, 0)
        at_least("processes", self.processes, 0)
        at_least("checkpoint_seconds", self.checkpoint_seconds, 0)
