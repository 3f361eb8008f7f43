"""A streamed answer is the sampled one, in pieces."""

from __future__ import annotations

import pytest
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from prefloop.config.base import ArchitectureConfig
from prefloop.config.rollout import SamplingConfig
from prefloop.models.creating import create_model, train_tokenizer
from prefloop.rollout.sampling import Sampler
from prefloop.rollout.streaming import stream

PROMPT = "What colour is the lamp?"
KEY = (7, "chat", 1)


@pytest.fixture(scope="module")
def policy() -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    shape = ArchitectureConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, layers=2, heads=2, kv_heads=2, context=64
    )
    tokenizer = train_tokenizer(
        ["The kettle is blue.", "The lamp is red."] * 4, shape.vocab_size, shape.context
    )
    return create_model(shape, tokenizer, seed=0).eval(), tokenizer


@pytest.mark.parametrize("temperature", [0.0, 0.7, 1.3])
@pytest.mark.parametrize("top_p", [0.8, 1.0])
def test_pieces_add_up_to_what_the_sampler_gives(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase], temperature: float, top_p: float
) -> None:
    config = SamplingConfig(max_new_tokens=24, temperature=temperature, top_p=top_p)
    model, tokenizer = policy
    sampled = Sampler(model, tokenizer, config).sample([PROMPT], KEY).texts[0]
    pieces = list(stream(model, tokenizer, PROMPT, config, KEY))
    assert "".join(pieces) == sampled
    # An untrained byte-level model writes broken characters; whole ones come alone, never half of one.
    assert len(pieces) >= 1


def test_a_prompt_longer_than_the_context_is_answered(
    policy: tuple[PreTrainedModel, PreTrainedTokenizerBase],
) -> None:
    config = SamplingConfig(max_new_tokens=8, temperature=0.0)
    model, tokenizer = policy
    long = " ".join(["The lamp is red."] * 50)
    assert (
        "".join(stream(model, tokenizer, long, config, KEY))
        == (Sampler(model, tokenizer, config).sample([long], KEY).texts[0])
    )
