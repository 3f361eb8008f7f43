"""Random models of growing width, and what theory says that they cost."""

from __future__ import annotations

from functools import cache

from transformers import PreTrainedModel, PreTrainedTokenizerFast

from prefloop.config.base import ArchitectureConfig
from prefloop.models.creating import create_model, train_tokenizer

VOCABULARY = 1024
CONTEXT = 2048
FORWARD_AND_BACKWARD = 3
"""The backward pass multiplies twice what the forward pass does once."""


def shape(width: int, layers: int) -> ArchitectureConfig:
    """A decoder with heads of 32."""
    heads = max(width // 32, 1)
    return ArchitectureConfig(
        vocab_size=VOCABULARY,
        hidden_size=width,
        intermediate_size=2 * width,
        layers=layers,
        heads=heads,
        kv_heads=heads,
        context=CONTEXT,
    )


@cache
def tokenizer() -> PreTrainedTokenizerFast:
    """Of random digits, so that its vocabulary has the model's size."""
    numbers = " ".join(str(number * number) for number in range(20_000))
    return train_tokenizer([numbers], VOCABULARY, CONTEXT)


def model(of: ArchitectureConfig) -> PreTrainedModel:
    """Random weights, float32."""
    return create_model(of, tokenizer(), 0)


def weights(of: ArchitectureConfig) -> int:
    """Weights that a token is multiplied with in the blocks (count): four projections and a gated MLP."""
    return of.layers * (4 * of.hidden_size**2 + 3 * of.hidden_size * of.intermediate_size)


def flops(of: ArchitectureConfig, length: int, learned: int) -> float:
    """Multiplications and additions of a training step on one sequence.

    Two a weight and token in the blocks, two a weight of the head and learned token, and 4 * width a layer
    for each pair of tokens, scores and mixed values: the part that is quadratic in the length.

    Args:
        length, learned: tokens of the sequence, and those with a loss.
    """
    blocks = 2.0 * weights(of) * length
    head = 2.0 * of.hidden_size * of.vocab_size * learned
    attention = 4.0 * of.layers * of.hidden_size * length**2
    return FORWARD_AND_BACKWARD * (blocks + head + attention)
