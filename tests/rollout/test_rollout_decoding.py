"""A further token by the written-out pass, against the model's own forward pass."""

from __future__ import annotations

from typing import Any
from unittest import mock

import pytest
import torch
from torch import Tensor
from transformers import PreTrainedModel

from prefloop.config.rollout import SamplingConfig
from prefloop.config.training import LoraConfig
from prefloop.models.adapters import attach
from prefloop.models.forward import precision_context
from prefloop.rollout import decoding, sampling
from prefloop.rollout.decoding import STEP, Decoder, bias_of, decodes
from prefloop.rollout.kv_cache import roomy_cache
from prefloop.rollout.sampling import Sampler
from tests import tiny

PROMPT = torch.tensor([[3, 9, 4, 17], [0, 0, 5, 8], [0, 12, 7, 1]])
REAL = torch.tensor([[1, 1, 1, 1], [0, 0, 1, 1], [0, 1, 1, 1]])


def far_from_uniform(kind: str, kv_heads: int = 2) -> PreTrainedModel:
    model = tiny.model(tiny.tokenizer(), kind=kind, layers=2, kv_heads=kv_heads)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if parameter.ndim >= 2:
                parameter *= 4
            else:  # norms and biases, which begin as ones and zeros
                parameter += torch.linspace(-0.3, 0.3, parameter.numel()) if "norm" not in name else 0.2
    return model


@torch.no_grad()
def decoded(model: PreTrainedModel, then: Tensor, precision: str = "fp32") -> list[Tensor]:
    """Logits after each further token of `then`, (B, t)."""
    with precision_context(precision, "cpu"):
        return _decoded(model, then, precision)


def _decoded(model: PreTrainedModel, then: Tensor, precision: str) -> list[Tensor]:
    cache, places = roomy_cache(model, STEP), (REAL.cumsum(dim=-1) - 1).clamp(min=0)
    model(input_ids=PROMPT, attention_mask=REAL, position_ids=places, past_key_values=cache)
    decoder, bias, place = Decoder(model, precision), bias_of(REAL, then.shape[1] + STEP), places[:, -1:]
    found = []
    for step, token in enumerate(then.T):
        bias[:, REAL.shape[1] + step] = 0.0
        place = place + 1
        found.append(decoder(token.unsqueeze(1), place, cache.layers, bias))  # type: ignore[arg-type]
    return found


@pytest.mark.parametrize(("kind", "kv_heads"), [("llama", 2), ("llama", 1), ("qwen2", 2), ("qwen3", 1)])
def test_logits_are_those_of_the_whole_sequence_without_a_cache(kind: str, kv_heads: int) -> None:
    model = far_from_uniform(kind, kv_heads)
    assert decodes(model)
    then = torch.randint(1, 300, (3, 2 * STEP), generator=torch.Generator().manual_seed(0))
    for step, logits in enumerate(decoded(model, then), start=1):
        for row, own in enumerate(logits):
            ids = torch.cat([PROMPT[row][REAL[row].bool()], then[row, :step]])
            expected = model(input_ids=ids.unsqueeze(0)).logits[0, -1]
            torch.testing.assert_close(own, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("kind", ["qwen2", "qwen3"])
def test_in_bf16_they_are_as_near_as_the_models_own(kind: str) -> None:
    model = far_from_uniform(kind)
    then = torch.randint(1, 300, (3, 4), generator=torch.Generator().manual_seed(2))
    exact = torch.stack(decoded(model, then))
    found = torch.stack(decoded(model, then, "bf16")).float()
    own = []
    for step in range(4):
        ids = torch.cat([PROMPT[0], then[0, : step + 1]]).unsqueeze(0)
        with torch.no_grad(), precision_context("bf16", "cpu"):
            own.append(model(input_ids=ids).logits[0, -1].float())
    error, expected = (found - exact)[:, 0].abs().mean(), (torch.stack(own) - exact[:, 0]).abs().mean()
    assert 0 < error < 2 * expected


@pytest.mark.parametrize("kind", ["gpt2", "gemma3_text", "mistral"])
def test_other_decoders_go_their_own_way(kind: str) -> None:
    assert not decodes(tiny.model(tiny.tokenizer(), kind=kind, layers=2))


def test_an_adapter_is_found_out() -> None:
    model = tiny.model(tiny.tokenizer())
    assert decodes(model)
    adapted: Any = attach(tiny.model(tiny.tokenizer()), LoraConfig(rank=2), seed=0)
    assert not decodes(adapted)


def test_a_block_that_adds_otherwise_and_one_too_large_are_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = tiny.model(tiny.tokenizer())
    own = type(model.base_model.layers[-1]).forward
    with mock.patch.object(type(model.base_model.layers[-1]), "forward", lambda *a, **k: 2 * own(*a, **k)):
        assert not decodes(model)
    monkeypatch.setattr(decoding, "LARGEST", 100)
    assert not decodes(tiny.model(tiny.tokenizer()))


def test_what_is_sampled_is_the_same_without_it_and_follows_the_weights() -> None:
    model, tokens = far_from_uniform("qwen3"), tiny.tokenizer()
    sampler = Sampler(model, tokens, SamplingConfig(max_new_tokens=20))
    prompts = [question for question in tiny.QUESTIONS for _ in range(3)]
    first = sampler.sample(prompts, (0, "t"))
    with mock.patch.object(sampling, "decodes", return_value=False):
        assert sampler.sample(prompts, (0, "t")).completion_ids == first.completion_ids
    with torch.no_grad():
        model.base_model.layers[0].self_attn.q_proj.weight.add_(1.0)
    changed = sampler.sample(prompts, (0, "t"))
    assert changed.completion_ids != first.completion_ids
    with mock.patch.object(sampling, "decodes", return_value=False):
        assert sampler.sample(prompts, (0, "t")).completion_ids == changed.completion_ids
