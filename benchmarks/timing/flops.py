"""Floating-point operations that a model's forward pass needs: those of its matrix products, honestly few.

Padding, recomputed activations, the optimiser, norms and softmax count nothing, so a utilisation that is
reckoned with them is what the training gets out of the machine, and not what it keeps it busy with.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

BACKWARD = 2
"""A backward pass has two products, for inputs and for weights, where the forward pass has one."""


@dataclass(frozen=True)
class Pass:
    """One sequence that goes through a model in a step.

    Attributes:
        tokens: real ones. wanted: of them, those whose next-token distribution is needed (0: none).
        learned: with a backward pass, too.
    """

    tokens: int
    wanted: int
    learned: bool = True


@dataclass(frozen=True)
class Shape:
    """What the count needs of a decoder with grouped-query attention and a gated feed-forward layer."""

    hidden: int
    intermediate: int
    layers: int
    heads: int
    kv_heads: int
    head_size: int
    vocab: int

    @classmethod
    def of(cls, config: Any) -> Shape:
        """That of a transformers configuration (llama, qwen2, qwen3 and their like)."""
        heads = int(config.num_attention_heads)
        return cls(
            int(config.hidden_size),
            int(config.intermediate_size),
            int(config.num_hidden_layers),
            heads,
            int(config.num_key_value_heads),
            int(getattr(config, "head_dim", None) or config.hidden_size // heads),
            int(config.vocab_size),
        )

    @property
    def block_weights(self) -> int:
        """Entries of one block's matrices, each of which meets every token once."""
        attention = 2 * self.heads * self.head_size + 2 * self.kv_heads * self.head_size
        return self.hidden * (attention + 3 * self.intermediate)

    def forward(self, one: Pass, *, causal: bool = True) -> int:
        """Operations of one sequence's forward pass (a multiplication and an addition count two).

        Args:
            causal: a token is compared with those up to it alone, as needed; False counts the full square,
                which some kernels compute.
        """
        blocks = 2 * self.layers * self.block_weights * one.tokens
        pairs = one.tokens * (one.tokens + 1) // 2 if causal else one.tokens**2
        attention = 2 * 2 * self.layers * self.heads * self.head_size * pairs
        return blocks + attention + 2 * self.vocab * self.hidden * one.wanted

    def step(self, passes: Sequence[Pass]) -> int:
        """Operations of a step."""
        return sum(self.forward(one) * (1 + BACKWARD * one.learned) for one in passes)
