"""The sizes of models, conversations and batches that are timed, and for how many steps."""

from __future__ import annotations

from dataclasses import dataclass

from prefloop.config.base import ArchitectureConfig

SAMPLING = ("grpo", "rloo", "ppo")
METHODS = ("sft", "dpo", "reward", "kto", *SAMPLING)
"""What is trained; `generate` is timed beside them."""


@dataclass(frozen=True)
class Lengths:
    """Log-normal lengths (tokens of content, without the template's).

    Attributes:
        prompt, completion: least, median and most. The longest completion that is sampled is the most, and
            sampled ones are geometric with the median for their mean before that cuts them.
        batch: rows of a step of SFT; pairs take half of it, rollouts twice as many.
    """

    name: str
    prompt: tuple[int, int, int]
    completion: tuple[int, int, int]
    batch: int

    @property
    def context(self) -> int:
        """Longest conversation with the template's tokens."""
        return self.prompt[2] + self.completion[2] + 16

    def rows(self, method: str) -> int:
        """Rows, pairs or rollouts of a step."""
        if method in ("dpo", "reward"):
            return self.batch // 2
        return self.batch * 2 if method in SAMPLING else self.batch


@dataclass(frozen=True)
class Size:
    """A model's shape.

    Attributes:
        steps: optimiser steps of a timed training; rollout batches are half as many.
    """

    name: str
    vocab_size: int
    hidden_size: int
    intermediate_size: int
    layers: int
    heads: int
    kv_heads: int
    steps: int
    model_type: str = "llama"

    def architecture(self, context: int) -> ArchitectureConfig:
        """The shape for conversations of at most `context` tokens; input and output embeddings are one."""
        return ArchitectureConfig(
            model_type=self.model_type,
            vocab_size=self.vocab_size,
            hidden_size=self.hidden_size,
            intermediate_size=self.intermediate_size,
            layers=self.layers,
            heads=self.heads,
            kv_heads=self.kv_heads,
            context=context,
            tie_embeddings=True,
        )

    def steps_of(self, method: str) -> int:
        """Steps of a timed training."""
        return max(self.steps // 2, 4) if method in SAMPLING else self.steps


CPU_SIZES = {
    size.name: size
    for size in (
        Size("1m", 1024, 128, 256, 3, 4, 4, 24, "qwen3"),  # the embedded help desk's
        Size("7m", 8192, 256, 768, 6, 4, 4, 12),
        Size("30m", 32768, 384, 1152, 9, 6, 6, 12),
    )
}
CPU_LENGTHS = {
    lengths.name: lengths
    for lengths in (
        Lengths("short", (4, 20, 64), (4, 32, 96), 32),
        Lengths("long", (32, 160, 384), (16, 96, 256), 16),
    )
}
GPU_SIZES = {
    size.name: size
    for size in (
        Size("0.5b", 151936, 896, 4864, 24, 14, 2, 16, "qwen2"),
        Size("1.5b", 151936, 1536, 8960, 28, 12, 2, 16, "qwen2"),
    )
}
GPU_LENGTHS = {
    lengths.name: lengths
    for lengths in (
        Lengths("512", (32, 128, 240), (32, 160, 256), 32),
        Lengths("2048", (128, 640, 1000), (128, 640, 1024), 16),
    )
}

WARM_UP = 2
"""First steps that are not timed: threads, caches and allocators are then as they stay."""
